"""The process that leases jobs: claim, run in a child, heartbeat, finish, stop."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from loopline.child import Child
from loopline.contracts import BlobStore, Doorbell, Store
from loopline.errors import LooplineError, StaleAttempt, Unavailable, UnknownModel
from loopline.records import Effects, Job, JobState, WorkerRecord, new_id
from loopline.settings import Settings
from loopline.training import Outcome, Plan, freeze

logger = logging.getLogger("loopline.worker")

TRAIN = "train"
IDLE = 1.0


def plan_training(job: Job, store: Store, blobs: BlobStore) -> Plan:
    """Freeze what one training run needs, so that it can run anywhere and again.

    Raises:
        UnknownModel: the model went away meanwhile.
    """
    name = job.model or ""
    record = store.model(name)
    if record is None:
        raise UnknownModel(f"there is no model {name!r} any more")
    champion = store.aliases(name).champion
    upto = job.payload.get("upto") or store.books(name).seq
    examples = store.examples(name, 0, upto) if upto else iter(())
    digest, _ = freeze(record.schema, examples, blobs)
    return Plan(
        model=record,
        parameters=job.payload.get("parameters") or {},
        base=record.dataset,
        examples=digest,
        upto=upto,
        champion=store.version(name, champion) if champion else None,
        policy=record.policy,
        job=job.id,
        cursor=store.join_position(name),
    )


def effects_of(outcome: Outcome) -> Effects:
    """What a finished training changes: a version, its decision, perhaps the champion."""
    return Effects(
        version=outcome.version,
        decision=outcome.decision,
        promote=outcome.promote,
        champion=outcome.decision.champion,
    )


class Worker:
    """Takes one job at a time, each attempt in a child process of its own.

    Args:
        store: the only truth about jobs.
        blobs: where frozen slices and artifacts go.
        entry: `module:function` that the child runs with the plan.
        context: what that function needs beside the plan (URLs, key file).
        settings: lease, limits.
        name: a stable name for this slot; a new process under the same name takes back what
            its predecessor left running.
        tags: what jobs may ask of a worker.
        doorbell: wakes it when a job was queued.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        entry: str,
        context: dict[str, Any],
        settings: Settings,
        name: str,
        tags: tuple[str, ...] = (),
        doorbell: Doorbell | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._entry = entry
        self._context = context
        self._settings = settings
        self._tags = tags
        self._doorbell = doorbell
        self._stop = threading.Event()
        self._started = store.now()
        self.name = name

    def stop(self) -> None:
        """Finish nothing more: the running attempt is given back to the queue."""
        self._stop.set()
        if self._doorbell is not None:
            self._doorbell.ring()

    def run(self) -> None:
        """Work until `stop` is called."""
        self._take_back()
        while not self._stop.is_set():
            try:
                job = self._claim()
                if job is None:
                    self._rest()
                else:
                    self.attempt(job)
            except Unavailable as error:
                logger.warning("%s; trying again", error)
                self._stop.wait(IDLE)
            except Exception:
                logger.exception("the worker stumbled; it goes on")
                self._stop.wait(IDLE)

    def _rest(self) -> None:
        if self._doorbell is None:
            self._stop.wait(IDLE)
        else:
            self._doorbell.wait(IDLE, self._stop.is_set)

    def _take_back(self) -> None:
        """End the leases of an earlier process that had this name; the sweeper does the rest."""
        for job in self._store.jobs(state=JobState.RUNNING):
            if job.worker == self.name:
                self._give_back(job)
        self._store.sweep()

    def _claim(self) -> Job | None:
        self._say_hello(None)
        return self._store.claim(self.name, self._settings.lease, self._tags, request=new_id())

    def _say_hello(self, job: str | None) -> None:
        """Show what this worker does; only for people, so it may fail while the store is away."""
        host, pid, tags = socket.gethostname(), os.getpid(), self._tags
        record = WorkerRecord(
            id=self.name, host=host, pid=pid, tags=tags, started=self._started, job=job
        )
        with suppress(Unavailable):
            self._store.put_worker(record)

    def attempt(self, job: Job) -> None:
        """Run one leased attempt to its end."""
        logger.info("job %s attempt %d: %s %s", job.id, job.attempt, job.kind, job.model)
        self._say_hello(job.id)
        try:
            if job.kind != TRAIN:
                raise LooplineError(f"this worker does not know jobs of kind {job.kind!r}")
            plan = plan_training(job, self._store, self._blobs)
        except LooplineError as error:
            plain = {"code": error.code, "type": type(error).__name__, "detail": error.detail}
            self._finish(job, JobState.FAILED, error=plain)
            return
        arguments = {"plan": msgspec.to_builtins(plan), **self._context}
        child = Child(self._entry, arguments, memory=self._settings.job_memory)
        try:
            self._attend(job, child)
        except StaleAttempt:
            logger.warning("job %s attempt %d was taken away; dropped", job.id, job.attempt)
        finally:
            child.stop()

    def _attend(self, job: Job, child: Child) -> None:
        """Beat while the child works; end the attempt with what it says."""
        beat = min(self._settings.lease / 3, 1.0)
        deadline = time.monotonic() + self._settings.job_timeout
        due = 0.0
        progress: dict[str, Any] | None = None
        while True:
            message = child.poll(beat)
            if message is not None and "progress" not in message:
                self._conclude(job, child, message)
                return
            if message is not None:
                progress = message["progress"]
            if self._stop.is_set():
                self._give_back(job)
                return
            if time.monotonic() > deadline:
                self._too_long(job, child)
                return
            if time.monotonic() >= due or message is not None:
                due = time.monotonic() + beat
                if self._beat(job, progress).cancel_requested:
                    child.stop()
                    self._finish(job, JobState.CANCELLED)
                    return

    def _conclude(self, job: Job, child: Child, message: dict[str, Any]) -> None:
        if "error" in message:
            self._finish(job, JobState.FAILED, error=message["error"] | {"log": child.log()})
            return
        outcome = msgspec.convert(message["result"], Outcome)
        result = {"metrics": outcome.metrics, "seconds": outcome.seconds}
        self._finish(job, JobState.DONE, result=result, effects=effects_of(outcome))

    def _too_long(self, job: Job, child: Child) -> None:
        limit = self._settings.job_timeout
        error = {"code": "timeout", "detail": f"it took longer than its limit of {limit:g} s"}
        self._finish(job, JobState.FAILED, error=error | {"log": child.log()})

    def _give_back(self, job: Job) -> None:
        try:
            self._store.heartbeat(job.id, job.attempt, 0.0)
        except StaleAttempt:
            logger.info("job %s attempt %d had already moved on", job.id, job.attempt)

    def _beat(self, job: Job, progress: dict[str, Any] | None) -> Job:
        lease = self._settings.lease
        return self._patiently(lambda: self._store.heartbeat(job.id, job.attempt, lease, progress))

    def _finish(
        self,
        job: Job,
        state: JobState,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        effects: Effects | None = None,
    ) -> None:
        self._patiently(
            lambda: self._store.finish(job.id, job.attempt, state, result, error, effects)
        )
        logger.info("job %s attempt %d: %s", job.id, job.attempt, state.value)
        self._say_hello(None)
        if self._doorbell is not None:
            self._doorbell.ring()

    def _patiently(self, act: Callable[[], Job]) -> Job:
        """Ride out a store that is away, for as long as the lease could last."""
        deadline = time.monotonic() + self._settings.lease
        pause = 0.05
        while True:
            try:
                return act()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2.0, pause * 2)
