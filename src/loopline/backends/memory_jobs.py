"""The job rules of the reference store, in plain dicts; its caller holds the lock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from loopline.errors import StaleAttempt, UnknownJob
from loopline.records import Job, JobEvent, JobState


class Slot:
    """One job, and what has to be remembered beside it."""

    def __init__(self, job: Job, key: str | None) -> None:
        self.job = job
        self.key = key
        self.request: str | None = None
        self.ended: tuple[int, JobState] | None = None


class JobBook:
    """All jobs and their events."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.events: list[JobEvent] = []
        self._seq = 0

    def find(self, id: str, key: str | None) -> Slot | None:
        """The job submitted before under this key, or under this id."""
        keyed = [slot for slot in self.slots.values() if key is not None and slot.key == key]
        return keyed[0] if keyed else self.slots.get(id)

    def known(self, id: str) -> Slot:
        """The job of this id, or UnknownJob."""
        if id not in self.slots:
            raise UnknownJob(f"There is no job {id}.")
        return self.slots[id]

    def running(self, id: str, attempt: int) -> Slot:
        """The job of this id while it runs under this attempt, or StaleAttempt."""
        slot = self.slots.get(id)
        if slot is None or (slot.job.state, slot.job.attempt) != (JobState.RUNNING, attempt):
            raise StaleAttempt(f"Job {id} is not running under attempt {attempt}.")
        return slot

    def live(self, model: str) -> list[Slot]:
        """A model's queued and running jobs, oldest first."""
        live = (JobState.QUEUED, JobState.RUNNING)
        found = [s for s in self.slots.values() if s.job.model == model and s.job.state in live]
        return sorted(found, key=lambda slot: (slot.job.created, slot.job.id))

    def figures(self, now: float) -> dict[str, Any]:
        """Counts by state and the age of the oldest queued job."""
        states = [slot.job.state for slot in self.slots.values()]
        queued = [s.job.created for s in self._in(JobState.QUEUED)]
        oldest = max(0.0, now - min(queued)) if queued else None
        return {**{state.value: states.count(state) for state in JobState}, "oldest": oldest}

    def _in(self, state: JobState) -> Iterator[Slot]:
        return (slot for slot in self.slots.values() if slot.job.state is state)

    def _tell(self, slot: Slot, kind: str, at: float, **data: Any) -> None:
        self._note(slot, kind, at, data)

    def _note(self, slot: Slot, kind: str, at: float, data: dict[str, Any]) -> None:
        self._seq += 1
        data = {**data, "attempt": slot.job.attempt}
        self.events.append(JobEvent(seq=self._seq, job=slot.job.id, kind=kind, at=at, data=data))

    def queue(self, job: Job, key: str | None, now: float) -> Slot:
        """Take a new job in."""
        slot = Slot(
            replace(
                job,
                state=JobState.QUEUED,
                attempt=0,
                created=now,
                available=max(now, job.available),
                started=None,
                finished=None,
                worker=None,
                lease_until=None,
                failures=0,
                losses=0,
                cancel_requested=False,
                progress=None,
                result=None,
                error=None,
            ),
            key,
        )
        self.slots[job.id] = slot
        self._tell(slot, "queued", now)
        return slot

    def claim(
        self, worker: str, lease: float, tags: set[str], request: str | None, now: float
    ) -> Slot | None:
        """Lease the next job that fits, or give this request's attempt again."""
        for slot in self._in(JobState.RUNNING):
            if request is not None and (slot.request, slot.job.worker) == (request, worker):
                return slot
        fitting = [
            slot
            for slot in self._in(JobState.QUEUED)
            if slot.job.available <= now and tags.issuperset(slot.job.tags)
        ]
        if not fitting:
            return None
        slot = min(fitting, key=lambda s: (-s.job.priority, s.job.created, s.job.id))
        slot.request = request
        slot.job = replace(
            slot.job,
            state=JobState.RUNNING,
            attempt=slot.job.attempt + 1,
            worker=worker,
            started=now,
            lease_until=now + lease,
            progress=None,
        )
        self._tell(slot, "running", now, worker=worker)
        return slot

    def beat(self, slot: Slot, lease: float, progress: dict[str, Any] | None, now: float) -> None:
        """Extend the lease, and keep the latest progress and its one event."""
        fresh = progress is not None and progress != slot.job.progress
        slot.job = replace(slot.job, lease_until=now + lease)
        if fresh and progress is not None:
            mine = slot.job.id
            self.events = [e for e in self.events if (e.job, e.kind) != (mine, "progress")]
            self._note(slot, "progress", now, progress)
            slot.job = replace(slot.job, progress=progress)

    def fail(
        self,
        slot: Slot,
        result: dict[str, Any] | None,
        error: dict[str, Any] | None,
        now: float,
    ) -> None:
        """Count a failure: queue the job again, with a pause, or let it rest."""
        job = slot.job
        said = {"failures": job.failures + 1, "result": result, "error": error}
        if job.failures + 1 >= job.max_failures:
            self.end(slot, JobState.FAILED, now, **said)
        elif job.cancel_requested:
            self.end(slot, JobState.CANCELLED, now, **said)
        else:
            pause = min(2.0 ** min(job.failures + 1, 30), 3600.0)
            self._requeue(slot, now, available=now + pause, **said)

    def end(self, slot: Slot, state: JobState, now: float, **changes: Any) -> None:
        """Bring a job to its final state."""
        slot.job = replace(slot.job, state=state, finished=now, lease_until=None, **changes)
        self._note(slot, state.value, now, _said(changes))

    def _requeue(self, slot: Slot, now: float, **changes: Any) -> None:
        queued = {"state": JobState.QUEUED, "worker": None, "lease_until": None}
        slot.job = replace(slot.job, **queued, **changes)
        self._note(slot, "queued", now, {"available": slot.job.available, **_said(changes)})

    def cancel(self, slot: Slot, now: float) -> None:
        """Cancel a queued job, ask a running one to stop."""
        if slot.job.state is JobState.RUNNING:
            slot.job = replace(slot.job, cancel_requested=True)
        elif slot.job.state is JobState.QUEUED:
            self.end(slot, JobState.CANCELLED, now)

    def sweep(self, now: float) -> list[Slot]:
        """Take back the leases that ran out."""
        overdue = [s for s in self._in(JobState.RUNNING) if _until(s) <= now]
        overdue.sort(key=lambda slot: (_until(slot), slot.job.id))
        for slot in overdue:
            self._lose(slot, now)
        return overdue

    def _lose(self, slot: Slot, now: float) -> None:
        job = slot.job
        losses = job.losses + 1
        if job.cancel_requested:
            self.end(slot, JobState.CANCELLED, now)
            return
        self._tell(slot, "lost", now, worker=job.worker, losses=losses)
        if losses <= job.max_losses:
            self._requeue(slot, now, available=now, losses=losses)
            return
        detail = f"the lease ran out {losses} times: its workers died or lost touch"
        error = {"code": "unavailable", "detail": detail}
        self.end(slot, JobState.FAILED, now, losses=losses, error=error)

    def stretch(self, seconds: float, now: float) -> None:
        """Give running jobs more time, from now on at least."""
        for slot in self._in(JobState.RUNNING):
            until = max(_until(slot), now) + seconds
            slot.job = replace(slot.job, lease_until=until)


def _until(slot: Slot) -> float:
    return slot.job.lease_until or 0.0


def _said(changes: dict[str, Any]) -> dict[str, Any]:
    return {} if changes.get("error") is None else {"error": changes["error"]}
