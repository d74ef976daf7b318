"""The job half of the store's contract suite, with the clock and the fixtures that both halves use.

`StoreSuite` in `loopline.testing.store` inherits these tests; subclass that one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loopline.contracts import Store
from loopline.errors import StaleAttempt, UnknownJob, UnknownModel, UnknownVersion, WrongState
from loopline.records import (
    Aliases,
    Artifact,
    Cursor,
    Decision,
    Effects,
    Epoch,
    Job,
    JobState,
    JoinDelta,
    ModelRecord,
    Version,
    new_id,
)


class Clock:
    """A clock that stands still until it is told to move on; call it for the time."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self.time = start

    def __call__(self) -> float:
        return self.time

    def forward(self, seconds: float) -> None:
        """Move on by some seconds."""
        self.time += seconds


def a_job(kind: str = "script", model: str | None = None, **fields: Any) -> Job:
    """Make a job with an id of its own."""
    fields.setdefault("payload", {"n": 1})
    return Job(id=fields.pop("id", None) or new_id(), kind=kind, model=model, **fields)


def a_model(name: str = "toy", **fields: Any) -> ModelRecord:
    """Make a model's record."""
    return ModelRecord(name=name, schema={"fields": []}, capabilities=("predict", "fit"), **fields)


def an_artifact() -> Artifact:
    """Make a pointer to bytes that nobody will read."""
    return Artifact(digest="0" * 64, format="linear/1", size=3, signature="s")


def a_version(model: str = "toy", **fields: Any) -> Version:
    """Make a version that the store has still to number."""
    return Version(model=model, number=0, artifact=an_artifact(), created=0.0, **fields)


def a_decision(model: str = "toy", **fields: Any) -> Decision:
    """Make a decision that the store has still to number."""
    fields.setdefault("verdict", "promote")
    return Decision(model=model, reason="better", at=0.0, **fields)


def with_epochs(store: Store, *uptos: int, first: int = 1, model: str = "toy") -> None:
    """Commit a batch of the join that does nothing but add waiting epochs."""
    position = store.join_position(model)
    epochs = tuple(
        Epoch(model=model, k=first + step, upto=upto, at=1.0) for step, upto in enumerate(uptos)
    )
    moved = Cursor(token=new_id())
    books = store.books(model)
    store.commit_join(
        JoinDelta(model=model, expected=position, position=moved, books=books, epochs=epochs)
    )


def claimed(store: Store, worker: str = "w", lease: float = 60.0, **fields: Any) -> Job:
    """Claim a job that must be there."""
    job = store.claim(worker, lease, **fields)
    assert job is not None
    return job


def kinds(store: Store, job: str) -> list[str]:
    """The kinds of a job's events, in order."""
    return [event.kind for event in store.job_events(job=job)]


class JobSuite:
    """What holds for the jobs of every store."""

    @pytest.fixture
    def clock(self) -> Clock:
        """The clock the store under test must use.

        A store whose clock cannot be replaced may override this with one that really waits.
        """
        return Clock()

    @pytest.fixture
    def store(self, clock: Clock) -> Iterator[Store]:
        """An empty store that reads `clock`; to be overridden."""
        raise NotImplementedError

    def test_submit_fills_in_what_is_the_stores(self, store: Store, clock: Clock) -> None:
        """A job begins queued, with the store's time, whatever the caller claims of it."""
        given = a_job(
            model="toy",
            payload={"a": [1, 2.5, None, "ü"], "b": {"c": True}},
            state=JobState.DONE,
            attempt=7,
            created=5.0,
            failures=3,
            priority=2,
            tags=("gpu",),
            reason="by hand",
            max_failures=4,
        )
        job = store.submit(given)
        assert job == store.job(job.id)
        assert (job.state, job.attempt, job.failures) == (JobState.QUEUED, 0, 0)
        assert (job.created, job.available) == (clock(), clock())
        assert (job.payload, job.tags) == (given.payload, ("gpu",))
        assert (job.priority, job.reason, job.max_failures) == (2, "by hand", 4)

    def test_submit_is_idempotent(self, store: Store) -> None:
        """The same key or the same id gives the first job back, and adds none."""
        first = store.submit(a_job(), key="k")
        assert store.submit(a_job(), key="k") == first
        assert store.submit(a_job(id=first.id, kind="other")) == first
        assert store.submit(a_job(), key="other").id != first.id
        assert len(store.jobs()) == 2

    def test_jobs_newest_first(self, store: Store, clock: Clock) -> None:
        """Jobs are listed newest first, by model and state if asked, at most so many."""
        ids = []
        for number in range(4):
            ids.append(store.submit(a_job(model="toy" if number % 2 else "other")).id)
            clock.forward(1)
        first = claimed(store)
        assert [job.id for job in store.jobs()] == ids[::-1]
        assert [job.id for job in store.jobs(model="toy")] == [ids[3], ids[1]]
        assert [job.id for job in store.jobs(state=JobState.RUNNING)] == [first.id] == ids[:1]
        assert [job.id for job in store.jobs(most=2)] == [ids[3], ids[2]]
        assert store.job("none") is None

    def test_figures(self, store: Store, clock: Clock) -> None:
        """The figures count by state and know how long the oldest queued job has waited."""
        empty = {"queued": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0}
        assert store.job_figures() == {**empty, "oldest": None}
        for _ in range(3):
            store.submit(a_job())
        claimed(store)
        clock.forward(5)
        store.submit(a_job())
        figures = store.job_figures()
        assert figures["oldest"] == pytest.approx(5.0, abs=0.01)
        assert {**figures, "oldest": 0} == {**empty, "queued": 3, "running": 1, "oldest": 0}

    def test_claim_order(self, store: Store, clock: Clock) -> None:
        """The highest priority goes first, then the oldest, then the smallest id."""
        late = store.submit(a_job(id="c"))
        also_late = store.submit(a_job(id="b"))
        clock.forward(1)
        later = store.submit(a_job(id="a"))
        urgent = store.submit(a_job(id="z", priority=1))
        idle = store.submit(a_job(id="0", priority=-1))
        order = [claimed(store).id for _ in range(5)]
        assert order == [urgent.id, also_late.id, late.id, later.id, idle.id]
        assert store.claim("w", 60.0) is None

    def test_claim_leases(self, store: Store, clock: Clock) -> None:
        """A claim sets running, the attempt, the worker and the lease."""
        id = store.submit(a_job()).id
        clock.forward(2)
        job = claimed(store, "w1", 30.0)
        assert job == store.job(id)
        assert (job.state, job.attempt, job.worker) == (JobState.RUNNING, 1, "w1")
        assert (job.started, job.lease_until) == (clock(), clock() + 30.0)

    def test_claim_needs_the_tags(self, store: Store) -> None:
        """A job goes only to a worker that has all of its tags."""
        both = store.submit(a_job(tags=("gpu", "big"), priority=9))
        plain = store.submit(a_job())
        assert claimed(store, tags=("gpu",)).id == plain.id
        assert store.claim("w", 60.0, tags=("gpu", "tall")) is None
        assert claimed(store, tags=("tall", "big", "gpu")).id == both.id

    def test_claim_waits_until_available(self, store: Store, clock: Clock) -> None:
        """A job is not given out before its time."""
        store.submit(a_job(available=clock() + 10))
        assert store.claim("w", 60.0) is None
        clock.forward(10)
        assert claimed(store).attempt == 1

    def test_claim_request_is_answered_again(self, store: Store) -> None:
        """A repeated request gets the same attempt while it runs, and a new job afterwards."""
        for _ in range(3):
            store.submit(a_job())
        first = claimed(store, request="r1")
        assert claimed(store, request="r1") == first
        assert claimed(store, request="r2").id != first.id
        store.finish(first.id, 1, JobState.DONE)
        assert claimed(store, request="r1").id != first.id

    def test_claims_of_threads_are_disjoint(self, store: Store) -> None:
        """Two threads that claim at once never get the same job, and miss none."""
        ids = {store.submit(a_job()).id for _ in range(60)}
        got: list[str] = []
        start = threading.Barrier(2)

        def work(name: str) -> None:
            start.wait()
            while (job := store.claim(name, 60.0)) is not None:
                got.append(job.id)

        threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(ids)

    def test_heartbeat(self, store: Store, clock: Clock) -> None:
        """A heartbeat extends the lease, keeps the progress and carries the order to stop."""
        store.submit(a_job())
        job = claimed(store)
        clock.forward(20)
        progress = {"step": 1, "of": 3, "at": 9, "kind": "fold", "message": "first"}
        beat = store.heartbeat(job.id, 1, 60.0, progress)
        assert (beat.lease_until, beat.progress) == (clock() + 60.0, progress)
        assert not beat.cancel_requested
        assert store.heartbeat(job.id, 1, 60.0).progress == progress
        store.cancel(job.id)
        beat = store.heartbeat(job.id, 1, 60.0)
        assert beat.cancel_requested and beat == store.job(job.id)

    def test_heartbeat_is_fenced(self, store: Store, clock: Clock) -> None:
        """Only the attempt that runs may beat; a late one may, while nobody took the job."""
        id = store.submit(a_job()).id
        for attempt in (0, 1):
            with pytest.raises(StaleAttempt):
                store.heartbeat(id, attempt, 60.0)
        claimed(store, lease=1.0)
        clock.forward(5)
        assert store.heartbeat(id, 1, 1.0).state is JobState.RUNNING
        for attempt in (0, 2):
            with pytest.raises(StaleAttempt):
                store.heartbeat(id, attempt, 60.0)
        with pytest.raises(StaleAttempt):
            store.heartbeat("none", 1, 60.0)

    def test_finish_done(self, store: Store, clock: Clock) -> None:
        """A finished job keeps its result and gives up its lease; a stranger cannot finish it."""
        id = store.submit(a_job()).id
        claimed(store)
        clock.forward(3)
        with pytest.raises(StaleAttempt):
            store.finish(id, 2, JobState.DONE, {"score": 2})
        job = store.finish(id, 1, JobState.DONE, {"score": 1.5, "rows": [1, 2]})
        assert (job.state, job.finished, job.lease_until) == (JobState.DONE, clock(), None)
        assert job.result == {"score": 1.5, "rows": [1, 2]}
        assert job == store.job(id)

    def test_finish_twice(self, store: Store) -> None:
        """Finishing again the same way changes nothing; another way is refused."""
        id = store.submit(a_job()).id
        claimed(store)
        job = store.finish(id, 1, JobState.DONE, {"n": 1})
        events = store.job_events()
        assert store.finish(id, 1, JobState.DONE, {"n": 2}) == job
        with pytest.raises(StaleAttempt):
            store.finish(id, 1, JobState.FAILED)
        assert (store.job(id), store.job_events()) == (job, events)

    def test_finish_must_end(self, store: Store) -> None:
        """An attempt cannot end as queued or running."""
        id = store.submit(a_job()).id
        claimed(store)
        for state in (JobState.QUEUED, JobState.RUNNING):
            with pytest.raises(WrongState):
                store.finish(id, 1, state)

    def test_failed_is_queued_again_with_a_pause(self, store: Store, clock: Clock) -> None:
        """A failure is counted, the job waits longer each time, and rests at its limit."""
        id = store.submit(a_job(max_failures=3)).id
        for failures, pause in ((1, 2.0), (2, 4.0)):
            job = claimed(store)
            assert job.attempt == failures
            job = store.finish(id, failures, JobState.FAILED, error={"code": "model-failed"})
            assert store.finish(id, failures, JobState.FAILED) == job
            assert (job.state, job.attempt, job.failures) == (JobState.QUEUED, failures, failures)
            assert (job.available, job.worker, job.lease_until) == (clock() + pause, None, None)
            assert job.error == {"code": "model-failed"}
            assert store.claim("w", 60.0) is None
            clock.forward(pause)
        claimed(store)
        job = store.finish(id, 3, JobState.FAILED, error={"code": "model-failed"})
        assert (job.state, job.failures, job.finished) == (JobState.FAILED, 3, clock())

    def test_cancel(self, store: Store) -> None:
        """Cancel ends a queued job, asks a running one, and leaves an ended one alone."""
        with pytest.raises(UnknownJob):
            store.cancel("none")
        queued = store.cancel(store.submit(a_job()).id)
        assert queued.state is JobState.CANCELLED and queued.finished is not None
        assert store.cancel(queued.id) == queued
        assert store.claim("w", 60.0) is None
        running = store.submit(a_job()).id
        claimed(store)
        asked = store.cancel(running)
        assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
        assert store.cancel(running) == asked
        ended = store.finish(running, 1, JobState.CANCELLED)
        assert ended.state is JobState.CANCELLED
        assert store.cancel(running) == ended

    def test_done_wins_over_cancel(self, store: Store) -> None:
        """An attempt that was done before it heard of the cancellation stays done."""
        id = store.submit(a_job()).id
        claimed(store)
        store.cancel(id)
        job = store.finish(id, 1, JobState.DONE, {"n": 1})
        assert (job.state, job.cancel_requested) == (JobState.DONE, True)

    def test_failed_after_cancel_is_not_queued_again(self, store: Store) -> None:
        """A job that fails while it is asked to stop does not get another attempt."""
        id = store.submit(a_job(max_failures=5)).id
        claimed(store)
        store.cancel(id)
        job = store.finish(id, 1, JobState.FAILED, error={"code": "timeout"})
        assert (job.state, job.failures) == (JobState.CANCELLED, 1)

    def test_sweep(self, store: Store, clock: Clock) -> None:
        """A lost lease queues the job again at once, and the lost attempt is fenced off."""
        id = store.submit(a_job(max_losses=1)).id
        claimed(store, lease=10.0)
        clock.forward(9)
        assert store.sweep() == []
        clock.forward(1)
        (lost,) = store.sweep()
        assert (lost.state, lost.losses, lost.worker) == (JobState.QUEUED, 1, None)
        assert lost == store.job(id)
        for state in (JobState.DONE, JobState.FAILED):
            with pytest.raises(StaleAttempt):
                store.finish(id, 1, state)
        assert claimed(store, lease=10.0).attempt == 2
        with pytest.raises(StaleAttempt):
            store.heartbeat(id, 1, 10.0)
        clock.forward(10)
        (failed,) = store.sweep()
        assert (failed.state, failed.losses, failed.failures) == (JobState.FAILED, 2, 0)
        assert failed.error is not None and failed.error["code"] == "unavailable"
        assert store.sweep() == []

    def test_sweep_cancels_if_asked(self, store: Store, clock: Clock) -> None:
        """A job that was asked to stop and lost its worker is cancelled."""
        id = store.submit(a_job()).id
        claimed(store, lease=1.0)
        store.cancel(id)
        clock.forward(2)
        assert [job.state for job in store.sweep()] == [JobState.CANCELLED]
        assert kinds(store, id) == ["queued", "running", "cancelled"]

    def test_stretch_leases(self, store: Store, clock: Clock) -> None:
        """After the store was away, every running job has that much time again."""
        for _ in range(2):
            store.submit(a_job())
        claimed(store, lease=10.0)
        longer = claimed(store, lease=200.0)
        clock.forward(100)
        store.stretch_leases(30.0)
        clock.forward(29)
        assert store.sweep() == []
        stretched = store.job(longer.id)
        assert stretched is not None and stretched.lease_until == clock() - 129 + 230
        clock.forward(1)
        assert len(store.sweep()) == 1

    def test_events_tell_the_story(self, store: Store, clock: Clock) -> None:
        """Each change of state is one event, in order, and can be followed by its number."""
        id = store.submit(a_job(max_failures=2)).id
        claimed(store, lease=5.0)
        clock.forward(5)
        store.sweep()
        claimed(store)
        store.finish(id, 2, JobState.FAILED, error={"code": "timeout"})
        clock.forward(2)
        claimed(store)
        store.finish(id, 3, JobState.DONE)
        other = store.submit(a_job()).id
        story = ["queued", "running", "lost", "queued", "running", "queued", "running", "done"]
        assert kinds(store, id) == story
        events = store.job_events()
        numbers = [event.seq for event in events]
        assert numbers == sorted(set(numbers)) and numbers[0] > 0
        assert [event.job for event in store.job_events(after=numbers[-2])] == [other]
        assert store.job_events(most=2) == events[:2]
        assert events[0].at <= events[-1].at == clock()

    def test_progress_events_are_coalesced(self, store: Store) -> None:
        """Only the latest progress of a job is kept, and a follower always sees it as new."""
        id = store.submit(a_job()).id
        claimed(store)
        seen = 0
        for step in range(5):
            store.heartbeat(id, 1, 60.0, {"step": step})
            (event,) = store.job_events(after=seen)[-1:]
            assert (event.kind, event.data["step"]) == ("progress", step)
            assert event.seq > seen
            seen = event.seq
        store.heartbeat(id, 1, 60.0, {"step": 4})
        assert store.job_events(after=seen) == []
        assert kinds(store, id) == ["queued", "running", "progress"]

    def test_effects_number_and_promote(self, store: Store, clock: Clock) -> None:
        """Finishing a training keeps the version and the decision and moves the champion."""
        store.put_model(a_model())
        store.add_version(a_version(), champion=True)
        id = store.submit(a_job("train", "toy")).id
        claimed(store)
        before = store.revision()
        effects = Effects(
            version=a_version(metrics={"r2": 0.5}, job=id),
            decision=a_decision(candidate=0, champion=1, job=id, evidence={"n": 3}),
            promote=True,
            champion=1,
        )
        job = store.finish(id, 1, JobState.DONE, {"rows": 9}, effects=effects)
        assert job.result == {"rows": 9, "version": 2, "decision": 1, "promoted": True}
        kept = store.version("toy", 2)
        assert kept is not None and (kept.metrics, kept.created) == ({"r2": 0.5}, clock())
        assert store.aliases("toy") == Aliases(champion=2, previous=1, epoch=2)
        (decision,) = store.decisions("toy")
        assert (decision.candidate, decision.promoted, decision.number) == (2, True, 1)
        assert store.revision() > before
        store.finish(id, 1, JobState.DONE, effects=effects)
        assert (len(store.versions("toy")), len(store.decisions("toy"))) == (2, 1)

    def test_effects_with_an_overtaken_champion(self, store: Store) -> None:
        """When the champion moved meanwhile, the verdict is kept and nothing is promoted."""
        store.put_model(a_model())
        store.add_version(a_version(), champion=True)
        id = store.submit(a_job("train", "toy")).id
        claimed(store)
        store.add_version(a_version(), champion=True)
        effects = Effects(
            version=a_version(),
            decision=a_decision(candidate=0, champion=1),
            promote=True,
            champion=1,
        )
        job = store.finish(id, 1, JobState.DONE, effects=effects)
        assert job.result == {"version": 3, "decision": 1, "promoted": False}
        assert store.aliases("toy").champion == 2
        (decision,) = store.decisions("toy")
        assert (decision.verdict, decision.promoted) == ("promote", False)
        assert decision.reason == "better; the champion changed meanwhile"

    def test_effects_without_promotion(self, store: Store) -> None:
        """A version that the gate keeps back is there, and the champion stays."""
        store.put_model(a_model())
        store.submit(a_job("train", "toy"))
        job = claimed(store)
        effects = Effects(
            version=a_version(), decision=a_decision(verdict="keep", candidate=0, promoted=True)
        )
        job = store.finish(job.id, 1, JobState.DONE, effects=effects)
        assert job.result == {"version": 1, "decision": 1, "promoted": False}
        assert store.aliases("toy") == Aliases()
        assert store.decisions("toy")[0].promoted is False

    def test_effects_are_all_or_nothing(self, store: Store) -> None:
        """What is refused changes nothing: a stale attempt, a dropped model, a missing version."""
        store.put_model(a_model())
        id = store.submit(a_job("train", "toy")).id
        claimed(store)
        before = (store.revision(), store.job(id), store.job_events())
        decision = a_decision(candidate=7)
        refused: list[tuple[int, type[Exception], Effects]] = [
            (2, StaleAttempt, Effects(version=a_version())),
            (1, UnknownModel, Effects(version=a_version("gone"))),
            (1, UnknownModel, Effects(version=a_version(), decision=a_decision("gone"))),
            (1, UnknownVersion, Effects(decision=decision, promote=True)),
        ]
        for attempt, error, effects in refused:
            with pytest.raises(error):
                store.finish(id, attempt, JobState.DONE, effects=effects)
        with pytest.raises(WrongState):
            store.finish(id, 1, JobState.FAILED, effects=Effects(version=a_version()))
        assert (store.revision(), store.job(id), store.job_events()) == before
        assert (store.versions("toy"), store.decisions("toy")) == ([], [])
        assert store.aliases("toy") == Aliases()

    def test_trigger_takes_the_newest_epoch(self, store: Store) -> None:
        """The newest waiting epoch becomes a job, the older ones are coalesced into it."""
        assert store.trigger("toy", a_job("train")) is None
        with_epochs(store, 100, 200, 300)
        job = store.trigger("toy", a_job("train", payload={"reason": "every"}))
        assert job is not None and job == store.job(job.id)
        assert (job.model, job.payload) == ("toy", {"reason": "every", "k": 3, "upto": 300})
        states = [(epoch.k, epoch.state, epoch.job) for epoch in store.epochs("toy")]
        first, second, third = (1, "coalesced"), (2, "coalesced"), (3, "submitted")
        assert states == [(*first, job.id), (*second, job.id), (*third, job.id)]
        assert kinds(store, job.id) == ["queued"]
        assert store.trigger("toy", a_job("train")) is None

    def test_trigger_waits_for_a_live_training(self, store: Store) -> None:
        """While a training is queued or running nothing is triggered; afterwards it is."""
        first = store.submit(a_job("train", "toy"))
        store.submit(a_job("train", "other", priority=-1))
        with_epochs(store, 100)
        assert store.trigger("toy", a_job("train")) is None
        claimed(store)
        assert store.trigger("toy", a_job("train")) is None
        store.finish(first.id, 1, JobState.DONE)
        job = store.trigger("toy", a_job("train"))
        assert job is not None and job.payload["k"] == 1
        with_epochs(store, 200, first=2)
        assert [epoch.state for epoch in store.epochs("toy")] == ["submitted", "waiting"]

    def test_trigger_from_two_threads(self, store: Store) -> None:
        """Two keepers that trigger at once make one job."""
        with_epochs(store, 10)
        start = threading.Barrier(2)
        made: list[Job | None] = []

        def work() -> None:
            start.wait()
            made.append(store.trigger("toy", a_job("train")))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(job is None for job in made) == [False, True]
        assert len(store.jobs()) == 1
