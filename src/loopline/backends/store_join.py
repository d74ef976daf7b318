"""The join's books in SQL: positions, outcomes, examples, tallies, epochs, receipts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, bindparam, delete, select, update

from loopline.backends.database import CHUNK, Database, chunks, put, put_plain
from loopline.backends.tables import (
    books,
    columns_of,
    epochs,
    example_row,
    examples,
    outcome_row,
    outcomes,
    read_example,
    read_outcome,
    receipts,
    tallies,
    values_of,
)
from loopline.errors import WrongState
from loopline.records import (
    Books,
    Cursor,
    Epoch,
    Example,
    JoinDelta,
    OutcomeState,
    OutcomeStatus,
    Tally,
)

_RELABEL = (
    update(examples)
    .where(examples.c.model == bindparam("old_model"), examples.c.seq == bindparam("old_seq"))
    .values(id=bindparam("id"), body=bindparam("body"))
)


class Join(Database):
    """The books that one batch of the join changes together, as `contracts.Store` has them."""

    def join_position(self, model: str) -> Cursor | None:
        with self._read() as connection:
            return self._position(connection, model)

    def _position(self, connection: Connection, model: str) -> Cursor | None:
        token = connection.scalar(select(books.c.position).where(books.c.model == model))
        return None if token is None else Cursor(token=token)

    def books(self, model: str) -> Books:
        rows = self._rows(select(*columns_of(books, Books)).where(books.c.model == model))
        return Books(**rows[0]._mapping) if rows else Books(model=model)

    def commit_join(self, delta: JoinDelta) -> None:
        # Encoded before the transaction begins, so that other writers wait for the disk only.
        relabelled = [
            {"old_model": row["model"], "old_seq": row["seq"], **row}
            for row in map(example_row, delta.relabelled)
        ]
        joined = [outcome_row(state) for state in delta.outcomes]
        labelled = [example_row(example) for example in delta.examples]
        with self._write() as connection:
            if self._position(connection, delta.model) != delta.expected:
                raise WrongState(f"The join of {delta.model!r} has moved on meanwhile.")
            position = {**values_of(delta.books), "position": delta.position.token}
            put(connection, books, [{**position, "model": delta.model}])
            put_plain(connection, outcomes, joined)
            put_plain(connection, examples, labelled)
            if relabelled:
                connection.execute(_RELABEL, relabelled)
            sums = [{"model": delta.model, **values_of(tally)} for tally in delta.tallies]
            put(connection, tallies, sums)
            put(connection, epochs, [values_of(epoch) for epoch in delta.epochs], keep=True)
            now = self._now(connection)
            said = [{"key": k, "status": s, "at": now} for k, s in delta.receipts.items()]
            put_plain(connection, receipts, said)

    def outcome_states(self, model: str, ids: Sequence[str]) -> dict[str, OutcomeState]:
        query = select(outcomes).where(outcomes.c.model == model)
        with self._read() as connection:
            rows = [
                row
                for some in chunks(ids)
                for row in connection.execute(query.where(outcomes.c.id.in_(some)))
            ]
        return {state.id: state for state in map(read_outcome, rows)}

    def waiting_outcomes(self, model: str, most: int = 1000) -> list[OutcomeState]:
        query = (
            select(outcomes)
            .where(outcomes.c.model == model, outcomes.c.status == OutcomeStatus.WAITING.value)
            .order_by(outcomes.c.arrival, outcomes.c.id)
            .limit(most)
        )
        return [read_outcome(row) for row in self._rows(query)]

    def tallies(self, model: str, keys: Sequence[tuple[int, int]] | None = None) -> list[Tally]:
        query = select(*columns_of(tallies, Tally)).where(tallies.c.model == model)
        query = query.order_by(tallies.c.version, tallies.c.cohort)
        if keys is None:
            return [Tally(**row._mapping) for row in self._rows(query)]
        wanted = set(keys)
        found: list[Tally] = []
        with self._read() as connection:
            for some in chunks(sorted({version for version, _ in wanted})):
                cohorts = [cohort for version, cohort in wanted if version in set(some)]
                part = query.where(
                    tallies.c.version.in_(some),
                    tallies.c.cohort.between(min(cohorts), max(cohorts)),
                )
                found += [Tally(**row._mapping) for row in connection.execute(part)]
        return [tally for tally in found if (tally.version, tally.cohort) in wanted]

    def receipts(self, keys: Sequence[str]) -> dict[str, str]:
        query = select(receipts.c.key, receipts.c.status)
        found: dict[str, str] = {}
        with self._read() as connection:
            for some in chunks(keys):
                rows = connection.execute(query.where(receipts.c.key.in_(some)))
                found.update((row.key, row.status) for row in rows)
        return found

    def trim_receipts(self, before: float) -> int:
        with self._write() as connection:
            return connection.execute(delete(receipts).where(receipts.c.at < before)).rowcount

    def epochs(self, model: str) -> list[Epoch]:
        query = select(*columns_of(epochs, Epoch)).where(epochs.c.model == model)
        return [Epoch(**row._mapping) for row in self._rows(query.order_by(epochs.c.k))]

    def examples(
        self,
        model: str,
        after: int = 0,
        upto: int | None = None,
        most: int | None = None,
    ) -> Iterator[Example]:
        query = select(examples).where(examples.c.model == model).order_by(examples.c.seq)
        if upto is not None:
            query = query.where(examples.c.seq <= upto)
        while most is None or most > 0:
            page = CHUNK if most is None else min(CHUNK, most)
            rows = self._rows(query.where(examples.c.seq > after).limit(page))
            yield from map(read_example, rows)
            if len(rows) < page:
                return
            after = rows[-1].seq
            most = None if most is None else most - page

    def examples_by_id(self, model: str, ids: Sequence[str]) -> dict[str, Example]:
        query = select(examples).where(examples.c.model == model).order_by(examples.c.seq)
        with self._read() as connection:
            rows = [
                row
                for some in chunks(ids)
                for row in connection.execute(query.where(examples.c.id.in_(some)))
            ]
        return {str(example.id): example for example in map(read_example, rows)}

    def trim_examples(self, model: str, before_seq: int, most: int = 1000) -> int:
        mine = examples.c.model == model
        oldest = select(examples.c.seq).where(mine, examples.c.seq < before_seq)
        gone = oldest.order_by(examples.c.seq).limit(most)
        with self._write() as connection:
            return connection.execute(
                delete(examples).where(mine, examples.c.seq.in_(gone))
            ).rowcount

    def erase_ids(self, model: str, ids: Sequence[str]) -> int:
        count = 0
        with self._write() as connection:
            for some in chunks(ids):
                for table in (outcomes, examples):
                    which = delete(table).where(table.c.model == model, table.c.id.in_(some))
                    count += connection.execute(which).rowcount
        return count
