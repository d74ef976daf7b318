"""Outcomes meet predictions: the rules, the counters, the epochs.

One `Join` per model reads the model's outcomes and examples from the event log and turns each
batch into a `JoinDelta`, which the store applies in one transaction together with the position.
Only the position's compare-and-set makes it exact: a batch that is read twice changes nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from loopline import facts, scoring
from loopline import policy as policies
from loopline.contracts import EventLog, Store
from loopline.facts import ExampleFact, OutcomeFact
from loopline.records import (
    Books,
    Cursor,
    Epoch,
    Event,
    Example,
    JoinDelta,
    ModelRecord,
    Moments,
    OutcomeState,
    OutcomeStatus,
    Prediction,
    Tally,
    Version,
)


def moments_of(values: Iterable[Any]) -> Moments:
    """The moments of the finite numbers among some values; true and false are no numbers here."""
    numbers = [v for v in values if type(v) in (float, int) and abs(v) <= sys.float_info.max]
    if not numbers:
        return Moments()
    count = len(numbers)
    mean = math.fsum(numbers) / count
    m2 = math.fsum([(number - mean) ** 2 for number in numbers])
    return Moments(count=count, mean=mean, m2=m2, minimum=min(numbers), maximum=max(numbers))


def forget(moments: Moments, value: float) -> Moments:
    """Take one number out of running moments again; minimum and maximum stay as they were."""
    count = moments.count - 1
    if count <= 0:
        return Moments()
    mean = (moments.mean * moments.count - value) / count
    m2 = max(0.0, moments.m2 - (value - mean) * (value - moments.mean))
    return Moments(count=count, mean=mean, m2=m2, minimum=moments.minimum, maximum=moments.maximum)


def merge(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two sets (Chan, Golub and LeVeque, 1979)."""
    if not a.count or not b.count:
        return a if a.count else b
    count = a.count + b.count
    delta = b.mean - a.mean
    return Moments(
        count=count,
        mean=a.mean + delta * b.count / count,
        m2=a.m2 + b.m2 + delta * delta * a.count * b.count / count,
        minimum=min(x for x in (a.minimum, b.minimum) if x is not None),
        maximum=max(x for x in (a.maximum, b.maximum) if x is not None),
    )


def summarise(moments: Mapping[str, Moments]) -> dict[str, dict[str, Any]]:
    """Describe columns by count, mean, sample standard deviation, minimum and maximum."""
    return {
        name: {
            "count": m.count,
            "mean": m.mean,
            "std": math.sqrt(m.m2 / (m.count - 1)) if m.count > 1 else None,
            "min": m.minimum,
            "max": m.maximum,
        }
        for name, m in moments.items()
        if m.count
    }


class Join:
    """The join of one model: a consumer of the log that writes the store's books.

    Args:
        model: the model's record; make a new `Join` when its schema or policy changed.
        log: where outcomes, examples and predictions are.
        store: where the books are.
        orphan_time: seconds an outcome waits for its prediction before it counts as unknown.
    """

    def __init__(
        self, model: ModelRecord, log: EventLog, store: Store, orphan_time: float = 604_800.0
    ) -> None:
        self.model = model
        self._log = log
        self._store = store
        self._orphan_time = orphan_time
        self.rule = policies.read(model.policy) if model.policy else None
        self._classes: dict[int, Version | None] = {}
        self._columns = [field["name"] for field in model.schema.get("fields", ())]
        topics = [facts.outcomes_topic(model.name), facts.examples_topic(model.name)]
        self._consumer = log.consumer(f"join:{model.name}", topics)
        self._rewind()

    def _rewind(self) -> None:
        # A model that was removed and added again begins anew, whatever its topics still hold.
        self._position = self._store.join_position(self.model.name)
        self._consumer.seek(self.model.created if self._position is None else self._position)

    def step(self, most: int = 1000) -> int:
        """Join the next batch, in one store transaction.

        Returns:
            How many events were joined; 0 when there was nothing to do.

        Raises:
            WrongState: another joiner has moved the position; nothing was applied.
        """
        batch = self._consumer.poll(most)
        if not batch.events:
            return 0
        topic = facts.outcomes_topic(self.model.name)
        told = [
            facts.read_outcome(event.value)
            if event.topic == topic
            else facts.read_example(event.value)
            for event in batch.events
        ]
        ids = [fact.id for fact in told if isinstance(fact, OutcomeFact)]
        work = self._work(ids, self._find(ids))
        for event, fact in zip(batch.events, told, strict=True):
            if isinstance(fact, OutcomeFact):
                work.receipts[event.key] = work.outcome(fact).value
            else:
                work.learn(fact, event.at)
                work.receipts[event.key] = facts.LEARNED
        self._commit(work, batch.position)
        return len(batch.events)

    def settle(self, now: float, most: int = 1000) -> int:
        """Look again at outcomes that wait: join those whose prediction came, give up on orphans.

        Returns:
            How many changed.
        """
        waiting = self._store.waiting_outcomes(self.model.name, most)
        if not waiting:
            return 0
        found = self._find([state.id for state in waiting])
        work = self._work([state.id for state in waiting], found)
        changed = 0
        for state in waiting:
            if state.id in found:
                fact = OutcomeFact(
                    id=state.id, value=state.value, at=state.at, arrival=state.arrival
                )
                work.join(found[state.id], fact, state.revision)
            elif now - state.arrival > self._orphan_time:
                work.give_up(state)
            else:
                continue
            changed += 1
        if changed:
            assert self._position is not None, "what waits was joined before"
            self._commit(work, self._position)
        return changed

    def expire(self, now: float, most: int = 1000) -> int:
        """Give predictions past the maturity window without an outcome their timeout label.

        The labels go through the log like any outcome, under a key made from the prediction's
        id, so that doing this twice is harmless.

        Returns:
            How many predictions were looked at.
        """
        policy = self.rule
        if policy is None or policy.timeout_label is None or policy.maturity is None:
            return 0
        name, maturity = self.model.name, policy.maturity
        reader = self._log.consumer(f"timeout:{name}", [facts.predictions_topic(name)])
        batch = reader.poll(most)
        due = [event for event in batch.events if event.at + maturity <= now]
        known = self._store.outcome_states(name, [event.key for event in due])
        missing = [event for event in due if event.key not in known]
        self._log.append(
            [_timeout(name, event, policy.timeout_label, maturity) for event in missing]
        )
        # A partly due batch is looked at again: only whole ones move the position.
        if due and len(due) == len(batch.events):
            reader.commit(batch)
        reader.close()
        return len(due)

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def _find(self, ids: Sequence[str]) -> dict[str, Prediction]:
        topic = facts.predictions_topic(self.model.name)
        found = self._log.find(topic, ids) if ids else {}
        return {key: facts.read_prediction(self.model.name, event) for key, event in found.items()}

    def _work(self, ids: Sequence[str], predictions: dict[str, Prediction]) -> _Work:
        name = self.model.name
        states = self._store.outcome_states(name, ids) if ids else {}
        joined = [state.id for state in states.values() if state.seq is not None]
        examples = self._store.examples_by_id(name, joined) if joined else {}
        versions = {p.version for p in predictions.values()}
        versions.update(e.version for e in examples.values() if e.version is not None)
        for number in versions - self._classes.keys():
            self._classes[number] = self._store.version(name, number)
        return _Work(
            model=self.model,
            columns=self._columns,
            policy=self.rule,
            versions=self._classes,
            books=self._store.books(name),
            predictions=predictions,
            states=dict(states),
            known=dict(examples),
        )

    def _commit(self, work: _Work, position: Cursor) -> None:
        name = self.model.name
        keys = sorted(work.sums)
        stored = {(t.version, t.cohort): t.sums for t in self._store.tallies(name, keys)}
        tallies = tuple(
            Tally(version=v, cohort=c, sums=scoring.add(stored.get((v, c), {}), work.sums[v, c]))
            for v, c in keys
        )
        try:
            self._store.commit_join(work.delta(self._position, position, tallies))
        except BaseException:
            self._rewind()
            raise
        self._position = position


def _timeout(model: str, event: Event, label: Any, maturity: float) -> Event:
    arrival = event.at + maturity
    fact = OutcomeFact(id=event.key, value=label, at=None, arrival=arrival, source=facts.TIMEOUT)
    return facts.outcome_event(model, fact, key=f"timeout:{event.key}")


class _Work(msgspec.Struct, kw_only=True):
    """One batch in the making: the rules, applied in memory to the books as they were read."""

    model: ModelRecord
    columns: Sequence[str]
    policy: policies.Every | None
    versions: Mapping[int, Version | None]
    books: Books
    predictions: Mapping[str, Prediction]
    states: dict[str, OutcomeState]
    known: dict[str, Example]
    seq: int = 0
    matched: int = 0
    moments: dict[str, Moments] = {}
    added: dict[int, Example] = {}
    relabelled: dict[int, Example] = {}
    touched: dict[str, OutcomeState] = {}
    upto: dict[int, int] = {}
    sums: dict[tuple[int, int], dict[str, float]] = {}
    receipts: dict[str, str] = {}

    def __post_init__(self) -> None:
        self.seq, self.matched = self.books.seq, self.books.matched
        self.moments = dict(self.books.moments)

    def outcome(self, fact: OutcomeFact) -> OutcomeStatus:
        """Apply one outcome by the rules and say what became of it."""
        revision = _revision(fact)
        known = self.states.get(fact.id)
        if known is not None and known.status is not OutcomeStatus.UNKNOWN:
            return self._again(known, fact, revision)
        prediction = self.predictions.get(fact.id)
        if prediction is None:
            return self._note(fact, revision, OutcomeStatus.WAITING)
        return self.join(prediction, fact, revision)

    def join(self, prediction: Prediction, fact: OutcomeFact, revision: float) -> OutcomeStatus:
        """Make the example of a prediction and its outcome."""
        moment = fact.arrival if fact.at is None else fact.at
        maturity = self.policy.maturity if self.policy else None
        late = maturity is not None and moment - prediction.at > maturity
        self.seq += 1
        example = Example(
            model=self.model.name,
            seq=self.seq,
            row=prediction.row,
            label=fact.value,
            at=moment,
            source=fact.source,
            matched=None if late else self._count(),
            id=prediction.id,
            version=prediction.version,
            output=prediction.output,
            probabilities=prediction.probabilities,
            predicted_at=prediction.at,
            late=late,
        )
        self.known[prediction.id] = example
        self._score(example, 1)
        self.added[self.seq] = example
        status = OutcomeStatus.LATE if late else OutcomeStatus.JOINED
        return self._note(fact, revision, status, example.seq)

    def learn(self, fact: ExampleFact, at: float) -> None:
        """Add a row handed to `learn`."""
        self.seq += 1
        name, row = self.model.name, fact.row
        self.added[self.seq] = Example(
            model=name, seq=self.seq, row=row, label=fact.label, at=at, source="learn"
        )

    def give_up(self, state: OutcomeState) -> None:
        """Count an outcome whose prediction never came as unknown."""
        self.touched[state.id] = msgspec.structs.replace(state, status=OutcomeStatus.UNKNOWN)

    def delta(
        self, expected: Cursor | None, position: Cursor, tallies: tuple[Tally, ...]
    ) -> JoinDelta:
        """Everything this batch changes."""
        every = self.policy.outcomes if self.policy else 0
        crossed = policies.due(self.policy, self.books.matched, self.matched) if self.policy else []
        reached = [(k, self.upto[k * every]) for k in crossed]
        return JoinDelta(
            model=self.model.name,
            expected=expected,
            position=position,
            books=Books(
                model=self.model.name,
                seq=self.seq,
                matched=self.matched,
                examples=self.seq,
                moments=self._measure(),
            ),
            outcomes=tuple(self.touched.values()),
            examples=tuple(self.added.values()),
            relabelled=tuple(self.relabelled.values()),
            tallies=tallies,
            epochs=tuple(
                Epoch(model=self.model.name, k=k, upto=seq, at=self.added[seq].at)
                for k, seq in reached
            ),
            receipts=self.receipts,
        )

    def _count(self) -> int:
        self.matched += 1
        self.upto[self.matched] = self.seq
        return self.matched

    def _again(self, known: OutcomeState, fact: OutcomeFact, revision: float) -> OutcomeStatus:
        if _same(known.value, fact.value) or revision <= known.revision:
            return OutcomeStatus.DUPLICATE
        if known.seq is None:
            self._note(fact, revision, OutcomeStatus.WAITING)
            return OutcomeStatus.CORRECTED
        old = self.known[fact.id]
        new = msgspec.structs.replace(old, label=fact.value, source=fact.source)
        self._score(old, -1)
        self._score(new, 1)
        self.known[fact.id] = new
        fresh = new.seq in self.added
        (self.added if fresh else self.relabelled)[new.seq] = new
        target = self.model.target
        if not fresh and target is not None:
            moments = self.moments.get(target, Moments())
            if moments_of([old.label]).count:
                moments = forget(moments, old.label)
            self.moments[target] = merge(moments, moments_of([new.label]))
        return self._note(fact, revision, OutcomeStatus.CORRECTED, new.seq)

    def _note(
        self, fact: OutcomeFact, revision: float, status: OutcomeStatus, seq: int | None = None
    ) -> OutcomeStatus:
        state = OutcomeState(
            model=self.model.name,
            id=fact.id,
            value=fact.value,
            revision=revision,
            at=fact.at,
            arrival=fact.arrival,
            status=status,
            seq=seq,
        )
        self.states[fact.id] = self.touched[fact.id] = state
        return status

    def _score(self, example: Example, sign: int) -> None:
        if example.version is None or example.predicted_at is None:
            return
        version = self.versions.get(example.version)
        part = scoring.contribution(
            self.model.task,
            example.output,
            example.probabilities,
            version.classes if version else None,
            example.label,
        )
        key = (example.version, scoring.cohort(example.predicted_at))
        scoring.accumulate(self.sums.setdefault(key, {}), part, sign)

    def _measure(self) -> dict[str, Moments]:
        """The moments of every column, with the rows that are new in this batch."""
        examples = self.added.values()
        columns = dict(zip(self.columns, zip_longest(*(e.row for e in examples)), strict=False))
        if self.model.target is not None:
            columns[self.model.target] = tuple(example.label for example in examples)
        fresh = {name: moments_of(values) for name, values in columns.items()}
        seen = {n: merge(self.moments.get(n, Moments()), m) for n, m in fresh.items() if m.count}
        return {**self.moments, **seen}


def _revision(fact: OutcomeFact) -> float:
    """A timeout label is revision 0, so that any real outcome corrects it."""
    if fact.source == facts.TIMEOUT:
        return 0.0
    return fact.arrival if fact.at is None else fact.at


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
