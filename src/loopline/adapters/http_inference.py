"""The Open Inference Protocol (V2) over HTTP: its routes, and the fast lane's part of them.

Clients send JSON under any content type, with tensors as bytes behind it where the header
`Inference-Header-Content-Length` says so, and take nothing but the status 200 for success. An
error is `application/json` with the member `error`, and has the members of a problem beside it.
"""

from __future__ import annotations

import gzip
import re
import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from loopline import __version__, access, codecs
from loopline.adapters import inference
from loopline.adapters.http_openapi import FLAG, OBJECT, TEXT, WHOLE, Json, Route, many, obj
from loopline.adapters.http_predict import (
    QUERIES,
    Options,
    PredictHead,
    Waiting,
    limit_of,
    say_when,
)
from loopline.adapters.http_verbs import live
from loopline.adapters.http_wire import Answer, Desk, Headers, Refused, plain, problem, too_large
from loopline.adapters.inference import Tensor
from loopline.asks import Answered, Ask
from loopline.errors import InvalidInput, NotReady, Unreadable, WrongState
from loopline.loop import Loop
from loopline.schema import Schema

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "schedule_policy")
LENGTH = b"inference-header-content-length"
PATH = re.compile(r"/v2(/.*)?")
SMALL = 2**16
"""Bytes of a body that is read on the event loop."""
WORTH = 1024
"""Bytes of an answer that is compressed for those who accept that."""
INFER_QUERIES = tuple(query for query in QUERIES if query.name in ("alias", "timeout"))
_NEVER = re.compile(r"\s*q=0(\.0*)?\s*")
_WINDOWS = {"gzip": 31, "deflate": 15}

_encode = msgspec.json.Encoder().encode


class Wish(NamedTuple):
    """What a request wants to hear: its own id, outputs by name, and which of them as bytes."""

    schema: Schema
    id: str | None
    outputs: list[str]
    raw: frozenset[str]


def refused(error: Exception, instance: str, debug: bool = False) -> Answer:
    """Turn any exception into an error of this protocol; see `problem`.

    Clients show nothing but the text, so it begins with the stable code.
    """
    told = problem(error, instance, debug)
    members = msgspec.json.decode(told.body)  # type: ignore[arg-type]
    text = f"{members['code']}: {members['detail']}"
    return Answer(_encode({"error": text, **members}), told.status, headers=told.headers)


# A request's way in.


def read(ask: Ask, loop: Loop, body: bytes, length: bytes | None = None) -> Wish:
    """Put what a request asks into its `Ask`.

    Args:
        body: its bytes, decompressed.
        length: the header that says how many of them are JSON, where tensors follow as bytes.

    Returns:
        What it wants to hear.

    Raises:
        Unreadable, InvalidInput: as their names say.
        UnknownModel: there is none of that name.
    """
    service = loop.serving.service(ask.model)
    champion, record = service.champion, service.record
    schema = champion.schema if champion else msgspec.convert(record.schema, Schema)
    told, binary = _split(body, length)
    parameters = _parameters(told, "")
    named = binary or inference.ID in parameters
    ask.value = None if named else inference.plain_row(schema, told.get("inputs"))
    if ask.value is None:
        ask.value, ask.ids = inference.rows(schema, list(_tensors(told, binary)), parameters)
    limit = inference.seconds(parameters)
    if limit is not None:
        ask.deadline = time.monotonic() + limit
    id = told.get("id")
    if id is not None and type(id) is not str:
        raise InvalidInput.at("the id of a request is text", "/id")
    outputs, raw = _outputs(told, bool(parameters.get("binary_data_output")))
    inference.check_outputs(record, outputs)
    return Wish(schema, id or None, outputs, raw)


def _split(body: bytes, length: bytes | None) -> tuple[Json, bytes]:
    """The object at the beginning of a body, and the bytes behind it."""
    size = len(body)
    if length is not None:
        if not length.isdigit() or len(length) > 15 or not 0 < int(length) <= size:
            told = "Inference-Header-Content-Length is not the number of the body's bytes of JSON"
            raise Unreadable(told)
        size = int(length)
    found = codecs.read_json(body[:size] if size < len(body) else body)
    if type(found) is not dict:
        raise InvalidInput.at("a request is an object with `inputs`", "")
    return found, body[size:]


def _parameters(told: Json, pointer: str) -> Json:
    found = told.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise InvalidInput.at("parameters are an object", f"{pointer}/parameters")
    return found


def _objects(told: Json, key: str) -> list[tuple[str, Json]]:
    """The objects of a list, each with its pointer."""
    found = told.get(key)
    if type(found) is not list or not all(type(each) is dict for each in found):
        raise InvalidInput.at(f"`{key}` is an array of objects", f"/{key}")
    return [(f"/{key}/{index}", each) for index, each in enumerate(found)]


def _tensors(told: Json, body: bytes) -> Iterator[Tensor]:
    """The tensors of a request; those with a size take their bytes off, in order."""
    binary = memoryview(body)
    for pointer, each in _objects(told, "inputs"):
        parameters, raw = _parameters(each, pointer), None
        inference.check_parameters(parameters, pointer)
        size = parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(binary):
                where = f"{pointer}/parameters/binary_data_size"
                raise InvalidInput.at("there are not so many bytes behind the JSON", where)
            raw, binary = bytes(binary[:size]), binary[size:]
        yield inference.from_json(each, pointer, raw)
    if binary:
        raise InvalidInput.at(f"{len(binary)} bytes belong to no input", "/inputs")


def _outputs(told: Json, default: bool) -> tuple[list[str], frozenset[str]]:
    """The outputs that are asked for, and those that are wanted as bytes; none means all."""
    if not told.get("outputs"):
        every = (inference.PREDICTION, inference.PROBABILITIES, inference.ID)
        return [], frozenset(every if default else ())
    wanted: dict[str, bool] = {}
    for pointer, each in _objects(told, "outputs"):
        parameters = _parameters(each, pointer)
        inference.check_parameters(parameters, pointer)
        wanted[str(each.get("name"))] = bool(parameters.get("binary_data", default))
    return list(wanted), frozenset(name for name, raw in wanted.items() if raw)


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    """Decompress a body, as far as the limit allows."""
    window = _WINDOWS.get(coding)
    if window is None:
        told = f"cannot read the content coding {coding!r}; send gzip, deflate or none"
        raise Refused("unsupported-media-type", told, accept_encoding="gzip, deflate")
    opener = zlib.decompressobj(window)
    try:
        found = opener.decompress(body, limit + 1)
    except zlib.error as error:
        raise Unreadable(f"the body is not {coding}: {error}") from error
    if len(found) > limit:
        raise too_large(limit)
    if not opener.eof or opener.unused_data:
        raise Unreadable(f"the body is not one whole piece of {coding}")
    return found


# The answer's way out.


def render(answered: Answered, wish: Wish, accept: bytes | None) -> Answer:
    """The answer: JSON, then the outputs that are wanted as bytes; compressed where accepted."""
    shown, tail = [], []
    for tensor in inference.tensors(answered, wish.schema, wish.outputs):
        told = inference.to_json(tensor)
        if tensor.name in wish.raw:
            tail.append(inference.to_raw(tensor))
            del told["data"]
            told["parameters"] = {"binary_data_size": len(tail[-1])}
        shown.append(told)
    value = {
        "model_name": answered.model,
        "model_version": inference.version_of(answered),
        "id": wish.id or answered.predictions[0].id,
        "outputs": shown,
    }
    body, kind = _encode(value), codecs.JSON
    headers: dict[str, str] = {}
    if tail:
        headers[LENGTH.decode()] = str(len(body))
        body, kind = b"".join([body, *tail]), "application/octet-stream"
    coding = _coding(accept) if accept and len(body) >= WORTH else None
    if coding:
        headers |= {"content-encoding": coding, "vary": "accept-encoding"}
        body = gzip.compress(body, 1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
    return Answer(body, 200, kind, headers)


def _coding(accept: bytes) -> str | None:
    """The coding that an `Accept-Encoding` takes, gzip first."""
    wishes = (each.partition(";") for each in accept.decode("latin-1").lower().split(","))
    taken = {name.strip() for name, _, weight in wishes if not _NEVER.fullmatch(weight)}
    return next((coding for coding in _WINDOWS if coding in taken), None)


# The fast lane.


class _Infer(Waiting):
    """A request for predictions by tensors in the lane, waiting for its batch."""

    __slots__ = ("wish",)

    def read(self, body: bytes) -> None:
        access.check(self.ask.caller, "predict")
        self.wish = read(self.ask, self.head.loop, body)

    def render(self, answered: Answered) -> Answer:
        return render(answered, self.wish, self.head.headers.get(b"accept-encoding"))


class InferHead(PredictHead):
    """The head of such a request: of JSON alone, and not much of it."""

    __slots__ = ()
    route = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]{1,9}))?/infer")
    queries = INFER_QUERIES
    waiting = _Infer
    refusal = staticmethod(refused)

    def __init__(self, loop: Loop, match: re.Match[str], query: Options, headers: Headers) -> None:
        super().__init__(loop, match, query, headers)
        self.version = int(match["version"]) if match["version"] else None

    @classmethod
    def plain(cls, headers: Headers) -> bool:
        return LENGTH not in headers and int(headers.get(b"content-length", SMALL)) < SMALL


# The routes.


async def infer(desk: Desk) -> Answer:
    """Predict by the Open Inference Protocol: one row or many, as tensors."""
    loop, length = desk.loop, desk.headers.get(LENGTH)
    deadline = time.monotonic() + limit_of(loop, desk.query)
    version, alias = desk.path.get("version"), desk.query.get("alias")
    ask = Ask(desk.path["model"], None, False, None, version, alias, deadline, desk.caller)
    body = await desk.body()
    access.check(desk.caller, "predict")
    coding = (desk.header("content-encoding") or "identity").strip().lower()
    if coding != "identity":
        body = await desk.crossing.run(_unpack, body, coding, loop.settings.max_body)
    if len(body) < SMALL:
        wish = read(ask, loop, body, length)
    else:
        wish = await desk.crossing.run(read, ask, loop, body, length)
    try:
        answered = await loop.serving.submit(ask)
    except NotReady as error:
        await say_when(desk, ask.model, error)
        raise
    accept = desk.headers.get(b"accept-encoding")
    if len(body) < SMALL:
        return render(answered, wish, accept)
    return await desk.crossing.run(render, answered, wish, accept)


async def server_ready(desk: Desk) -> Answer:
    """Whether every model can answer."""
    good, reasons = desk.loop.ready()
    if not good:
        raise NotReady("; ".join(reasons.values()), retry_after=1.0)
    return plain({"ready": True})


async def model_ready(desk: Desk) -> Answer:
    """Whether a model, or one of its versions, can answer."""
    access.check(desk.caller, "predict")
    model, version = desk.path["model"], desk.path.get("version")
    try:
        await desk.crossing.run(desk.loop.serving.loaded, model, version)
        why = desk.loop.serving.service(model).why_not()
        if why is not None:
            raise NotReady(why)
    except NotReady as error:
        await say_when(desk, model, error)
        raise
    return plain({"name": model, "ready": True})


async def server_metadata(desk: Desk) -> Answer:
    """The server's name, version and extensions."""
    return plain({"name": "loopline", "version": __version__, "extensions": EXTENSIONS})


async def model_metadata(desk: Desk) -> Answer:
    """The tensors that a model takes and gives, and its versions."""
    model, told = desk.path["model"], await _describe(desk)
    versions = [str(each["version"]) for each in await desk.call(desk.loop.versions, model)]
    return plain({"name": model, "versions": versions, "platform": "loopline", **told})


async def model_config(desk: Desk) -> Answer:
    """The same in the words of Triton's model configuration."""
    told = await _describe(desk)

    def spell(tensor: Json) -> Json:
        datatype = "TYPE_" + tensor["datatype"].replace("BYTES", "STRING")
        return {"name": tensor["name"], "data_type": datatype, "dims": tensor["shape"]}

    head = {"name": desk.path["model"], "platform": "loopline", "backend": "loopline"}
    inputs, outputs = ([spell(each) for each in told[key]] for key in ("inputs", "outputs"))
    return plain({**head, "max_batch_size": 0, "input": inputs, "output": outputs})


async def _describe(desk: Desk) -> Json:
    model, version = desk.path["model"], desk.path.get("version")
    access.check(desk.caller, "predict")
    if version is not None:
        await desk.call(desk.loop.version, model, version)
    service = await desk.crossing.run(desk.loop.serving.service, model)
    classes = service.champion.adopted.classes if service.champion else None
    schema = msgspec.convert(service.record.schema, Schema)
    return inference.metadata(service.record, schema, classes)


async def _table(desk: Desk) -> Json:
    body = await desk.body()
    return _split(body, None)[0] if body else {}


async def index(desk: Desk) -> Answer:
    """All models with their champion and state; `ready` in the body leaves out the others."""
    only = (await _table(desk)).get("ready")
    shown = []
    for each in await desk.call(desk.loop.models):
        if each["ready"] or not only:
            state = "READY" if each["ready"] else "UNAVAILABLE"
            told = {"name": each["name"], "version": str(each["champion"] or ""), "state": state}
            shown.append(told | {"reason": desk.loop.ready()[1].get(each["name"], "")})
    return plain(shown)


async def load(desk: Desk) -> Answer:
    """Look whether there is a newer version of a model to serve."""
    access.check(desk.caller, "admin")
    if _parameters(await _table(desk), ""):
        raise InvalidInput.at("a model is defined at PUT /v1/models/{model}", "/parameters")
    await desk.crossing.run(desk.loop.serving.refresh, True)
    return await model_ready(desk)


async def unload(desk: Desk) -> Answer:
    """Refuse to: a model is served as long as it exists."""
    access.check(desk.caller, "admin")
    model = desk.path["model"]
    await desk.crossing.run(desk.loop.serving.service, model)
    raise WrongState(f"model {model!r} is served until DELETE /v1/models/{model} removes it")


_M = "/v2/models/{model}"
_T = {"name": TEXT, "datatype": TEXT, "shape": many(WHOLE)}
_DATA: Json = {**many({}), "description": "Flat or nested, row by row."}
_ASKED = many(obj("data", "parameters", **_T, data=_DATA, parameters=OBJECT))
_WANTED = many(obj("parameters", name=TEXT, parameters=OBJECT))
_REQUEST = obj(
    *("id", "parameters", "outputs"), id=TEXT, parameters=OBJECT, inputs=_ASKED, outputs=_WANTED
)
_ANSWER = obj(model_name=TEXT, model_version=TEXT, id=TEXT, outputs=many(obj(**_T, data=many({}))))
_PROBLEM: Json = {"allOf": [{"$ref": "#/components/schemas/Problem"}, obj(error=TEXT)]}


def _routes(
    method: str, path: str, handler: Any, answer: Json, *also: str, **more: Any
) -> Iterator[Route]:
    """A route, and where it is one of a model, the same for a version of it."""
    about = {"also": also, "refusal": {codecs.JSON: {"schema": _PROBLEM}}, **more}
    paths = [path]
    if path.startswith(_M):
        paths.append(f"{_M}/versions/{{version}}{path.removeprefix(_M)}")
    for each in paths:
        yield Route(method=method, path=each, handler=handler, answers={200: answer}, **about)


_DETAILS = obj(name=TEXT, platform=TEXT, inputs=many(obj(**_T)), outputs=many(obj(**_T)))
_PREDICTING = ("not-ready", "overloaded", "timeout", "model-failed")
_REPOSITORY = "/v2/repository/models/{model}"
ROUTES = (
    *_routes("GET", "/v2/health/live", live, obj(live=FLAG)),
    *_routes("GET", "/v2/health/ready", server_ready, obj(ready=FLAG)),
    *_routes("GET", "/v2", server_metadata, obj(name=TEXT, version=TEXT, extensions=many(TEXT))),
    *_routes("GET", f"{_M}/ready", model_ready, obj(name=TEXT, ready=FLAG), "not-ready"),
    *_routes("GET", _M, model_metadata, _DETAILS),
    *_routes("GET", f"{_M}/config", model_config, OBJECT),
    *_routes(
        *("POST", f"{_M}/infer", infer, _ANSWER, *_PREDICTING), body=_REQUEST, query=INFER_QUERIES
    ),
    *_routes("POST", "/v2/repository/index", index, many(OBJECT), body=OBJECT),
    *_routes("POST", f"{_REPOSITORY}/load", load, OBJECT, "not-ready", body=OBJECT),
    *_routes("POST", f"{_REPOSITORY}/unload", unload, OBJECT, "wrong-state", body=OBJECT),
)
