"""The contract suite of a store: subclass `StoreSuite` and override its `store` fixture."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from loopline.contracts import Store
from loopline.errors import InvalidInput, UnknownModel, UnknownVersion, WrongState
from loopline.records import (
    Aliases,
    Artifact,
    Books,
    Cursor,
    Dataset,
    Epoch,
    Example,
    JobState,
    JoinDelta,
    Moments,
    OutcomeState,
    OutcomeStatus,
    Tally,
    Token,
    WorkerRecord,
)
from loopline.testing.store_jobs import (
    Clock,
    JobSuite,
    a_decision,
    a_job,
    a_model,
    a_version,
    claimed,
)

__all__ = ["Clock", "StoreSuite", "a_batch", "an_example", "an_outcome"]


def an_example(seq: int, **fields: Any) -> Example:
    """Make a joined example."""
    fields.setdefault("row", (seq, 0.5, "a", True, None))
    fields.setdefault("id", f"p{seq}")
    fields.setdefault("label", seq % 2)
    return Example(model=fields.pop("model", "toy"), seq=seq, at=float(seq), **fields)


def an_outcome(id: str, **fields: Any) -> OutcomeState:
    """Make an outcome's state."""
    fields.setdefault("status", OutcomeStatus.JOINED)
    fields.setdefault("arrival", 2.0)
    fields.setdefault("value", 1.5)
    return OutcomeState(
        model=fields.pop("model", "toy"), id=id, revision=1.0, at=fields.pop("at", None), **fields
    )


def a_batch(expected: str | None, position: str, **fields: Any) -> JoinDelta:
    """Make a batch of the join that moves from one position to another."""
    model = fields.pop("model", "toy")
    fields.setdefault("books", Books(model=model))
    return JoinDelta(
        model=model,
        expected=None if expected is None else Cursor(token=expected),
        position=Cursor(token=position),
        **fields,
    )


class StoreSuite(JobSuite):
    """What holds for every `contracts.Store`.

    A subclass overrides the fixture `store` with one that yields an empty store which takes its
    time from the fixture `clock`, and closes it afterwards.
    """

    def test_models(self, store: Store, clock: Clock) -> None:
        """A model comes back as it was put, with its creation time and a growing revision."""
        assert (store.model("toy"), store.models(), store.revision()) == (None, [], 0)
        recipe = Artifact(digest="ab", format="skops/1", size=5, signature="sig")
        given = a_model(
            recipe=recipe, policy={"every": 10}, options={"deep": [1, {"x": None}]}, target="y"
        )
        first = store.put_model(given)
        assert first.created == clock() and first.revision > 0
        assert (first.recipe, first.policy, first.options) == (recipe, given.policy, given.options)
        clock.forward(5)
        second = store.put_model(a_model(description="new"))
        assert second.created == first.created and second.revision > first.revision
        assert store.model("toy") == second
        store.put_model(a_model("a_b"))
        store.put_model(a_model("ab"))
        assert [model.name for model in store.models()] == ["a_b", "ab", "toy"]

    def test_records_do_not_change_behind_the_store(self, store: Store) -> None:
        """What a caller does to its own mapping afterwards does not reach the store."""
        options = {"a": [1]}
        store.put_model(a_model(options=options))
        options["a"].append(2)
        found = store.model("toy")
        assert found is not None and found.options == {"a": [1]}
        found.options["a"].append(3)
        again = store.model("toy")
        assert again is not None and again.options == {"a": [1]}

    def test_unkeepable_values_are_refused(self, store: Store) -> None:
        """A value without a plain form is refused as invalid, and nothing is kept."""
        with pytest.raises(InvalidInput):
            store.put_model(a_model(options={"a": object()}))
        assert (store.model("toy"), store.revision()) == (None, 0)

    def test_versions(self, store: Store, clock: Clock) -> None:
        """Versions are numbered from 1 per model and come back whole."""
        store.put_model(a_model())
        store.put_model(a_model("other"))
        given = a_version(
            metrics={"r2": 0.25, "undefined": math.nan, "worst": -math.inf},
            parameters={"alpha": 0.1, "shape": [1, 2]},
            classes=("a", 1, True, None),
            cursor=Cursor(token="c"),
            rows=7,
            upto=6,
            report="d",
        )
        first = store.add_version(given)
        assert (first.number, first.created) == (1, clock())
        assert math.isnan(first.metrics["undefined"]) and first.metrics["worst"] == -math.inf
        assert (first.parameters, first.classes) == (given.parameters, given.classes)
        assert (first.artifact, first.cursor) == (given.artifact, given.cursor)
        second = store.add_version(a_version())
        assert store.add_version(a_version("other")).number == 1
        assert [version.number for version in store.versions("toy")] == [1, 2]
        assert store.version("toy", 2) == second
        assert (store.version("toy", 3), store.versions("none")) == (None, [])
        with pytest.raises(UnknownModel):
            store.add_version(a_version("none"))

    def test_add_version_as_champion(self, store: Store) -> None:
        """A version may be crowned as it is added; the former champion becomes previous."""
        store.put_model(a_model())
        assert store.aliases("toy") == Aliases()
        store.add_version(a_version(), champion=True)
        assert store.aliases("toy") == Aliases(champion=1, epoch=1)
        store.add_version(a_version())
        store.add_version(a_version(), champion=True)
        assert store.aliases("toy") == Aliases(champion=3, previous=1, epoch=2)

    def test_revision_follows_models_versions_and_aliases(self, store: Store) -> None:
        """Every change that a replica has to follow moves the revision, and no other does."""
        seen = [store.revision()]
        for change in (
            lambda: store.put_model(a_model()),
            lambda: store.add_version(a_version()),
            lambda: store.point("toy", Aliases(champion=1), 0),
            lambda: store.drop_model("toy"),
        ):
            change()
            seen.append(store.revision())
        assert seen == sorted(set(seen))
        store.submit(a_job())
        store.commit_join(a_batch(None, "1"))
        assert store.revision() == seen[-1]

    def test_point(self, store: Store) -> None:
        """Aliases move by compare-and-set, together with the decision that moved them."""
        store.put_model(a_model())
        for _ in range(3):
            store.add_version(a_version())
        first = store.point("toy", Aliases(champion=1, challenger=2, epoch=99), 0)
        assert first == store.aliases("toy") == Aliases(champion=1, challenger=2, epoch=1)
        decision = a_decision(candidate=3, promoted=True, by="person")
        moved = store.point("toy", Aliases(champion=3, previous=1), 1, decision)
        assert moved == Aliases(champion=3, previous=1, epoch=2)
        (kept,) = store.decisions("toy")
        assert (kept.number, kept.by, kept.promoted) == (1, "person", True)

    def test_point_refuses(self, store: Store) -> None:
        """An old epoch and a missing version are refused, and nothing is written."""
        store.put_model(a_model())
        store.add_version(a_version(), champion=True)
        before = (store.aliases("toy"), store.revision())
        for epoch in (0, 2):
            with pytest.raises(WrongState):
                store.point("toy", Aliases(champion=1), epoch, a_decision())
        for wrong in (
            Aliases(champion=2),
            Aliases(challenger=9),
            Aliases(champion=1, previous=4),
            Aliases(champion=0),
        ):
            with pytest.raises(UnknownVersion):
                store.point("toy", wrong, 1, a_decision())
        assert (store.aliases("toy"), store.revision()) == before
        assert store.decisions("toy") == []

    def test_decisions(self, store: Store, clock: Clock) -> None:
        """Decisions are numbered per model, newest last, with their evidence."""
        store.put_model(a_model())
        evidence = {"pairs": 40, "interval": [-0.1, 0.2], "nan": None}
        first = store.add_decision(a_decision(evidence=evidence, candidate=1, champion=None))
        assert (first.number, first.at, first.evidence) == (1, clock(), evidence)
        second = store.add_decision(a_decision(verdict="keep", job="j"))
        assert store.decisions("toy") == [first, second]
        assert second.number == 2

    def test_datasets(self, store: Store) -> None:
        """A data set is kept once; adding its digest again changes nothing."""
        first = Dataset(digest="d", columns=("b", "a"), rows=3, size=9, created=1.0, name="ads")
        store.add_dataset(first)
        store.add_dataset(Dataset(digest="d", columns=("x",), rows=1, size=1, created=2.0))
        assert store.dataset("d") == first
        assert store.dataset("none") is None

    def test_drop_model(self, store: Store) -> None:
        """Dropping a model takes everything of it but the history of its jobs."""
        for name in ("toy", "other"):
            store.put_model(a_model(name))
            store.add_version(a_version(name), champion=True)
            store.add_decision(a_decision(name))
            epoch = Epoch(model=name, k=1, upto=1, at=1.0)
            batch = {
                "examples": (an_example(1, model=name),),
                "outcomes": (an_outcome("p1", model=name),),
                "tallies": (Tally(version=1, cohort=0, sums={"n": 1.0}),),
                "epochs": (epoch,),
                "books": Books(model=name, seq=1),
            }
            store.commit_join(a_batch(None, "1", model=name, **batch))
        running = store.submit(a_job("train", "toy", priority=1)).id
        queued = store.submit(a_job("train", "toy")).id
        spared = store.submit(a_job("train", "other")).id
        assert claimed(store).id == running
        assert store.drop_model("toy") is True
        assert store.drop_model("toy") is False
        assert _all_of(store, "toy") == _all_of(store, "never")
        states = {job.id: (job.state, job.cancel_requested) for job in store.jobs()}
        assert states == {
            running: (JobState.RUNNING, True),
            queued: (JobState.CANCELLED, False),
            spared: (JobState.QUEUED, False),
        }
        assert len(store.versions("other")) == len(list(store.examples("other"))) == 1
        with pytest.raises(UnknownModel):
            store.finish(running, 1, JobState.DONE, effects=_effects("toy"))
        store.put_model(a_model())
        assert store.versions("toy") == []

    def test_join_position_is_compared_and_set(self, store: Store) -> None:
        """A batch applies only at the position it was computed from; None is the beginning."""
        assert store.join_position("toy") is None
        with pytest.raises(WrongState):
            store.commit_join(a_batch("0", "1", examples=(an_example(1),)))
        store.commit_join(a_batch(None, "1"))
        for stale in (None, "0", "2"):
            with pytest.raises(WrongState):
                store.commit_join(a_batch(stale, "9", receipts={"k": "joined"}))
        store.commit_join(a_batch("1", "2"))
        assert store.join_position("toy") == Cursor(token="2")
        assert store.join_position("other") is None
        assert (store.receipts(["k"]), list(store.examples("toy"))) == ({}, [])

    def test_join_from_two_threads(self, store: Store) -> None:
        """Of two batches from the same position exactly one is applied."""
        for turn in range(5):
            start = threading.Barrier(2)
            won: list[int] = []

            def work(
                who: int,
                turn: int = turn,
                start: threading.Barrier = start,
                won: list[int] = won,
            ) -> None:
                example = an_example(turn + 1, id=f"{turn}-{who}")
                expected = None if turn == 0 else str(turn - 1)
                start.wait()
                try:
                    store.commit_join(a_batch(expected, str(turn), examples=(example,)))
                except WrongState:
                    return
                won.append(who)

            threads = [threading.Thread(target=work, args=(who,)) for who in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert store.examples_by_id("toy", [f"{turn}-{won[0]}"])[f"{turn}-{won[0]}"]
        assert [example.seq for example in store.examples("toy")] == [1, 2, 3, 4, 5]

    def test_books(self, store: Store) -> None:
        """Counters and moments come back as the latest batch wrote them."""
        assert store.books("toy") == Books(model="toy")
        moments = {"TV": Moments(count=3, mean=1.5, m2=0.5, minimum=1.0, maximum=math.inf)}
        books = Books(model="toy", seq=3, matched=2, examples=3, moments=moments)
        store.commit_join(a_batch(None, "1", books=books))
        assert store.books("toy") == books
        later = Books(model="toy", seq=4, matched=3, examples=4)
        store.commit_join(a_batch("1", "2", books=later))
        assert store.books("toy") == later

    def test_outcomes(self, store: Store) -> None:
        """The latest revision of each outcome is kept, with any plain value."""
        values: list[Any] = [1.5, 0, False, None, "ü", [1, 2], {"a": 1}]
        states = [an_outcome(f"p{n}", value=value, at=3.0) for n, value in enumerate(values)]
        store.commit_join(a_batch(None, "1", outcomes=tuple(states)))
        found = store.outcome_states("toy", [state.id for state in states] + ["none"])
        assert found == {state.id: state for state in states}
        assert [type(found[state.id].value) for state in states] == [type(v) for v in values]
        corrected = an_outcome("p0", value=2.5, status=OutcomeStatus.CORRECTED, seq=8)
        store.commit_join(a_batch("1", "2", outcomes=(corrected,)))
        assert store.outcome_states("toy", ["p0"]) == {"p0": corrected}
        assert store.outcome_states("other", ["p0"]) == {}

    def test_waiting_outcomes(self, store: Store) -> None:
        """Outcomes without a prediction are listed by arrival, until they are joined."""
        arrivals = {"a": 3.0, "b": 1.0, "c": 2.0}
        waiting = {
            id: an_outcome(id, status=OutcomeStatus.WAITING, arrival=at)
            for id, at in arrivals.items()
        }
        store.commit_join(a_batch(None, "1", outcomes=(*waiting.values(), an_outcome("d"))))
        assert store.waiting_outcomes("toy") == [waiting["b"], waiting["c"], waiting["a"]]
        assert store.waiting_outcomes("toy", most=1) == [waiting["b"]]
        store.commit_join(a_batch("1", "2", outcomes=(an_outcome("b"),)))
        assert [state.id for state in store.waiting_outcomes("toy")] == ["c", "a"]

    def test_tallies(self, store: Store) -> None:
        """Score sums are replaced by key, and can be asked for by key."""
        first = tuple(
            Tally(version=v, cohort=c, sums={"n": float(v * c)}) for v in (1, 2) for c in (7, 8, 9)
        )
        store.commit_join(a_batch(None, "1", tallies=first))
        changed = Tally(version=1, cohort=8, sums={"n": 5.0, "correct": 2.0})
        store.commit_join(a_batch("1", "2", tallies=(changed,)))
        assert store.tallies("toy") == [first[0], changed, *first[2:]]
        assert store.tallies("toy", [(2, 9), (1, 8), (3, 3)]) == [changed, first[5]]
        assert store.tallies("toy", []) == store.tallies("other") == []

    def test_examples(self, store: Store) -> None:
        """Examples are read by number, in pieces, with every kind of value unchanged."""
        odd = an_example(
            701,
            row=(1, 1.0, True, False, None, "", "ü", -0.0, 2**53),
            label=None,
            output="b",
            probabilities=(0.25, 0.75),
            predicted_at=0.5,
            version=3,
            matched=4,
            source="timeout",
            late=True,
        )
        learned = an_example(702, id=None, row=({"any": [1, None]},), label="a", source="learn")
        plain = tuple(an_example(seq) for seq in range(1, 701))
        store.commit_join(a_batch(None, "1", examples=(*plain, odd, learned)))
        everything = list(store.examples("toy"))
        assert everything == [*plain, odd, learned]
        assert [type(value) for value in everything[700].row] == [type(v) for v in odd.row]
        assert [e.seq for e in store.examples("toy", after=698, upto=700)] == [699, 700]
        assert [e.seq for e in store.examples("toy", after=10, most=3)] == [11, 12, 13]
        assert len(list(store.examples("toy", most=600))) == 600
        assert list(store.examples("toy", most=0)) == list(store.examples("other")) == []
        ids = [f"p{seq}" for seq in range(1, 702)]
        assert len(store.examples_by_id("toy", [*ids, "none"])) == 701
        assert store.examples_by_id("toy", ["p701"]) == {"p701": odd}

    def test_relabelled(self, store: Store) -> None:
        """A corrected outcome replaces its example; one that is gone stays gone."""
        store.commit_join(a_batch(None, "1", examples=(an_example(1), an_example(2))))
        corrected = an_example(2, label=9)
        store.commit_join(a_batch("1", "2", relabelled=(corrected, an_example(5))))
        assert list(store.examples("toy")) == [an_example(1), corrected]
        assert store.examples_by_id("toy", ["p2"]) == {"p2": corrected}

    def test_epochs_are_kept_once(self, store: Store) -> None:
        """An epoch that exists already is left as it is."""
        first = Epoch(model="toy", k=1, upto=100, at=1.0)
        store.commit_join(a_batch(None, "1", epochs=(first,)))
        again = Epoch(model="toy", k=1, upto=999, at=2.0)
        third = Epoch(model="toy", k=3, upto=300, at=3.0)
        second = Epoch(model="toy", k=2, upto=200, at=2.0)
        store.commit_join(a_batch("1", "2", epochs=(third, again, second)))
        assert store.epochs("toy") == [first, second, third]
        assert store.epochs("other") == []

    def test_receipts(self, store: Store, clock: Clock) -> None:
        """Receipts are found by event key until they are trimmed."""
        many = {f"k{number}": "joined" for number in range(600)}
        store.commit_join(a_batch(None, "1", receipts={**many, "k0": "waiting"}))
        clock.forward(10)
        store.commit_join(a_batch("1", "2", receipts={"k0": "joined", "new": "learned"}))
        found = store.receipts([*many, "new", "none"])
        assert found == {**many, "new": "learned"}
        assert store.trim_receipts(clock()) == 599
        assert store.receipts([*many, "new"]) == {"k0": "joined", "new": "learned"}

    def test_trim_examples(self, store: Store) -> None:
        """Retention takes the oldest examples first, at most so many at a time."""
        store.commit_join(a_batch(None, "1", examples=tuple(map(an_example, range(1, 8)))))
        assert store.trim_examples("toy", before_seq=6, most=3) == 3
        assert [example.seq for example in store.examples("toy")] == [4, 5, 6, 7]
        assert store.trim_examples("toy", before_seq=6) == 2
        assert store.trim_examples("toy", before_seq=6) == 0
        assert [example.seq for example in store.examples("toy")] == [6, 7]

    def test_erase_ids(self, store: Store) -> None:
        """A person's outcomes and examples can be deleted by prediction id."""
        examples = tuple(map(an_example, range(1, 4)))
        outcomes = (an_outcome("p1"), an_outcome("p2"), an_outcome("lone"))
        store.commit_join(a_batch(None, "1", examples=examples, outcomes=outcomes))
        assert store.erase_ids("toy", ["p1", "lone", "none"]) == 3
        assert store.erase_ids("other", ["p2"]) == store.erase_ids("toy", []) == 0
        assert [example.seq for example in store.examples("toy")] == [2, 3]
        assert set(store.outcome_states("toy", ["p1", "p2", "lone"])) == {"p2"}

    def test_join_is_all_or_nothing(self, store: Store) -> None:
        """A batch with one part that cannot be kept leaves nothing behind."""
        bad = an_example(2, label=object())
        with pytest.raises(InvalidInput):
            store.commit_join(
                a_batch(None, "1", examples=(an_example(1), bad), receipts={"k": "joined"})
            )
        assert _all_of(store, "toy") == _all_of(store, "never")
        assert store.receipts(["k"]) == {}

    def test_workers(self, store: Store, clock: Clock) -> None:
        """A worker is seen when the store says so, and forgotten by time."""
        store.put_worker(WorkerRecord(id="b", host="h", pid=1, tags=("gpu",), seen=5.0))
        clock.forward(10)
        store.put_worker(WorkerRecord(id="a", host="h", pid=2, started=3.0, job="j"))
        first, second = store.workers()
        assert (first.id, first.seen, first.started, first.job) == ("a", clock(), 3.0, "j")
        assert (second.id, second.seen, second.tags) == ("b", clock() - 10, ("gpu",))
        assert store.workers(since=clock()) == [first]
        store.put_worker(WorkerRecord(id="b", host="h", pid=9))
        assert [worker.pid for worker in store.workers(since=clock())] == [2, 9]

    def test_tokens(self, store: Store) -> None:
        """A token is replaced by name."""
        first = Token(name="ci", hash="h", scopes=("predict", "learn"), created=1.0)
        store.put_token(first)
        store.put_token(Token(name="a", hash="i", scopes=(), created=2.0))
        assert [token.name for token in store.tokens()] == ["a", "ci"]
        revoked = Token(name="ci", hash="h", scopes=("predict",), created=1.0, revoked=True)
        store.put_token(revoked)
        assert store.tokens()[1] == revoked

    def test_now_is_the_stores_clock(self, store: Store, clock: Clock) -> None:
        """The store tells the time that it writes down."""
        before = store.now()
        clock.forward(5)
        assert store.now() - before >= 5.0


def _effects(model: str) -> Any:
    from loopline.records import Effects

    return Effects(version=a_version(model))


def _all_of(store: Store, model: str) -> tuple[Any, ...]:
    """Everything the store holds under a model's name, jobs aside."""
    return (
        store.model(model),
        store.versions(model),
        store.aliases(model),
        store.decisions(model),
        store.join_position(model),
        store.books(model).seq,
        store.outcome_states(model, ["p1", "p2", "lone"]),
        list(store.examples(model)),
        store.tallies(model),
        store.epochs(model),
    )
