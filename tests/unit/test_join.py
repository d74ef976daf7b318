"""The join's rules, row by row, and the exactness of its counters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.backends.memory import MemoryLog
from loopline.backends.memory_store import MemoryStore
from loopline.errors import WrongState
from loopline.facts import (
    ExampleFact,
    OutcomeFact,
    example_event,
    outcome_event,
    outcomes_topic,
    prediction_events,
)
from loopline.join import Join, forget, merge, moments_of, summarise
from loopline.policy import Every, write
from loopline.records import (
    Artifact,
    ModelRecord,
    Moments,
    OutcomeStatus,
    Prediction,
    Version,
    new_id,
)

NOW = 1_700_000_000.0
FIELDS = {"fields": [{"name": "TV", "kind": "number"}, {"name": "where", "kind": "text"}]}


class Bench:
    """One model, a log and a store in memory, and the join between them."""

    def __init__(self, **policy: Any) -> None:
        self.log = MemoryLog()
        self.store = MemoryStore(clock=lambda: NOW - 1000)
        rule = write(Every(**policy)) if policy else None
        record = ModelRecord(
            name="m", schema=FIELDS, capabilities=("predict",), target="y", policy=rule
        )
        self.model = self.store.put_model(record)
        artifact = Artifact(digest="0" * 64, format="linear/1", size=1, signature="s")
        self.store.add_version(
            Version(model="m", number=0, artifact=artifact, created=NOW), champion=True
        )
        self.join = Join(self.model, self.log, self.store, orphan_time=100.0)

    def predict(self, id: str, output: float = 1.0, at: float = NOW) -> None:
        """Log a prediction."""
        made = Prediction(id=id, model="m", version=1, output=output, at=at, row=(50.0, "x"))
        self.log.offer(prediction_events(made.model, [made]))

    def tell(self, id: str, value: Any, at: float | None = None, arrival: float = NOW + 1) -> str:
        """Append an outcome, join, and return what became of it."""
        key = new_id()
        fact = OutcomeFact(id=id, value=value, at=at, arrival=arrival)
        self.log.append([outcome_event("m", fact, key)])
        self.drain()
        return self.store.receipts([key])[key]

    def drain(self) -> None:
        """Join until nothing is left."""
        while self.join.step():
            pass


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A model without a policy."""
    yield Bench()


def test_an_outcome_meets_its_prediction(bench: Bench) -> None:
    """The example holds the row as it was served, the answer given then, and the truth."""
    bench.predict("a", output=2.0)
    assert bench.tell("a", 3.0, at=NOW + 5) == OutcomeStatus.JOINED
    (example,) = bench.store.examples("m")
    assert (example.seq, example.matched, example.row) == (1, 1, (50.0, "x"))
    assert (example.output, example.label, example.version) == (2.0, 3.0, 1)
    assert (example.at, example.predicted_at) == (NOW + 5, NOW)
    (tally,) = bench.store.tallies("m")
    assert tally.sums["n"] == 1 and tally.sums["squared"] == 1.0


def test_an_early_outcome_waits_for_its_prediction(bench: Bench) -> None:
    """Outcome first, prediction later: joined as soon as the prediction is there, once."""
    assert bench.tell("a", 3.0) == OutcomeStatus.WAITING
    assert bench.join.settle(NOW + 2) == 0
    bench.predict("a")
    assert bench.join.settle(NOW + 2) == 1
    assert bench.join.settle(NOW + 2) == 0
    assert bench.store.outcome_states("m", ["a"])["a"].status is OutcomeStatus.JOINED
    assert bench.store.books("m").matched == 1


def test_an_orphan_becomes_unknown_and_still_joins_if_the_prediction_comes(bench: Bench) -> None:
    """After the orphan time it is unknown; a later outcome for a late prediction still counts."""
    bench.tell("ghost", 1.0, arrival=NOW)
    assert bench.join.settle(NOW + 101) == 1
    assert bench.store.outcome_states("m", ["ghost"])["ghost"].status is OutcomeStatus.UNKNOWN
    assert bench.store.books("m").matched == 0
    bench.predict("ghost")
    assert bench.tell("ghost", 1.0, arrival=NOW + 200) == OutcomeStatus.JOINED


def test_the_same_outcome_again_is_a_duplicate(bench: Bench) -> None:
    """The same value changes nothing, whatever its time; an older revision is ignored too."""
    bench.predict("a")
    assert bench.tell("a", 3.0, at=NOW + 5) == OutcomeStatus.JOINED
    assert bench.tell("a", 3.0, at=NOW + 5) == OutcomeStatus.DUPLICATE
    assert bench.tell("a", 3.0, at=NOW + 9) == OutcomeStatus.DUPLICATE
    assert bench.tell("a", 7.0, at=NOW + 4) == OutcomeStatus.DUPLICATE
    assert [e.label for e in bench.store.examples("m")] == [3.0]
    assert bench.store.books("m").matched == 1


def test_a_correction_relabels_and_does_not_count_again(bench: Bench) -> None:
    """A later revision replaces the label, the score and the moments; the counter stays."""
    bench.predict("a", output=1.0)
    bench.predict("b", output=1.0)
    bench.tell("a", 3.0, at=NOW + 5)
    bench.tell("b", 1.0, at=NOW + 5)
    assert bench.tell("a", 5.0, at=NOW + 6) == OutcomeStatus.CORRECTED
    assert [(e.seq, e.label) for e in bench.store.examples("m")] == [(1, 5.0), (2, 1.0)]
    books = bench.store.books("m")
    assert (books.matched, books.seq) == (2, 2)
    assert books.moments["y"].mean == pytest.approx(3.0)
    assert sum(t.sums["squared"] for t in bench.store.tallies("m")) == pytest.approx(16.0)
    assert sum(t.sums["n"] for t in bench.store.tallies("m")) == 2


def test_a_correction_of_a_waiting_outcome_is_what_joins(bench: Bench) -> None:
    """The newest value that waits is the one the prediction meets."""
    bench.tell("a", 3.0, at=NOW + 1)
    assert bench.tell("a", 4.0, at=NOW + 2) == OutcomeStatus.CORRECTED
    bench.predict("a")
    bench.join.settle(NOW + 3)
    assert [e.label for e in bench.store.examples("m")] == [4.0]


def test_a_late_outcome_is_scored_but_does_not_count() -> None:
    """Past the maturity window it joins for evaluation only."""
    bench = Bench(outcomes=1, maturity=60.0)
    bench.predict("a", at=NOW)
    assert bench.tell("a", 3.0, at=NOW + 61) == OutcomeStatus.LATE
    (example,) = bench.store.examples("m")
    assert example.late and example.matched is None
    assert bench.store.books("m").matched == 0
    assert bench.store.epochs("m") == []


def test_no_outcome_by_the_end_of_the_window_means_the_timeout_label() -> None:
    """The label is given once; the real outcome later is a correction."""
    bench = Bench(outcomes=10, maturity=60.0, timeout_label=0.0)
    bench.predict("a", at=NOW)
    bench.predict("b", at=NOW + 30)
    bench.tell("b", 1.0, at=NOW + 31)
    assert bench.join.expire(NOW + 59) == 0
    assert bench.join.expire(NOW + 61) == 1
    bench.join.expire(NOW + 120)
    bench.join.expire(NOW + 120)
    bench.drain()
    labels = {e.id: (e.label, e.source) for e in bench.store.examples("m")}
    assert labels == {"a": (0.0, "timeout"), "b": (1.0, "outcome")}
    assert bench.tell("a", 1.0, at=NOW + 200) == OutcomeStatus.CORRECTED
    assert bench.store.books("m").matched == 2


def test_learned_rows_join_the_data_set_without_counting(bench: Bench) -> None:
    """Rows handed to `learn` become examples and moments, not matched outcomes."""
    events = [example_event("m", (float(n), "x"), n * 2.0, NOW, new_id()) for n in range(3)]
    bench.log.append(events)
    bench.drain()
    books = bench.store.books("m")
    assert (books.examples, books.matched) == (3, 0)
    assert books.moments["TV"].mean == pytest.approx(1.0)
    assert books.moments["y"].maximum == 4.0
    assert [e.source for e in bench.store.examples("m")] == ["learn"] * 3


def test_a_model_added_again_does_not_inherit_what_its_topics_hold(bench: Bench) -> None:
    """After a removal the join begins with what comes after the model's new beginning."""
    bench.predict("a", at=NOW - 2000)
    fact = OutcomeFact(id="a", value=1.0, at=None, arrival=NOW - 2000)
    bench.log.append([outcome_event("m", fact)])
    again = Join(bench.model, bench.log, bench.store)
    assert again.step() == 0
    bench.join = again
    assert bench.tell("a", 2.0) == OutcomeStatus.JOINED


def test_a_second_joiner_takes_over_and_the_first_is_refused(bench: Bench) -> None:
    """Two joins never apply the same outcome twice."""
    bench.predict("a")
    other = Join(bench.model, bench.log, bench.store)
    fact = OutcomeFact(id="a", value=1.0, at=None, arrival=NOW)
    bench.log.append([outcome_event("m", fact)])
    assert other.step() == 1
    with pytest.raises(WrongState):
        while True:
            assert bench.join.step() > 0
    assert bench.store.books("m").matched == 1


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 60),
    every=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 17), min_size=1, max_size=8),
    restart=st.sets(st.integers(0, 20)),
)
def test_every_n_outcomes_is_exact_however_they_are_batched(
    count: int, every: int, cuts: list[int], restart: set[int]
) -> None:
    """n joined outcomes give exactly floor(n / N) epochs, each ending at its own example."""
    bench = Bench(outcomes=every)
    for n in range(count):
        bench.predict(f"p{n}")
        fact = OutcomeFact(id=f"p{n}", value=float(n), at=None, arrival=NOW + n)
        bench.log.append([outcome_event("m", fact)])
        bench.log.append([outcome_event("m", fact)])
    step = 0
    while bench.join.step(cuts[step % len(cuts)]):
        step += 1
        if step in restart:
            bench.join = Join(bench.model, bench.log, bench.store)
    epochs = bench.store.epochs("m")
    assert [epoch.k for epoch in epochs] == list(range(1, count // every + 1))
    by_seq = {e.seq: e.matched for e in bench.store.examples("m")}
    assert [by_seq[epoch.upto] for epoch in epochs] == [epoch.k * every for epoch in epochs]
    assert sorted(by_seq) == list(range(1, count + 1))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 30))
def test_moments_agree_with_numpy(values: list[float], cut: int) -> None:
    """Merging one by one or in parts, and forgetting, give what numpy computes at once."""
    left = Moments()
    for value in values[:cut]:
        left = merge(left, moments_of([value]))
    whole = merge(left, moments_of([None, True, *values[cut:], "text", math.nan, math.inf]))
    shown = summarise({"x": whole})["x"]
    assert shown["count"] == len(values)
    assert shown["mean"] == pytest.approx(float(numpy.mean(values)), abs=1e-6)
    assert (shown["min"], shown["max"]) == (min(values), max(values))
    if len(values) > 1:
        assert shown["std"] == pytest.approx(float(numpy.std(values, ddof=1)), abs=1e-3)
    extra = merge(whole, moments_of([7.5]))
    assert forget(extra, 7.5).mean == pytest.approx(whole.mean, abs=1e-6)
    assert math.isclose(forget(extra, 7.5).m2, whole.m2, abs_tol=1e-1, rel_tol=1e-6)


def test_facts_survive_the_log(bench: Bench) -> None:
    """What was written as an event is read back the same."""
    fact = OutcomeFact(id="ä", value="ja", at=None, arrival=NOW)
    event = outcome_event("m", fact)
    assert event.topic == outcomes_topic("m")
    assert ExampleFact(row=(1.0, None), label=2).row == (1.0, None)
