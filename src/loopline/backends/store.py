"""`SqlStore`: the store over SQLAlchemy Core, on SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace
from sqlalchemy import URL, Engine, delete, select

from loopline.backends.database import put
from loopline.backends.store_jobs import Jobs
from loopline.backends.store_join import Join
from loopline.backends.tables import (
    aliases,
    books,
    columns_of,
    decisions,
    epochs,
    examples,
    models,
    outcomes,
    tallies,
    tokens,
    values_of,
    versions,
    workers,
)
from loopline.records import Token, WorkerRecord

_OF_A_MODEL = (versions, aliases, decisions, books, outcomes, examples, tallies, epochs)


class SqlStore(Join, Jobs):
    """`contracts.Store` in a SQL database; several processes may open the same one at once."""

    @classmethod
    def open(
        cls, where: str | URL | Engine, *, clock: Callable[[], float] | None = None
    ) -> SqlStore:
        """Open a store, making or migrating its tables where needed.

        Args:
            where: `sqlite:///path`, `sqlite://`, `postgresql://...`, or an engine.
            clock: seconds since the epoch; default: the machine's, or the PostgreSQL server's.

        Raises:
            InvalidInput: the URL cannot be understood.
            MissingExtra: the database's driver is not installed.
            WrongState: the database belongs to something else, or to a newer release.
            Unavailable: it cannot be reached.
        """
        return cls(where, clock=clock)

    def drop_model(self, name: str) -> bool:
        with self._write() as connection:
            if not connection.execute(delete(models).where(models.c.name == name)).rowcount:
                return False
            for table in _OF_A_MODEL:
                connection.execute(delete(table).where(table.c.model == name))
            self._cancel_all(connection, name)
            self._bump(connection)
            return True

    def put_worker(self, worker: WorkerRecord) -> None:
        with self._write() as connection:
            now = self._now(connection)
            kept = replace(worker, seen=now, started=worker.started or now)
            put(connection, workers, [values_of(kept)])

    def workers(self, since: float = 0.0) -> list[WorkerRecord]:
        query = select(*columns_of(workers, WorkerRecord)).where(workers.c.seen >= since)
        return [WorkerRecord(**row._mapping) for row in self._rows(query.order_by(workers.c.id))]

    def put_token(self, token: Token) -> None:
        with self._write() as connection:
            kept = replace(token, created=token.created or self._now(connection))
            put(connection, tokens, [values_of(kept)])

    def tokens(self) -> list[Token]:
        query = select(*columns_of(tokens, Token)).order_by(tokens.c.name)
        return [Token(**row._mapping) for row in self._rows(query)]
