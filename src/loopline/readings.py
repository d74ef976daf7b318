"""What can be asked of an installation without changing it: models, versions, scores, jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loopline import access, policy, scoring
from loopline.access import TRUSTED, Access, Caller
from loopline.contracts import BlobStore, Doorbell, EventLog, Store
from loopline.errors import (
    InvalidInput,
    NotReady,
    UnknownJob,
    UnknownModel,
    UnknownPrediction,
    UnknownVersion,
    WrongState,
)
from loopline.facts import predictions_topic, read_prediction
from loopline.metrics import Metrics
from loopline.records import Aliases, Event, Job, JobEvent, JobState, ModelRecord, Version
from loopline.registry import Registry
from loopline.schema import Schema
from loopline.serving import Service, Serving
from loopline.settings import Settings

SETTLING = (0.005, 0.01, 0.02, 0.04)
"""Seconds between looks for a prediction that may be on its way to the disk."""
Served = dict[tuple[int, int], int]
"""How many predictions were made, by version and hour."""
ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(kw_only=True, eq=False, repr=False)
class Readings:
    """The reading half of the loop's verbs, over the parts of one installation."""

    store: Store
    log: EventLog
    blobs: BlobStore
    serving: Serving
    registry: Registry
    doorbell: Doorbell
    settings: Settings
    access: Access
    metrics: Metrics
    _counted: dict[str, tuple[float, Served]] = field(default_factory=dict, init=False)

    def scores(self, model: str, *, caller: Caller = TRUSTED) -> dict[str, Any]:
        """Progressive scores by version and by hour of prediction, with coverage."""
        access.check(caller, "predict")
        record = self._record(model)
        maturity = policy.read(record.policy).maturity if record.policy else None
        tallies, served = self.store.tallies(model), self._served(record)
        return scoring.summary(tallies, served, record.task, maturity, self.store.now())

    def _served(self, record: ModelRecord) -> Served:
        """Predictions made by version and hour; hours that are over are counted once."""
        over = scoring.cohort(time.time()) - 1
        since, counted = self._counted.get(record.name, (record.created, {}))
        if since < record.created:
            since, counted = record.created, {}
        counted = dict(counted)
        fresh: Served = {}
        for event in self.log.scan(predictions_topic(record.name), since):
            prediction = read_prediction(record.name, event)
            key = (prediction.version, scoring.cohort(event.at))
            into = counted if key[1] < over else fresh
            into[key] = into.get(key, 0) + 1
        self._counted[record.name] = (max(since, over * scoring.COHORT), counted)
        return counted | fresh

    def models(self, *, caller: Caller = TRUSTED) -> list[dict[str, Any]]:
        """All models with their champion and readiness."""
        access.check(caller, "predict")
        self.serving.refresh()
        return [_show_model(service.record, service) for service in self.serving.services()]

    def describe(self, model: str, *, caller: Caller = TRUSTED) -> dict[str, Any]:
        """Everything about a model: schema, capabilities, aliases, policy, data, readiness."""
        access.check(caller, "predict")
        record = self._record(model)
        service = self.serving.service(model)
        books = self.store.books(model)
        aliases = self.store.aliases(model)
        schema = msgspec.convert(record.schema, Schema)
        return _show_model(record, service) | {
            "reason": service.why_not(),
            "champion": aliases.champion,
            "challenger": aliases.challenger,
            "previous": aliases.previous,
            "target": record.target,
            "policy": record.policy,
            "schema": schema.json_schema(),
            "columns": list(schema.columns),
            "outcomes": books.matched,
            "examples": books.examples,
            "rows": books.examples + record.options.get("base_rows", 0),
            "created": record.created,
        }

    def versions(self, model: str, *, caller: Caller = TRUSTED) -> list[dict[str, Any]]:
        """All versions, oldest first, with their aliases."""
        access.check(caller, "predict")
        self._record(model)
        aliases = self.store.aliases(model)
        return [_show_version(version, aliases) for version in self.store.versions(model)]

    def version(self, model: str, number: int, *, caller: Caller = TRUSTED) -> dict[str, Any]:
        """One version with its lineage."""
        access.check(caller, "predict")
        return _show_version(self._version(model, number), self.store.aliases(model))

    def decisions(self, model: str, *, caller: Caller = TRUSTED) -> list[dict[str, Any]]:
        """Every decision with its evidence, newest last."""
        access.check(caller, "predict")
        self._record(model)
        return [msgspec.to_builtins(decision) for decision in self.store.decisions(model)]

    def report(
        self, model: str, *, version: int | None = None, caller: Caller = TRUSTED
    ) -> dict[str, Any]:
        """What the model itself says of its fit: {"version", "html", "json"}.

        Raises:
            WrongState: this kind of model has no report.
        """
        access.check(caller, "predict")
        self._record(model)
        number = version or self.store.aliases(model).champion
        if number is None:
            raise NotReady(f"model {model!r} is not fitted yet; train it first")
        digest = self._version(model, number).report
        if digest is None:
            raise WrongState(f"model {model!r} has no report: its class has no report()")
        return {"version": number, **msgspec.json.decode(self.blobs.get(digest))}

    def prediction(self, model: str, id: str, *, caller: Caller = TRUSTED) -> dict[str, Any]:
        """Read one prediction back, with its outcome if that is known."""
        access.check(caller, "predict")
        record = self._record(model)
        event = self._logged(model, id)
        if event is None:
            raise UnknownPrediction(f"model {model!r} has no prediction {id!r}")
        shown = _show_prediction(msgspec.convert(record.schema, Schema), model, event)
        state = self.store.outcome_states(model, [id]).get(id)
        if state is not None:
            plain = msgspec.to_builtins(state)
            shown["outcome"] = {key: plain[key] for key in ("value", "status", "at", "arrival")}
        return shown

    def _logged(self, model: str, id: str) -> Event | None:
        """Find a prediction, allowing one that was answered just now the time of its commit."""
        for pause in (0.0, *SETTLING):
            if pause:
                time.sleep(pause)
                self._until(lambda: not self.log.buffered, 0.2)
            found = self.log.find(predictions_topic(model), [id])
            if id in found:
                return found[id]
        return None

    def predictions(
        self,
        model: str,
        *,
        since: float | None = None,
        until: float | None = None,
        caller: Caller = TRUSTED,
    ) -> Iterator[dict[str, Any]]:
        """Iterate logged predictions with `since <= at < until`, in log order."""
        access.check(caller, "predict")
        schema = msgspec.convert(self._record(model).schema, Schema)
        events = self.log.scan(predictions_topic(model), since, until)
        return (_show_prediction(schema, model, event) for event in events)

    def jobs(
        self,
        *,
        model: str | None = None,
        state: str | None = None,
        most: int = 100,
        caller: Caller = TRUSTED,
    ) -> dict[str, Any]:
        """The newest jobs and the figures of the queue."""
        access.check(caller, "predict")
        if state is not None and state not in list(JobState):
            told = f"{state!r} is not a state; there are {', '.join(JobState)}"
            raise InvalidInput.at(told, "?state")
        jobs = self.store.jobs(model, JobState(state) if state else None, most)
        return {"jobs": [show_job(job) for job in jobs], "figures": self.store.job_figures()}

    def job(
        self, id: str, *, wait: float | None = None, caller: Caller = TRUSTED
    ) -> dict[str, Any]:
        """One job, after waiting up to `wait` seconds for its end."""
        access.check(caller, "predict")
        return show_job(self._await_job(id, wait or 0.0))

    def job_events(self, id: str, after: int = 0, *, caller: Caller = TRUSTED) -> list[JobEvent]:
        """A job's story after event number `after`."""
        access.check(caller, "predict")
        if self.store.job(id) is None:
            raise UnknownJob(f"there is no job {id!r}")
        return self.store.job_events(after, id)

    def workers(self, *, caller: Caller = TRUSTED) -> list[dict[str, Any]]:
        """Workers heard of within the last two minutes."""
        access.check(caller, "predict")
        found = self.store.workers(self.store.now() - 120.0)
        return [msgspec.to_builtins(worker) for worker in found]

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether traffic makes sense, and if not why, by model."""
        reasons = {s.record.name: s.why_not() for s in self.serving.services()}
        told = {name: why for name, why in reasons.items() if why is not None}
        return not told, told

    def _record(self, model: str) -> ModelRecord:
        record = self.store.model(model)
        if record is None:
            names = ", ".join(r.name for r in self.store.models()) or "none yet"
            raise UnknownModel(f"there is no model {model!r}; models here: {names}")
        return record

    def _version(self, model: str, number: int) -> Version:
        self._record(model)
        version = self.store.version(model, number)
        if version is None:
            raise UnknownVersion(f"model {model!r} has no version {number}")
        return version

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        return condition() or (seconds > 0 and self.doorbell.wait(seconds, condition))

    def _await_job(self, id: str, seconds: float) -> Job:
        job = self.store.job(id)
        if job is None:
            raise UnknownJob(f"there is no job {id!r}")

        def ended() -> bool:
            nonlocal job
            job = self.store.job(id)
            return job is None or job.state in ENDED

        self._until(ended, seconds)
        assert job is not None
        return job


def _show_model(record: ModelRecord, service: Service) -> dict[str, Any]:
    return {
        "name": record.name,
        "ready": service.why_not() is None,
        "champion": service.aliases.champion,
        "task": record.task,
        "description": record.description,
        "capabilities": list(record.capabilities),
    }


def _show_version(version: Version, aliases: Aliases) -> dict[str, Any]:
    alias_names = ("champion", "challenger", "previous")
    names = [name for name in alias_names if getattr(aliases, name) == version.number]
    shown: dict[str, Any] = msgspec.to_builtins(version)
    shown["version"] = shown.pop("number")
    shown["cursor"] = version.cursor.token if version.cursor else None
    return {**shown, "aliases": names}


def _show_prediction(schema: Schema, model: str, event: Event) -> dict[str, Any]:
    prediction = read_prediction(model, event)
    names = [field.name for field in schema.fields]
    open_row = schema.open and prediction.row
    row = prediction.row[0] if open_row else dict(zip(names, prediction.row, strict=False))
    return {
        "id": prediction.id,
        "model": model,
        "version": prediction.version,
        "prediction": prediction.output,
        "probabilities": prediction.probabilities,
        "at": prediction.at,
        "input": row,
    }


def show_job(job: Job) -> dict[str, Any]:
    """A job as plain data for people and programs: the same on every protocol."""
    shown: dict[str, Any] = msgspec.to_builtins(job)
    shown["job"] = shown.pop("id")
    for private in ("payload", "available", "max_failures", "max_losses"):
        shown.pop(private)
    if job.error:
        shown["error"] = {k: v for k, v in job.error.items() if k != "traceback"}
    return shown
