"""The core: what a caller can ask of a model, in one file.

    predict ──► serving ──► event log          the answer, its id, its row
    outcome ──► event log ──► join ──► store   the truth, met with its prediction
    learn ────► event log ──► join ──► store   labelled rows
    train ────► store (a job) ──► worker ──► gate ──► a version, a decision, perhaps a swap
    promote, rollback ──► store (aliases) ──► every replica follows

Every verb is synchronous and safe to call from any thread, checks its caller first, and raises
only errors of `errors.py`. What `outcome`, `learn` or a job submission has answered is durable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from loopline import access
from loopline.access import TRUSTED, Caller
from loopline.asks import Answered, Ask
from loopline.errors import TooLarge, WrongState
from loopline.facts import example_event, outcome_event, outcome_facts
from loopline.join import merge, summarise
from loopline.readings import Readings, show_job
from loopline.records import (
    Aliases,
    Decision,
    Event,
    Job,
    ModelRecord,
    Moments,
    OutcomeStatus,
    new_id,
    new_ids,
)
from loopline.registry import define
from loopline.schema import Schema
from loopline.training import base_pairs, measure


class Loop(Readings):
    """The verbs over one installation; what only reads is in `readings.py`."""

    # The loop itself: predict, outcome, learn, train.

    def predict(
        self,
        model: str,
        value: Any,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        alias: str | None = None,
        text: bool = False,
        timeout: float | None = None,
        caller: Caller = TRUSTED,
    ) -> Answered:
        """Answer one row or many with the champion, or with a named version.

        Args:
            model: its name.
            value: a row (mapping), a list of rows (mappings or lists in field order), or columns
                (a mapping of lists).
            ids: one id per row, unique for the model; made (UUIDv7) where not given. An id that
                was answered before gets its first answer again.
            version: a version number; alias: champion, challenger or previous.
            text: the values came as text, so numeric text counts as numbers.
            timeout: seconds until `TimedOut`, checked before the model is called.

        Returns:
            One prediction per row. They are logged as the model's `log` option says.

        Raises:
            UnknownModel, UnknownVersion, NotReady, InvalidInput, ModelFailed, Overloaded.
        """
        limit = self.settings.timeout if timeout is None else timeout
        return self.serving.predict(
            Ask(model, value, text, ids, version, alias, time.monotonic() + limit, caller)
        )

    def outcome(
        self, model: str, items: Sequence[Any], *, text: bool = False, caller: Caller = TRUSTED
    ) -> dict[str, Any]:
        """Tell what became true, by prediction id.

        Args:
            items: mappings with `id`, `outcome` and perhaps `at` (seconds since the epoch or
                ISO 8601): when it became true.

        Returns:
            Counts by status and `results`, one {"id", "status"} per item, in order.

        Raises:
            InvalidInput: an item is not right; then none was taken.
            Unavailable: the log is away; nothing was acknowledged.
        """
        access.check(caller, "outcome")
        record = self._record(model)
        facts = outcome_facts(msgspec.convert(record.schema, Schema), items, text)
        if len(facts) > self.settings.max_rows:
            raise TooLarge(f"at most {self.settings.max_rows} outcomes in one request")
        events = [
            outcome_event(model, fact, key)
            for fact, key in zip(facts, new_ids(len(facts)), strict=True)
        ]
        receipts = self._durably(events)
        statuses = [receipts.get(event.key, OutcomeStatus.ACCEPTED) for event in events]
        counts = {status.value: statuses.count(status) for status in OutcomeStatus}
        self.metrics.each("loopline_outcomes_total", model, counts)
        results = [
            {"id": fact.id, "status": str(status)}
            for fact, status in zip(facts, statuses, strict=True)
        ]
        return {**counts, "results": results}

    def learn(
        self, model: str, value: Any, *, text: bool = False, caller: Caller = TRUSTED
    ) -> dict[str, Any]:
        """Add labelled rows to the model's data set: all of them, or none.

        Args:
            value: one row or many: mappings with every column, or lists in column order.

        Returns:
            {"accepted": rows taken, "rows": rows in the data set, "summary": count, mean, std,
            min and max by numeric column}; the last two are None if the join is far behind.

        Raises:
            InvalidInput: a row is not right; nothing was taken.
        """
        access.check(caller, "learn")
        record = self._record(model)
        if record.target is None:
            raise WrongState(f"model {model!r} has no target column, so it cannot learn")
        pairs = msgspec.convert(record.schema, Schema).labelled(value, text=text)
        if len(pairs) > self.settings.max_rows:
            raise TooLarge(f"at most {self.settings.max_rows} rows in one request")
        now = time.time()
        events = [
            example_event(model, row, label, now, key)
            for (row, label), key in zip(pairs, new_ids(len(pairs)), strict=True)
        ]
        passed = len(self._durably(events)) == len(events)
        self.metrics.add("loopline_learned_rows_total", len(events), (model,))
        rows, summary = self._data_set(record) if passed else (None, None)
        return {"accepted": len(events), "rows": rows, "summary": summary}

    def train(
        self,
        model: str,
        *,
        parameters: dict[str, Any] | None = None,
        wait: float | None = None,
        reason: str = "by hand",
        caller: Caller = TRUSTED,
    ) -> Job:
        """Queue a training on everything known now.

        Args:
            parameters: set on the recipe for this run.
            wait: seconds to wait for its end.

        Returns:
            The job as it is then.

        Raises:
            WrongState: the model cannot be fitted, or there is nothing to train it on.
        """
        access.check(caller, "train")
        record = self._record(model)
        if record.recipe is None:
            raise WrongState(f"model {model!r} cannot be trained: it has no fit method")
        seq = self.store.books(model).seq
        if record.dataset is None and seq == 0:
            raise WrongState(
                f"model {model!r} has no data yet: send rows to /v1/models/{model}/learn first"
            )
        payload = {"upto": seq, "parameters": parameters or {}}
        job = self.store.submit(
            Job(id=new_id(), kind="train", model=model, payload=payload, reason=reason)
        )
        self.metrics.add("loopline_trainings_total", 1.0, (model,))
        self.doorbell.ring()
        return self._await_job(job.id, wait) if wait else job

    # Versions: promote, rollback, score.

    def promote(self, model: str, version: int, *, caller: Caller = TRUSTED) -> Decision:
        """Let a version answer; the former champion becomes `previous`.

        Raises:
            UnknownVersion: there is none of that number.
            WrongState: it is the champion already.
        """
        access.check(caller, "train")
        self._version(model, version)
        aliases = self.store.aliases(model)
        if aliases.champion == version:
            raise WrongState(f"version {version} of model {model!r} is the champion already")
        reason = f"version {version} was promoted by {caller.name}"
        return self._move(model, aliases, version, "promote", reason)

    def rollback(self, model: str, *, caller: Caller = TRUSTED) -> Decision:
        """Let the previous champion answer again, at once.

        Raises:
            WrongState: there is no previous champion.
        """
        access.check(caller, "train")
        self._record(model)
        aliases = self.store.aliases(model)
        if aliases.previous is None:
            raise WrongState(f"model {model!r} has no previous version to go back to")
        reason = f"rolled back from version {aliases.champion} by {caller.name}"
        return self._move(model, aliases, aliases.previous, "rollback", reason)

    def _move(
        self, model: str, aliases: Aliases, version: int, verdict: str, reason: str
    ) -> Decision:
        moved = Aliases(champion=version, previous=aliases.champion, challenger=aliases.challenger)
        decision = Decision(
            model=model,
            verdict=verdict,
            reason=reason,
            at=self.store.now(),
            candidate=version,
            champion=aliases.champion,
            promoted=True,
            by="person",
        )
        self.store.point(model, moved, aliases.epoch, decision)
        self.doorbell.ring()
        self.serving.refresh()
        return self.store.decisions(model)[-1]

    def score(
        self,
        model: str,
        value: Any = None,
        *,
        version: int | None = None,
        text: bool = False,
        caller: Caller = TRUSTED,
    ) -> dict[str, Any]:
        """Score a version on labelled rows: those given, or else those it was not trained on.

        Without rows and without examples after its training, the data set itself is used, and
        `on` says so.

        Returns:
            {"model", "version", "on", "rows", "metrics"}.
        """
        access.check(caller, "predict")
        record = self._record(model)
        loaded = self.serving.loaded(model, version)
        if value is not None:
            pairs, on = loaded.schema.labelled(value, text=text), "given rows"
        else:
            fresh = self.store.examples(model, loaded.version.upto, None, self.settings.max_rows)
            pairs, on = [(e.row, e.label) for e in fresh], "examples after its training"
        if not pairs:
            pairs, on = self._training_rows(record), "data set"
        if not pairs:
            raise WrongState(f"model {model!r} has no labelled rows to score on; give some")
        metrics = measure(loaded.adopted, loaded.schema, record.task, pairs)
        number = loaded.version.number
        return {"model": model, "version": number, "on": on, "rows": len(pairs), "metrics": metrics}

    def _training_rows(self, record: ModelRecord) -> list[tuple[Any, Any]]:
        pairs = base_pairs(record, self.blobs)
        pairs += [(e.row, e.label) for e in self.store.examples(record.name)]
        return pairs

    # Jobs and models.

    def cancel(self, id: str, *, caller: Caller = TRUSTED) -> dict[str, Any]:
        """Cancel a queued job; ask a running one to stop."""
        access.check(caller, "train")
        job = self.store.cancel(id)
        self.doorbell.ring()
        return show_job(job)

    def add(
        self, name: str, definition: dict[str, Any], *, caller: Caller = TRUSTED
    ) -> dict[str, Any]:
        """Add a model, or replace its definition, while running.

        Args:
            definition: plain data, as in `loopline.toml`; see `registry.define`.

        Returns:
            The model's description.
        """
        access.check(caller, "admin")
        self.registry.register(define(name, definition, "api"))
        self.serving.refresh()
        return self.describe(name)

    def remove(self, model: str, *, caller: Caller = TRUSTED) -> None:
        """Remove a model with everything known of it; its event log is left to retention."""
        access.check(caller, "admin")
        self._record(model)
        self.store.drop_model(model)
        self.doorbell.ring()
        self.serving.refresh()

    # Shared steps.

    def _durably(self, events: Sequence[Event]) -> dict[str, str]:
        """Append, then wait for the join to pass them: receipts by event key, as far as it got."""
        self.log.append(events)
        self.doorbell.ring()
        keys = [event.key for event in events]
        found: dict[str, str] = {}

        def passed() -> bool:
            found.update(self.store.receipts(keys[-1:]))
            return bool(found)

        self._until(passed, self.settings.outcome_wait)
        return self.store.receipts(keys)

    def _data_set(self, record: ModelRecord) -> tuple[int, dict[str, dict[str, Any]]]:
        books = self.store.books(record.name)
        base = msgspec.convert(record.options.get("base_moments", {}), dict[str, Moments])
        names = [*base, *(name for name in books.moments if name not in base)]
        moments = {
            name: merge(base.get(name, Moments()), books.moments.get(name, Moments()))
            for name in names
        }
        return record.options.get("base_rows", 0) + books.examples, summarise(moments)
