"""The models of a loop as one ZeroRPC service: `{model}_predict` and the other verbs, as methods.

They follow the models that are served. The plain `learn`, `train` and `predict` are those of the
default model, which is the one that was added first.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from math import inf
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from loopline.access import Caller
from loopline.adapters.status import ENDED, job_error
from loopline.adapters.zerorpc import Call, Limits, Server, Told
from loopline.adapters.zerorpc_wire import Method
from loopline.asks import Answer, Answered, Ask, take_ids
from loopline.errors import (
    InvalidInput,
    LooplineError,
    Unauthorized,
    UnknownModel,
    WrongState,
)
from loopline.fields import DEEPEST, Output
from loopline.loop import Loop
from loopline.records import ModelRecord, new_id
from loopline.schema import Schema
from loopline.settings import data_path

logger = logging.getLogger("loopline.zerorpc")

CHUNK = 100
"""Rows of a stream that are predicted at a time."""
DOCS = {
    "predict": "Predict with the {}.",
    "predict_stream": "Predict many rows with the {}, and stream the answers.",
    "learn": "Add labelled rows to the data set of the {}.",
    "train": "Train the {} on everything known now, and wait for the end of it.",
    "outcome": "Tell what became true of predictions of the {}.",
    "score": "Score the {} on labelled rows, or on those that it was not trained on.",
}
_SCALARS = frozenset({float, int, str, bool, type(None)})

Show = Callable[[Answered], Any]


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """What the last argument of a prediction may say."""

    ids: list[str] | None = None
    version: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    alias: str | None = None
    timeout: Annotated[float, Meta(ge=0.001, le=3600.0)] | None = None
    probabilities: bool = False


_NONE = Options()


def create(loop: Loop) -> Listener:
    """Make the ZeroRPC server of a loop's models, at the endpoint that its settings name.

    Raises:
        InvalidInput: the endpoint is none, or may not be open without keys.
    """
    settings = loop.settings
    limits = Limits(settings.max_queue, settings.max_body, held=settings.max_buffer)
    return Listener(
        Service(loop),
        settings.zerorpc,
        name="loopline",
        keys=settings.zerorpc_keys,
        insecure=settings.insecure,
        limits=limits,
        tell=partial(tell, debug=settings.debug),
    )


class Listener(Server):
    """The server of one installation: a successor listens as soon as its predecessor has left."""

    _methods: Service

    async def start(self) -> None:
        """Listen, or wait in the background for the process of this slot that still does."""
        root = data_path(self._methods.loop.settings)
        root.mkdir(parents=True, exist_ok=True)
        self._lock = (root / "zerorpc.lock").open("ab")
        self._succession: asyncio.Task[None] | None = None
        if self._alone():
            await super().start()
        else:
            self._succession = asyncio.create_task(self._succeed())

    def _alone(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def _succeed(self) -> None:
        while not self._alone():
            await asyncio.sleep(0.01)
        try:
            await super().start()
        except LooplineError as error:
            logger.error("%s", error.detail)
            await asyncio.Event().wait()

    async def stop(self, grace: float) -> None:
        """Stop as a server does, then let the successor listen."""
        if self._succession is not None and not self._succession.done():
            self._succession.cancel()
        else:
            await super().stop(grace)
        self._lock.close()


class Service(Mapping[str, Method]):
    """The methods of the models that are served at the moment."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._made: dict[str, Method] = {}
        plain = (self.get_models, self.get_model_metadata, self.learn, self.train, self.predict)
        self._plain = {each.__name__: Method(each, with_call=True) for each in plain}

    def __getitem__(self, name: str) -> Method:
        found = self._plain.get(name) or self._made.get(name)
        if found is None:
            model, verb = _split(name)
            record = next((each for each in self._records() if each.name == model), None)
            doc = DOCS[verb].format(_title(model))
            if record is not None and record.description:
                doc = f"{doc}\n\n{record.description}"
            found = Method(partial(getattr(self, f"_{verb}"), model), doc, with_call=True)
            if record is not None:
                self._made[name] = found
        return found

    def __iter__(self) -> Iterator[str]:
        self._made.clear()
        yield from self._plain
        for record in self._records():
            able = ["predict", "predict_stream", "outcome"]
            able += ["learn", "score"] if record.target is not None else []
            able += ["train"] if record.recipe is not None else []
            yield from (f"{record.name}_{verb}" for verb in able)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _records(self) -> list[ModelRecord]:
        return [service.record for service in self.loop.serving.services()]

    def _default(self) -> str:
        records = self._records()
        if not records:
            raise UnknownModel("there are no models here yet")
        return min(records, key=lambda record: (record.created, record.name)).name

    async def _caller(self, call: Call) -> Caller:
        token, access = call.header.get("auth"), self.loop.access
        if access.required and (type(token) is not str or not token):
            raise Unauthorized("a token is needed: send it as `auth` in the header of the event")
        found: Caller = access.recall(token) or await call.run(access.identify, token)
        return found

    async def _verb(self, call: Call, verb: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return await call.run(verb, *args, caller=await self._caller(call), **more)

    # Predictions.

    def predict(self, call: Call, data: Any) -> Awaitable[Any] | None:
        """Predict with the default model: the bare answer, or a list of them for many rows."""
        return self._ask(self._default(), call, data, None, _bare)

    def _predict(
        self, model: str, call: Call, data: Any, options: Any = None
    ) -> Awaitable[Any] | None:
        return self._ask(model, call, data, options, _show)

    def _ask(
        self, model: str, call: Call, data: Any, options: Any, show: Show
    ) -> Awaitable[Any] | None:
        """Queue a request; it is answered with its turn's batch."""
        ask = self._read(model, data, options)
        token = call.header.get("auth")
        caller = self.loop.access.recall(token) if token is None or type(token) is str else None
        if caller is None or options is not None:
            return self._ask_slowly(call, ask, _options(options), show)
        ask.caller = caller
        self.loop.serving.enqueue(_Waiting(ask, call, show))
        return None

    async def _ask_slowly(self, call: Call, ask: Ask, options: Options, show: Show) -> Any:
        ask.caller = await self._caller(call)
        self._check(ask.model, options)
        answered = await self.loop.serving.submit(ask)
        return _show(answered, True) if options.probabilities else show(answered)

    def _check(self, model: str, options: Options) -> None:
        able = self.loop.serving.service(model).record.capabilities
        if options.probabilities and "predict_proba" not in able:
            raise InvalidInput.at(f"model {model!r} does not give probabilities", "?probabilities")

    def _read(self, model: str, data: Any, given: Any) -> Ask:
        options = _options(given)
        value, ids = take_ids(_lists(data), options.ids)
        deadline = time.monotonic() + (options.timeout or self.loop.settings.timeout)
        return Ask(model, value, False, ids, options.version, options.alias, deadline)

    async def _predict_stream(
        self, model: str, call: Call, rows: Any, options: Any = None
    ) -> AsyncIterator[Any]:
        """Predict chunk by chunk as the client takes them; one bad row refuses them all."""
        ask, wanted = self._read(model, rows, options), _options(options)
        ask.caller = await self._caller(call)
        limit, rows, ids = (ask.deadline or inf) - time.monotonic(), ask.value, ask.ids
        self._check(model, wanted)
        loaded = await call.run(self.loop.serving.loaded, model, ask.version, ask.alias)
        if type(rows) is not list:
            raise InvalidInput.at("a stream takes an array of rows", "")
        await call.run(loaded.schema.parse, rows)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            until = time.monotonic() + limit
            again = {"value": rows[part], "ids": ids and ids[part], "deadline": until}
            answered = await self.loop.serving.submit(msgspec.structs.replace(ask, **again))
            for shown in _show(answered, wanted.probabilities):
                yield shown

    # The other verbs.

    async def get_models(self, call: Call) -> Any:
        """List the models that are served."""
        return [_named(each) | each for each in await self._verb(call, self.loop.models)]

    async def get_model_metadata(self, call: Call, qualified_name: str) -> Any:
        """Describe a model: its schemas, versions, and what it can do."""
        told = await self._verb(call, self.loop.describe, qualified_name)
        schema = msgspec.convert(self.loop.serving.service(qualified_name).record.schema, Schema)
        answers = {} if schema.output is None else _output(schema.output)
        return _named(told) | told | {"input_schema": told["schema"], "output_schema": answers}

    async def learn(self, call: Call, row: Any) -> str:
        """Add a row, in the order of the columns, to the default model's data: their summary."""
        flat = type(row) is list and not any(isinstance(each, dict | list) for each in row)
        model, row = self._default(), _lists(row)
        told = await self._verb(call, self.loop.learn, model, row, text=flat)
        return msgspec.json.encode(told["summary"]).decode()

    async def _learn(self, model: str, call: Call, rows: Any) -> Any:
        return await self._verb(call, self.loop.learn, model, _lists(rows))

    async def train(self, call: Call) -> Any:
        """Train the default model on everything known now: the report, as HTML if it has one."""
        model = self._default()
        told = await self._train(model, call)
        try:
            report = await self._verb(call, self.loop.report, model, version=told.get("version"))
        except WrongState:
            return told
        return report["html"]

    async def _train(
        self, model: str, call: Call, parameters: Any = None, wait: float = inf
    ) -> dict[str, Any]:
        if not (parameters is None or type(parameters) is dict):
            raise InvalidInput.at("is an object of names and values", "/parameters")
        job = await self._verb(call, self.loop.train, model, parameters=parameters)
        until, pause = time.monotonic() + wait, 0.05
        while True:
            shown = await self._verb(call, self.loop.job, job.id)
            if shown["state"] in ENDED or time.monotonic() >= until:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        told = {"job": job.id, "state": shown["state"]}
        if shown["state"] == "failed":
            raise job_error(shown["error"] or {})
        if shown["state"] != "done":
            return told
        result = shown["result"] or {}
        found = await self._verb(call, self.loop.decisions, model)
        decision = next((each for each in found if each["number"] == result.get("decision")), None)
        metrics = result.get("metrics", {})
        return told | {"version": result.get("version"), "metrics": metrics, "decision": decision}

    async def _outcome(self, model: str, call: Call, items: Any) -> Any:
        given = items if type(items) is list else [items]
        return await self._verb(call, self.loop.outcome, model, given)

    async def _score(self, model: str, call: Call, rows: Any = None, version: Any = None) -> Any:
        checked = _options({"version": version}).version
        return await self._verb(call, self.loop.score, model, _lists(rows), version=checked)


class _Waiting:
    """A call that waits for its prediction."""

    __slots__ = ("ask", "call", "show")

    def __init__(self, ask: Ask, call: Call, show: Show) -> None:
        self.ask = ask
        self.call = call
        self.show = show

    @property
    def gone(self) -> bool:
        return self.call.ended

    def settle(self, answer: Answer) -> None:
        if isinstance(answer, LooplineError):
            self.call.fail(answer)
        else:
            self.call.reply(self.show(answer))


def _show(answered: Answered, probabilities: bool = False) -> Any:
    """One map for a row, a list of them for many; the names are those of HTTP."""
    shown = []
    for each in answered.predictions:
        row = {
            "model": answered.model,
            "version": each.version,
            "id": each.id,
            "prediction": each.output,
        }
        own = each.version == answered.version  # else an earlier answer, of other classes perhaps
        if probabilities and own and each.probabilities is not None and answered.classes:
            row["probabilities"] = dict(zip(answered.classes, each.probabilities, strict=True))
        shown.append(row)
    return shown if answered.many else shown[0]


def _bare(answered: Answered) -> Any:
    outputs = [each.output for each in answered.predictions]
    return outputs[0] if len(outputs) == 1 else outputs


def _lists(value: Any, depth: int = 0) -> Any:
    """A value with lists for the typed arrays in it; most have none, and stay as they are."""
    if type(value) is dict:
        if _SCALARS.issuperset(map(type, value.values())):
            return value
        if depth < DEEPEST:
            return {key: _lists(inner, depth + 1) for key, inner in value.items()}
    elif type(value) is list and depth < DEEPEST:
        return [_lists(inner, depth + 1) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _options(given: Any) -> Options:
    if given is None:
        return _NONE
    try:
        return msgspec.convert(given, Options)
    except msgspec.ValidationError as error:
        found = re.search(r"\$\.(\w+)", str(error))
        raise InvalidInput.at(str(error), f"?{found[1]}" if found else "") from error


def _split(name: str) -> tuple[str, str]:
    for verb in DOCS:
        model = name.removesuffix(f"_{verb}")
        if model and model != name:
            return model, verb
    raise KeyError(name)


def _title(model: str) -> str:
    """What introspection calls a model: `iris` is the Iris Model."""
    words = model.replace("_", " ").title()
    return words if words.endswith("Model") else f"{words} Model"


def _output(output: Output) -> dict[str, Any]:
    """The JSON Schema of a model's answers."""
    if output.categories:
        return {"title": output.name, "enum": list(output.categories)}
    kind = "string" if output.kind == "text" else output.kind
    return {"title": output.name} | ({} if kind == "any" else {"type": kind})


def _named(shown: dict[str, Any]) -> dict[str, Any]:
    """A model by the names that services of this kind use."""
    return {
        "display_name": _title(shown["name"]),
        "qualified_name": shown["name"],
        "major_version": shown["champion"],
        "minor_version": 0,
    }


def tell(error: BaseException, debug: bool = False) -> Told:
    """An error by its class, with its fields for people in the text and for programs beside it."""
    id, lines = new_id(), None
    if not isinstance(error, LooplineError) or error.code == "model-failed":
        logger.error("%s: %s", id, error, exc_info=error)
        lines = "".join(traceback.format_exception(error)) if debug else None
    if not isinstance(error, LooplineError):
        told = f"something went wrong here; the log has the details under {id}"
        return Told("InternalError", told, lines, {"code": "internal-error"})
    rest = [f"{e.pointer}: {e.detail}" for e in error.fields if e.detail not in error.detail]
    header: dict[str, Any] = {"code": error.code}
    if error.fields:
        header["errors"] = [{"pointer": e.pointer, "detail": e.detail} for e in error.fields]
    if error.retry_after is not None:
        header["retry_after"] = error.retry_after
    return Told(type(error).__name__, "; ".join([error.detail, *rest]), lines, header)
