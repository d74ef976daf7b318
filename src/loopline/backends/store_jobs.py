"""The store's jobs in SQL: submit, claim, heartbeat, finish, cancel, sweep, and their events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    case,
    delete,
    func,
    insert,
    select,
    type_coerce,
    update,
)

from loopline.backends.store_models import Models
from loopline.backends.tables import columns_of, epochs, job_events, jobs, values_of
from loopline.errors import StaleAttempt, UnknownJob, WrongState
from loopline.records import Effects, Epoch, Job, JobEvent, JobState

_ENDS = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
_LONGEST_PAUSE = 3600.0
_COLUMNS = columns_of(jobs, Job)


class Jobs(Models):
    """Jobs under leases and fences, as `contracts.Store` specifies them."""

    def job(self, id: str) -> Job | None:
        with self._read() as connection:
            return self._job(connection, jobs.c.id == id)

    def _job(self, connection: Connection, *where: ColumnElement[bool]) -> Job | None:
        row = connection.execute(select(*_COLUMNS).where(*where)).first()
        return None if row is None else Job(**row._mapping)

    def _running(self, connection: Connection, id: str, attempt: int) -> Job:
        job = self._job(connection, jobs.c.id == id)
        if job is None or job.state is not JobState.RUNNING or job.attempt != attempt:
            raise StaleAttempt(f"Job {id} is not running under attempt {attempt}.")
        return job

    def jobs(
        self, model: str | None = None, state: JobState | None = None, most: int = 100
    ) -> list[Job]:
        query = select(*_COLUMNS).order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(most)
        if model is not None:
            query = query.where(jobs.c.model == model)
        if state is not None:
            query = query.where(jobs.c.state == state)
        return [Job(**row._mapping) for row in self._rows(query)]

    def job_figures(self) -> dict[str, Any]:
        with self._read() as connection:
            counts = select(jobs.c.state, func.count()).group_by(jobs.c.state)
            found = {state: count for state, count in connection.execute(counts)}
            waiting = select(func.min(jobs.c.created)).where(jobs.c.state == JobState.QUEUED)
            oldest = connection.scalar(waiting)
            now = self._now(connection)
        figures: dict[str, Any] = {state.value: found.get(state, 0) for state in JobState}
        figures["oldest"] = None if oldest is None else max(0.0, now - oldest)
        return figures

    def job_events(self, after: int = 0, job: str | None = None, most: int = 500) -> list[JobEvent]:
        query = select(job_events).where(job_events.c.seq > after)
        if job is not None:
            query = query.where(job_events.c.job == job)
        rows = self._rows(query.order_by(job_events.c.seq).limit(most))
        return [JobEvent(**row._mapping) for row in rows]

    def _change(self, connection: Connection, job: Job, **changes: Any) -> Job:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(**changes))
        fields = set(Job.__struct_fields__)
        return replace(job, **{k: v for k, v in changes.items() if k in fields})

    def _tell(
        self, connection: Connection, job: Job, kind: str, at: float, data: dict[str, Any]
    ) -> None:
        row = {"job": job.id, "kind": kind, "at": at, "data": {**data, "attempt": job.attempt}}
        connection.execute(insert(job_events), row)

    def submit(self, job: Job, key: str | None = None) -> Job:
        with self._write() as connection:
            known = key is not None and self._job(connection, jobs.c.key == key)
            known = known or self._job(connection, jobs.c.id == job.id)
            return known or self._queue(connection, job, key)

    def _queue(self, connection: Connection, job: Job, key: str | None = None) -> Job:
        now = self._now(connection)
        fresh = Job(
            id=job.id,
            kind=job.kind,
            model=job.model,
            payload=job.payload,
            priority=job.priority,
            created=now,
            available=max(now, job.available),
            max_failures=job.max_failures,
            max_losses=job.max_losses,
            reason=job.reason,
            tags=job.tags,
        )
        connection.execute(insert(jobs), {**values_of(fresh), "key": key})
        self._tell(connection, fresh, "queued", now, {})
        return self._job(connection, jobs.c.id == job.id) or fresh

    def trigger(self, model: str, job: Job) -> Job | None:
        waiting = select(*columns_of(epochs, Epoch)).where(
            epochs.c.model == model, epochs.c.state == "waiting"
        )
        if not self._any(waiting):
            return None
        with self._write() as connection:
            rows = connection.execute(waiting.order_by(epochs.c.k)).all()
            if not rows or self._training(connection, model):
                return None
            if self._job(connection, jobs.c.id == job.id) is not None:
                raise WrongState(f"There is a job {job.id} already.")
            newest = Epoch(**rows[-1]._mapping)
            payload = {**job.payload, "k": newest.k, "upto": newest.upto}
            mine = update(epochs).where(epochs.c.model == model, epochs.c.state == "waiting")
            is_newest = epochs.c.k == newest.k
            connection.execute(
                mine.values(state=case((is_newest, "submitted"), else_="coalesced"), job=job.id)
            )
            return self._queue(connection, replace(job, model=model, payload=payload))

    def _training(self, connection: Connection, model: str) -> bool:
        live = jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))
        query = select(jobs.c.id).where(jobs.c.model == model, jobs.c.kind == "train", live)
        return connection.execute(query.limit(1)).first() is not None

    def claim(
        self, worker: str, lease: float, tags: Sequence[str] = (), request: str | None = None
    ) -> Job | None:
        asked = (
            (jobs.c.state == JobState.RUNNING)
            & (jobs.c.request == request)
            & (jobs.c.worker == worker)
        )
        # Idle workers ask all the time, and should not make the writers wait.
        if not self._any(select(jobs.c.id).where(jobs.c.state == JobState.QUEUED)) and not (
            request is not None and self._any(select(jobs.c.id).where(asked))
        ):
            return None
        with self._write() as connection:
            again = self._job(connection, asked) if request is not None else None
            if again is not None:
                return again
            now = self._now(connection)
            job = self._next_job(connection, set(tags), now)
            return job and self._lease(connection, job, now, worker, lease, request)

    def _next_job(self, connection: Connection, tags: set[str], now: float) -> Job | None:
        queued = jobs.c.state == JobState.QUEUED
        needs = type_coerce(jobs.c.tags, Text)
        fitting = [
            text
            for text in connection.scalars(select(needs).where(queued).distinct())
            if tags.issuperset(json.loads(text))
        ]
        query = select(*_COLUMNS).where(queued, jobs.c.available <= now, needs.in_(fitting))
        order = (jobs.c.priority.desc(), jobs.c.created, jobs.c.id)
        row = connection.execute(query.order_by(*order).limit(1)).first()
        return None if row is None else Job(**row._mapping)

    def _lease(
        self,
        connection: Connection,
        job: Job,
        now: float,
        worker: str,
        lease: float,
        request: str | None,
    ) -> Job:
        leased = self._change(
            connection,
            job,
            state=JobState.RUNNING,
            attempt=job.attempt + 1,
            worker=worker,
            started=now,
            lease_until=now + lease,
            progress=None,
            request=request,
        )
        self._tell(connection, leased, "running", now, {"worker": worker})
        return leased

    def heartbeat(
        self, id: str, attempt: int, lease: float, progress: dict[str, Any] | None = None
    ) -> Job:
        with self._write() as connection:
            job = self._running(connection, id, attempt)
            now = self._now(connection)
            job = self._change(connection, job, lease_until=now + lease)
            if progress is None or progress == job.progress:
                return job
            # Only the latest progress matters to a follower, and a chatty job must not fill the
            # table: it replaces the one before, under a new `seq`.
            old = (job_events.c.job == id) & (job_events.c.kind == "progress")
            connection.execute(delete(job_events).where(old))
            self._tell(connection, job, "progress", now, progress)
            return self._change(connection, job, progress=progress)

    def finish(
        self,
        id: str,
        attempt: int,
        state: JobState,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        effects: Effects | None = None,
    ) -> Job:
        if state not in _ENDS:
            raise WrongState(f"An attempt ends as done, failed or cancelled, not {state}.")
        if effects is not None and effects != Effects() and state is not JobState.DONE:
            raise WrongState("Only a job that is done has effects.")
        with self._write() as connection:
            twice = self._job(
                connection,
                jobs.c.id == id,
                jobs.c.ended_attempt == attempt,
                jobs.c.ended_state == state,
            )
            if twice is not None:
                return twice
            job = self._running(connection, id, attempt)
            now = self._now(connection)
            connection.execute(
                update(jobs).where(jobs.c.id == id).values(ended_attempt=attempt, ended_state=state)
            )
            if state is JobState.FAILED:
                return self._fail(connection, job, now, result, error)
            if effects is not None:
                result = {**(result or {}), **self._apply(connection, effects, now)}
            return self._end(connection, job, state, now, result=result, error=error)

    def _fail(
        self,
        connection: Connection,
        job: Job,
        now: float,
        result: dict[str, Any] | None,
        error: dict[str, Any] | None,
    ) -> Job:
        failures = job.failures + 1
        said = {"failures": failures, "result": result, "error": error}
        if failures >= job.max_failures:
            return self._end(connection, job, JobState.FAILED, now, **said)
        if job.cancel_requested:
            return self._end(connection, job, JobState.CANCELLED, now, **said)
        pause = min(2.0 ** min(failures, 30), _LONGEST_PAUSE)
        return self._requeue(connection, job, now, available=now + pause, **said)

    def _end(
        self, connection: Connection, job: Job, state: JobState, now: float, **changes: Any
    ) -> Job:
        ended = self._change(
            connection, job, state=state, finished=now, lease_until=None, **changes
        )
        said = {} if changes.get("error") is None else {"error": changes["error"]}
        self._tell(connection, ended, state.value, now, said)
        return self._job(connection, jobs.c.id == job.id) or ended

    def _requeue(self, connection: Connection, job: Job, now: float, **changes: Any) -> Job:
        queued = self._change(
            connection, job, state=JobState.QUEUED, worker=None, lease_until=None, **changes
        )
        said = {"available": queued.available}
        if changes.get("error") is not None:
            said["error"] = changes["error"]
        self._tell(connection, queued, "queued", now, said)
        return self._job(connection, jobs.c.id == job.id) or queued

    def cancel(self, id: str) -> Job:
        with self._write() as connection:
            job = self._job(connection, jobs.c.id == id)
            if job is None:
                raise UnknownJob(f"There is no job {id}.")
            return self._cancel(connection, job)

    def _cancel(self, connection: Connection, job: Job) -> Job:
        if job.state is JobState.RUNNING:
            return self._change(connection, job, cancel_requested=True)
        if job.state is JobState.QUEUED:
            return self._end(connection, job, JobState.CANCELLED, self._now(connection))
        return job

    def _cancel_all(self, connection: Connection, model: str) -> None:
        live = jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))
        query = select(*_COLUMNS).where(jobs.c.model == model, live)
        for row in connection.execute(query.order_by(jobs.c.created, jobs.c.id)).all():
            self._cancel(connection, Job(**row._mapping))

    def sweep(self) -> list[Job]:
        query = select(*_COLUMNS).where(jobs.c.state == JobState.RUNNING)
        if not self._any(query.where(jobs.c.lease_until <= self.now())):
            return []
        with self._write() as connection:
            now = self._now(connection)
            overdue = query.where(jobs.c.lease_until <= now)
            rows = connection.execute(overdue.order_by(jobs.c.lease_until, jobs.c.id)).all()
            return [self._lose(connection, Job(**row._mapping), now) for row in rows]

    def _lose(self, connection: Connection, job: Job, now: float) -> Job:
        if job.cancel_requested:
            return self._end(connection, job, JobState.CANCELLED, now)
        losses = job.losses + 1
        self._tell(connection, job, "lost", now, {"worker": job.worker, "losses": losses})
        if losses <= job.max_losses:
            return self._requeue(connection, job, now, available=now, losses=losses)
        detail = f"the lease ran out {losses} times: its workers died or lost touch"
        error = {"code": "unavailable", "detail": detail}
        return self._end(connection, job, JobState.FAILED, now, losses=losses, error=error)

    def stretch_leases(self, seconds: float) -> None:
        with self._write() as connection:
            now = self._now(connection)
            past = jobs.c.lease_until < now
            start = case((past, now), else_=jobs.c.lease_until)
            running = update(jobs).where(jobs.c.state == JobState.RUNNING)
            connection.execute(running.values(lease_until=start + seconds))
