"""The hot path: versions in memory, micro-batches, the swap.

`Serving.answer` is the only place that validates rows, picks the version, calls the model, makes
ids and hands log rows over. Asynchronous adapters reach it through `Serving.submit`: requests that
arrived in the same turn of the event loop are answered by one vectorised call, and while a call
runs on the thread newcomers gather for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from loopline import access, codecs
from loopline.artifacts import Keys
from loopline.artifacts import load as load_artifact
from loopline.asks import (
    Alarm,
    Answer,
    Answered,
    Ask,
    Awaited,
    Span,
    Waiter,
    check_ids,
    expire,
    far,
    grouped,
    refuse_all,
    settle_all,
    take_ids,
)
from loopline.contracts import BlobStore, EventLog, Store
from loopline.errors import (
    InvalidInput,
    LooplineError,
    ModelFailed,
    NotReady,
    Overloaded,
    TimedOut,
    TooLarge,
    UnknownModel,
    UnknownVersion,
)
from loopline.facts import prediction_events, predictions_topic, read_prediction
from loopline.fields import Field
from loopline.metrics import Metrics
from loopline.model import Adopted
from loopline.records import Aliases, Event, ModelRecord, Prediction, Row, Version, new_ids
from loopline.schema import Schema
from loopline.settings import Settings

logger = logging.getLogger("loopline.serving")

INLINE_LIMIT = 0.005
"""Seconds: a model of a known quick kind whose calls take longer moves to the thread."""
RESIDENT = 4
"""How many versions beside the aliased ones stay in memory."""
WAIT = 0.005
"""Seconds between two attempts to hand rows to a full log."""


class Loaded:
    """One version in memory, with what it costs."""

    def __init__(self, record: ModelRecord, version: Version, adopted: Adopted) -> None:
        self.record = record
        self.version = version
        self.adopted = adopted
        self.schema = msgspec.convert(record.schema, Schema)
        self.decode = self.schema.decoder()
        self._cheap = adopted.cheap
        self.seconds = 0.0
        self._lock = threading.Lock()

    @property
    def inline(self) -> bool:
        """Whether its calls are short enough for the event loop."""
        sync = self.record.options.get("log") == "sync"
        return self._cheap and self.seconds < INLINE_LIMIT and not sync

    def call(self, rows: Sequence[Row]) -> tuple[list[Any], list[tuple[float, ...]] | None]:
        """Call the model once for all rows, timing it."""
        with self._lock:
            began, worked = time.perf_counter(), time.process_time()
            answers = self.adopted.answer(self.schema, rows)
            # On a busy machine the clock on the wall says more than was worked, in any thread.
            took = min(time.perf_counter() - began, time.process_time() - worked)
            self.seconds += 0.2 * (took - self.seconds)
        return answers.outputs, answers.probabilities

    def warm_up(self) -> None:
        """Call the model with an example row, so that the first caller does not pay for it."""
        row = tuple(map(_example, self.schema.fields))
        if self.schema.open or not row:
            return
        try:
            self.call([row])
            self.seconds = 0.0
            self.call([row])
        except ModelFailed as error:
            logger.warning("%s version %d: %s", self.record.name, self.version.number, error)


class Service:
    """One model as it is served now: its versions in memory and the requests that wait."""

    def __init__(self, record: ModelRecord) -> None:
        self.record = record
        self.aliases = Aliases()
        self.resident: OrderedDict[int, Loaded] = OrderedDict()
        self.champion: Loaded | None = None
        self.trouble: str | None = None
        self.queue: list[Waiter] = []
        self.timers: list[asyncio.TimerHandle] = []
        self.running = 0
        self.armed = False

    def why_not(self) -> str | None:
        """Why this model cannot answer, None when it can."""
        if self.trouble:
            return self.trouble
        if self.champion is not None:
            return None
        name = self.record.name
        if self.record.dataset or self.record.recipe is None:
            return f"model {name!r} has no version in service yet; its training has not finished"
        return (
            f"model {name!r} is not fitted yet: send rows to /v1/models/{name}/learn and then "
            f"POST /v1/models/{name}/train, or run `loopline train {name} DATA --target COLUMN`"
        )


class Serving:
    """All models of one process.

    Args:
        store, log, blobs, keys: where versions come from and predictions go.
        settings: bounds and default deadline.
        metrics: what is counted.
    """

    def __init__(
        self,
        store: Store,
        log: EventLog,
        blobs: BlobStore,
        keys: Keys,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._log = log
        self._blobs = blobs
        self._keys = keys
        self._settings = settings
        self._metrics = metrics
        self._services: dict[str, Service] = {}
        self._seen = -1
        self._refreshing = threading.Lock()
        self._thread = self._new_thread()

    def _new_thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="predict")

    # Following the store.

    def refresh(self, force: bool = False) -> bool:
        """Load what the store's aliases name, then swap: one reference, between two batches.

        Returns:
            Whether anything changed.
        """
        with self._refreshing:
            revision = self._store.revision()
            if revision == self._seen and not force:
                return False
            records = {record.name: record for record in self._store.models()}
            for name in self._services.keys() - records.keys():
                del self._services[name]
            for record in records.values():
                self._follow(record)
            self._seen = revision
            return True

    def _follow(self, record: ModelRecord) -> None:
        service = self._services.get(record.name)
        if service is None:
            service = Service(record)
            self._services[record.name] = service
        elif service.record.schema != record.schema:
            service.resident = OrderedDict()
        service.record = record
        for loaded in service.resident.values():
            loaded.record = record
        service.aliases = self._store.aliases(record.name)
        number = service.aliases.champion
        if number is None:
            service.champion = None
            return
        try:
            began, before = time.perf_counter(), service.champion
            service.champion = self._load(service, number)
            service.trouble = None
            if service.champion is not before:
                seconds = time.perf_counter() - began
                self._metrics.observe("loopline_swap_duration_seconds", seconds, (record.name,))
        except LooplineError as error:
            logger.error("%s version %d was not loaded: %s", record.name, number, error)
            if service.champion is None:
                service.trouble = f"version {number} could not be loaded: {error.detail}"

    def _load(self, service: Service, number: int) -> Loaded:
        loaded = service.resident.get(number)
        if loaded is None:
            version = self._store.version(service.record.name, number)
            if version is None:
                raise UnknownVersion(f"model {service.record.name!r} has no version {number}")
            adopted = load_artifact(version.artifact, self._blobs, self._keys)
            loaded = Loaded(service.record, version, adopted)
            loaded.warm_up()
        service.resident[number] = loaded
        service.resident.move_to_end(number)
        keep = {service.aliases.champion, service.aliases.previous, service.aliases.challenger}
        spare = [n for n in service.resident if n not in keep and n != number]
        for old in spare[: max(0, len(spare) - RESIDENT)]:
            service.resident.pop(old, None)
        return loaded

    def service(self, model: str) -> Service:
        """The model as it is served now.

        Raises:
            UnknownModel: it is not served here; the message lists those that are.
        """
        service = self._services.get(model)
        if service is None:
            self.refresh()
            service = self._services.get(model)
        if service is None:
            names = ", ".join(sorted(self._services)) or "none yet"
            raise UnknownModel(f"there is no model {model!r}; models here: {names}")
        return service

    def can_answer(self, model: str) -> bool:
        """Whether a champion stands ready, as far as this process knows."""
        service = self._services.get(model)
        return service is not None and service.champion is not None and service.trouble is None

    def services(self) -> list[Service]:
        """All models, by name."""
        return [self._services[name] for name in sorted(self._services)]

    def loaded(self, model: str, version: int | None = None, alias: str | None = None) -> Loaded:
        """The version that answers a request, loaded if need be.

        Raises:
            UnknownModel, UnknownVersion, NotReady: as their names say.
        """
        service = self.service(model)
        number = self._number(service, version, alias)
        if number is None:
            if service.champion is None:
                self.refresh()
            why = service.why_not()
            if why is not None or service.champion is None:
                raise NotReady(why)
            return service.champion
        return service.resident.get(number) or self._load(service, number)

    def _number(self, service: Service, version: int | None, alias: str | None) -> int | None:
        if version is not None and alias is not None:
            raise InvalidInput.at("give a version or an alias, not both", "?alias")
        if alias is None:
            return version
        if alias not in ("champion", "challenger", "previous"):
            told = f"{alias!r} is not an alias; there are champion, challenger and previous"
            raise InvalidInput.at(told, "?alias")
        number: int | None = getattr(service.aliases, alias)
        if number is None and alias != "champion":
            raise UnknownVersion(f"model {service.record.name!r} has no {alias}")
        return number

    # The verb, in two colours.

    def predict(self, ask: Ask) -> Answered:
        """Answer one request in the calling thread."""
        access.check(ask.caller, "predict")
        answer = self.answer(self.loaded(ask.model, ask.version, ask.alias), [ask])[0]
        if isinstance(answer, LooplineError):
            raise answer
        return answer

    def submit(self, ask: Ask) -> asyncio.Future[Answered]:
        """Queue one request of this event loop, and await its answer.

        Raises:
            Overloaded: as many requests wait for this model as settings allow.
        """
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self.enqueue(Awaited(ask, future))
        return future

    def enqueue(self, waiter: Waiter) -> None:
        """Queue one request of this event loop; it is answered with its turn's batch.

        Raises:
            Overloaded: as many requests wait for this model as settings allow.
        """
        ask = waiter.ask
        access.check(ask.caller, "predict")
        service = self.service(ask.model)
        if service.trouble is not None:
            raise NotReady(service.trouble, retry_after=1.0)
        if len(service.queue) >= self._settings.max_queue:
            self._metrics.add("loopline_shed_total", 1.0, (ask.model, "queue"))
            raise Overloaded(
                f"{len(service.queue)} requests wait for model {ask.model!r} already",
                retry_after=1.0,
            )
        service.queue.append(waiter)
        if service.running:
            left = (ask.deadline or far()) - time.monotonic()
            timer = asyncio.get_running_loop().call_later(max(0.0, left), expire, waiter)
            service.timers.append(timer)
        elif not service.armed:
            self._arm(service, asyncio.get_running_loop())

    def _arm(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        if service.queue and not service.armed and not service.running:
            service.armed = True
            loop.call_soon(self._flush, service, loop)

    def _flush(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        service.armed = False
        waiting, service.queue = service.queue, []
        while service.timers:  # each would keep its request until it rings
            service.timers.pop().cancel()
        for key, group in grouped(waiting).items():
            try:
                loaded = self._ready(service, *key)
                if loaded is not None and loaded.inline and not self._log_is_filling():
                    asks = [waiter.ask for waiter in group]
                    settle_all(group, self.answer(loaded, asks, patient=False))
                else:
                    self._cross(service, loop, group, key)
            except LooplineError as error:
                refuse_all(group, error)
            except Exception as error:  # whatever it is, every caller gets an answer
                refuse_all(group, _failed(error))

    def _log_is_filling(self) -> bool:
        """Whether to answer on the thread, because there may be a wait for the log."""
        settings = self._settings
        return settings.log_full == "wait" and self._log.buffered > settings.max_buffer // 2

    def _ready(self, service: Service, version: int | None, alias: str | None) -> Loaded | None:
        """The version if it is in memory; None when the thread has to look for it first."""
        number = self._number(service, version, alias)
        return service.champion if number is None else service.resident.get(number)

    def _cross(
        self,
        service: Service,
        loop: asyncio.AbstractEventLoop,
        group: list[Waiter],
        key: tuple[int | None, str | None],
    ) -> None:
        """Answer on the thread; meanwhile newcomers gather."""
        service.running += 1
        asks = [waiter.ask for waiter in group]

        def work() -> Sequence[Answer]:
            return self.answer(self.loaded(service.record.name, *key), asks)

        running: Future[Sequence[Answer]] = self._thread.submit(work)
        alarm = Alarm(loop, lambda: self._hung(service, running, group, alarm))
        alarm.set(group)

        def done(finished: Future[Sequence[Answer]]) -> None:
            loop.call_soon_threadsafe(self._crossed, service, loop, group, finished, alarm)

        running.add_done_callback(done)

    def _crossed(
        self,
        service: Service,
        loop: asyncio.AbstractEventLoop,
        group: list[Waiter],
        finished: Future[Sequence[Answer]],
        alarm: Alarm,
    ) -> None:
        alarm.cancel()
        service.running -= 1
        service.trouble = None
        if finished.cancelled():
            refuse_all(group, TimedOut("the model was busy until the deadline had passed"))
        elif (error := finished.exception()) is not None:
            refuse_all(group, error if isinstance(error, LooplineError) else _failed(error))
        else:
            settle_all(group, finished.result())
        self._arm(service, loop)

    def _hung(
        self, service: Service, running: Future[Sequence[Answer]], group: list[Waiter], alarm: Alarm
    ) -> None:
        """A deadline passed: answer those callers, and give other models a thread of their own."""
        now = time.monotonic()
        late = [waiter for waiter in group if (waiter.ask.deadline or far()) <= now]
        refuse_all(late, TimedOut("the model did not answer before the deadline"))
        self._metrics.add("loopline_timeouts_total", 1.0, (service.record.name,))
        alarm.set([waiter for waiter in group if not waiter.gone])
        if running.done() or service.trouble is not None or not running.running():
            return
        name = service.record.name
        logger.error("model %s hangs; other models go on", name)
        service.trouble = f"model {name!r} has not come back from a call; it is tried again then"
        waiting, service.queue = service.queue, []
        refuse_all(waiting, NotReady(service.trouble, retry_after=1.0))
        abandoned, self._thread = self._thread, self._new_thread()
        abandoned.shutdown(wait=False)

    # The one place.

    def answer(self, loaded: Loaded, asks: Sequence[Ask], patient: bool = True) -> list[Answer]:
        """Validate, predict, make ids, hand the log rows over: one call of the model for all.

        Args:
            loaded: the version that answers.
            asks: requests for it; each gets its own answer or its own error.
            patient: whether this thread may wait for a full log where the settings say so.

        Returns:
            One answer per request, in order. A prediction is in the log's hands (or committed,
            with `log="sync"`) when this returns.
        """
        began = time.perf_counter()
        answers: list[Answer | None] = [None] * len(asks)
        rows: list[Row] = []
        spans: list[Span] = []
        now = time.monotonic()
        for index, ask in enumerate(asks):
            try:
                parsed, many = self._parse(loaded, ask, now)
            except LooplineError as error:
                answers[index] = error
                continue
            spans.append((index, len(rows), len(rows) + len(parsed), many))
            rows.extend(parsed)
        if rows:
            self._fill(loaded, asks, rows, spans, answers, patient)
        seconds = time.perf_counter() - began
        final = [answer for answer in answers if answer is not None]
        self._count(loaded, final, rows, seconds)
        return final

    def _parse(self, loaded: Loaded, ask: Ask, now: float) -> tuple[list[Row], bool]:
        if ask.deadline is not None and ask.deadline <= now:
            raise TimedOut("the deadline passed before the model was asked")
        rows, many = _read(loaded, ask)
        if len(rows) > self._settings.max_rows:
            raise TooLarge(
                f"{len(rows)} rows in one request; at most {self._settings.max_rows} are taken"
            )
        if ask.ids is not None:
            check_ids(ask.ids, len(rows))
        return rows, many

    def _fill(
        self,
        loaded: Loaded,
        asks: Sequence[Ask],
        rows: list[Row],
        spans: list[Span],
        answers: list[Answer | None],
        patient: bool,
    ) -> None:
        outputs, chances, failed = self._call(loaded, rows, spans)
        model, version, at = loaded.record.name, loaded.version.number, time.time()
        predictions = [
            Prediction(
                id=id,
                model=model,
                version=version,
                output=output,
                at=at,
                row=row,
                probabilities=chance,
            )
            for id, row, output, chance in zip(
                new_ids(len(rows)), rows, outputs, chances, strict=True
            )
        ]
        logged = predictions
        for index, start, stop, many in spans:
            own: Sequence[Prediction] = predictions[start:stop]
            ids = asks[index].ids
            if ids is not None and index not in failed:
                own = self._first_given(loaded, ids, own)
                predictions[start:stop] = own
            answers[index] = failed.get(index) or Answered(
                model=model,
                version=version,
                predictions=tuple(own),
                many=many,
                classes=loaded.adopted.classes,
            )
        if failed:
            logged = [
                prediction
                for index, start, stop, _ in spans
                if index not in failed
                for prediction in predictions[start:stop]
            ]
        try:
            until = min(ask.deadline or far() for ask in asks) if patient else 0.0
            self._hand_over(loaded, logged, until)
        except LooplineError as error:
            for index, *_ in spans:
                answers[index] = error

    def _call(
        self, loaded: Loaded, rows: list[Row], spans: list[Span]
    ) -> tuple[list[Any], Sequence[Any], dict[int, LooplineError]]:
        """One call for all; where it raises, bisect, so that a bad row fails only its request.

        Returns:
            Outputs and probabilities (None for none) of the rows of these spans, and the errors
            of those requests that failed, whose rows have None.
        """
        first, last = spans[0][1], spans[-1][2]
        some = rows if last - first == len(rows) else rows[first:last]
        try:
            outputs, chances = loaded.call(some)
        except ModelFailed as error:
            nothing = [None] * len(some)
            if len(spans) == 1:
                return nothing, nothing, {spans[0][0]: error}
            half = len(spans) // 2
            one, two = (self._call(loaded, rows, part) for part in (spans[:half], spans[half:]))
            return [*one[0], *two[0]], [*one[1], *two[1]], one[2] | two[2]
        return outputs, chances or [None] * len(some), {}

    def _first_given(
        self, loaded: Loaded, ids: Sequence[str], predictions: Sequence[Prediction]
    ) -> list[Prediction]:
        """The predictions under the ids that the caller gave; the first answer to one stands."""
        name = loaded.record.name
        named = [
            msgspec.structs.replace(prediction, id=id)
            for id, prediction in zip(ids, predictions, strict=True)
        ]
        known = self._log.find(predictions_topic(name), ids)
        return [read_prediction(name, known[p.id]) if p.id in known else p for p in named]

    def _hand_over(self, loaded: Loaded, predictions: list[Prediction], until: float) -> None:
        mode = loaded.record.options.get("log", "async")
        if mode == "none" or not predictions:
            return
        hidden = set(loaded.record.options.get("redact", ()))
        if hidden:
            predictions = [_redacted(p, loaded.schema, hidden) for p in predictions]
        events = prediction_events(loaded.record.name, predictions)
        if mode == "sync":
            self._log.append(events)
        else:
            self._offer(loaded.record.name, events, until)

    def _offer(self, model: str, events: list[Event], until: float) -> None:
        """Offer events to the log; where its buffer is full, do what the settings say."""
        full = self._settings.log_full
        while True:
            try:
                self._log.offer(events)
                return
            except Overloaded:
                if full == "drop":
                    self._metrics.add("loopline_log_dropped_total", len(events), (model,))
                    return
                if full == "refuse" or time.monotonic() >= until:
                    self._metrics.add("loopline_shed_total", 1.0, (model, "log"))
                    raise
            time.sleep(WAIT)

    def _count(
        self, loaded: Loaded, answers: list[Answer], rows: list[Row], seconds: float
    ) -> None:
        name, version = loaded.record.name, loaded.version.number
        failed = [answer.code for answer in answers if isinstance(answer, LooplineError)]
        self._metrics.batch(name, version, len(answers), len(rows), seconds, failed)
        unseen = loaded.schema.unseen(rows)
        self._metrics.each("loopline_unseen_categories_total", name, unseen)

    def close(self) -> None:
        """Let the thread finish what it began."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _example(field: Field) -> Any:
    if field.example is not None or field.nullable:
        return field.example
    plain = {"number": 0.0, "integer": 0, "boolean": False}
    return field.categories[0] if field.categories else plain.get(field.kind, "")


def _failed(error: BaseException) -> ModelFailed:
    logger.error("a batch failed", exc_info=error)
    return ModelFailed(f"{type(error).__name__}: {error}")


def _redacted(prediction: Prediction, schema: Schema, hidden: set[str]) -> Prediction:
    row = tuple(
        None if field.name in hidden else value
        for field, value in zip(schema.fields, prediction.row, strict=True)
    )
    return msgspec.structs.replace(prediction, row=row)


def _read(loaded: Loaded, ask: Ask) -> tuple[list[Row], bool]:
    """The rows of a request, and whether it wants a list back."""
    if ask.body is not None:
        if loaded.decode is not None and ask.kind == codecs.JSON:
            try:
                return loaded.decode(ask.body)
            except msgspec.DecodeError:
                pass  # not plain rows: the long way reads them, or says what is wrong
        ask.value, ask.text = codecs.read(ask.body, ask.kind)
        ask.value, ask.ids = take_ids(ask.value, ask.ids)
    return loaded.schema.parse(ask.value, text=ask.text)
