"""A WebSocket for each model: one connection, many requests in flight.

A message is one request: JSON if it is text, MessagePack if it is binary.

    {"id": 7, "inputs": {"TV": 50}}    or rows; perhaps a version, an alias, a timeout, ids, ...

It is answered, as soon as that is possible and so in any order, by what the HTTP route answers,
or by its problem:

    {"id": 7, "answer": {"model": "sales", "version": 1, "id": "...", "prediction": 9.4}}
    {"id": 8, "error": {"code": "invalid-input", "detail": "...", "errors": [...], ...}}
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Annotated, Any, Literal

import msgspec

from loopline import codecs
from loopline.adapters import http_verbs as verbs
from loopline.adapters.http_predict import PATIENCE, check_probabilities, say_when, told
from loopline.adapters.http_wire import (
    Desk,
    Send,
    bearer,
    check_origin,
    inside,
    problem,
)
from loopline.adapters.lane import PARTING, Tally
from loopline.adapters.status import WEBSOCKET
from loopline.asks import MAX_ID, Ask
from loopline.asks import Answer as Said
from loopline.errors import FieldError, InvalidInput, LooplineError, NotReady
from loopline.records import new_id

ROUTE = re.compile(r"/v1/models/([^/]+)/socket")
PROTOCOL = "loopline.v1"
"""The sub-protocol; a client that offers none gets the same."""
BEARER = "bearer."
"""What the sub-protocol begins with in which a browser hands its token over."""
IN_FLIGHT = 256
"""Requests of one connection that are not yet answered, and never more than half a queue; past
that nothing more is read."""
LARGE = 2**16
"""Bytes for each of which a message counts as one more request in flight."""
POLICY = 1008
CLOSED = (OSError, RuntimeError)
"""What sending raises once the client is gone, or the server has closed for its own reasons."""
_HANDLERS = {"outcome": verbs.outcomes, "learn": verbs.learn}


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request can say, beside what it is about."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)] | int | None = None
    verb: Literal["predict", "outcome", "learn"] = "predict"
    ids: list[Any] | None = None
    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    alias: Literal["champion", "challenger", "previous"] | None = None
    timeout: Annotated[float, msgspec.Meta(ge=0.001, le=PATIENCE)] | None = None
    probabilities: bool = False


class _Undecoded(Message, kw_only=True, forbid_unknown_fields=True):
    inputs: msgspec.Raw


class _Decoded(Message, kw_only=True, forbid_unknown_fields=True):
    inputs: Any


_encoders = {codecs.JSON: msgspec.json.encode, codecs.MSGPACK: msgspec.msgpack.encode}
_decoders: dict[str, Callable[[Any], _Undecoded]] = {
    codecs.JSON: msgspec.json.Decoder(_Undecoded).decode,
    codecs.MSGPACK: msgspec.msgpack.Decoder(_Undecoded).decode,
}


class Misread(Exception):
    """A message that is no request.

    Args:
        id: the request's, as far as it could be read.
        error: what is wrong with it.
    """

    def __init__(self, id: Any, error: LooplineError) -> None:
        super().__init__(id, error)
        self.id = id
        self.error = error


def read(data: str | bytes, kind: str) -> tuple[Message, bytes, str]:
    """Read a message.

    Returns:
        The request, and what it is about, still encoded, with its content type.

    Raises:
        Misread: it is none.
    """
    try:
        message = _decoders[kind](data)
        return message, bytes(message.inputs), kind
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_slowly(data.encode() if isinstance(data, str) else data, kind)


def _read_slowly(data: bytes, kind: str) -> tuple[Message, bytes, str]:
    """Read what is not plain, or say what is wrong with it."""
    id = None
    try:
        value, _ = codecs.read(data, kind)
        if not isinstance(value, dict):
            raise InvalidInput.at("a message is an object with `inputs`", "")
        id = value["id"] if type(value.get("id")) in (str, int) else None
        message = msgspec.convert(value, _Decoded)
        return message, msgspec.msgpack.encode(message.inputs), codecs.MSGPACK
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        pointer = re.sub(r"[.[]", "/", path.rstrip("`")).replace("]", "")
        raise Misread(id, InvalidInput(str(error), fields=[FieldError(pointer, detail)])) from error
    except OverflowError as error:
        raise Misread(id, InvalidInput.at("a number is too large", "/inputs")) from error
    except LooplineError as error:
        raise Misread(id, error) from error


class Request:
    """A request in flight.

    Args:
        line: where it came from.
        message: what it says.
        ask: the same for the batch that it waits for.
        kind: how it is to be answered.
        weight: for how many requests it counts.
    """

    __slots__ = ("ask", "id", "kind", "line", "query", "settled", "weight")

    def __init__(self, line: Line, message: Message, ask: Ask, kind: str, weight: int) -> None:
        self.line = line
        self.ask = ask
        self.kind = kind
        self.weight = weight
        self.id = new_id() if message.id is None else message.id
        self.query = {"probabilities": message.probabilities}
        self.settled = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more."""
        return self.settled or self.line.over

    def settle(self, said: Said) -> None:
        """Have the answer sent."""
        self.settled = True
        if isinstance(said, NotReady):
            self.line.begin(self._not_ready(said))
            return
        try:
            if isinstance(said, LooplineError):
                raise said
            self.succeed(told(said, self.query))
        except Exception as error:  # whatever it is, the request gets an answer
            self.fail(error)

    async def _not_ready(self, error: NotReady) -> None:
        try:
            await say_when(self.line.desk, self.ask.model, error)
            self.fail(error)
        except Exception as other:
            self.fail(other)

    async def run(self, desk: Desk, verb: str) -> None:
        """Call a verb other than predict, in a thread."""
        try:
            answer = await _HANDLERS[verb](desk)
            assert isinstance(answer.body, bytes)
            self.succeed(msgspec.json.decode(answer.body))
        except Exception as error:
            self.fail(error)

    def succeed(self, answer: dict[str, Any]) -> None:
        """Have this sent."""
        self.line.put(self.kind, {"id": self.id, "answer": answer}, self.weight)

    def fail(self, error: Exception) -> None:
        """Have the error sent, whose pointers are into the message from now on."""
        if isinstance(error, InvalidInput):
            fields = [FieldError(self._pointer(each.pointer), each.detail) for each in error.fields]
            error = InvalidInput(error.detail, fields=fields)
        self.line.complain(self.kind, self.id, error, self.weight)

    def _pointer(self, pointer: str) -> str:
        if pointer.startswith("?"):
            return f"/{pointer[1:]}"
        ids = self.ask.ids is not None and f"{pointer}/".startswith("/ids/")
        return pointer if ids else f"/inputs{pointer}"


class Line:
    """A connection.

    Args:
        desk: the request that opened it.
        model: whose it is.
        token: the caller's.
        send: the way out.
        tally: where the requests in flight are counted.
    """

    def __init__(self, desk: Desk, model: str, token: str | None, send: Send, tally: Tally) -> None:
        self.desk = desk
        self.over = False
        self._model = model
        self._token = token
        self._send = send
        self._tally = tally
        self._in_flight = 0
        self._most = max(1, min(IN_FLIGHT, desk.loop.settings.max_queue // 2))
        self._answers: deque[tuple[MutableMapping[str, Any], int]] = deque()
        self._put, self._sent = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def converse(self) -> None:
        """Take requests until one side has had enough."""
        self.begin(self._write())
        try:
            code, reason = await self._listen(), ""
        except LooplineError as error:
            self._count(1)
            self.complain(codecs.JSON, None, error, 1)
            code, reason = WEBSOCKET.get(error.code, POLICY), error.code
        try:
            if code:
                await self._until(0)
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except CLOSED:
            pass
        finally:
            self._end()

    async def _listen(self) -> int:
        """Take requests; returns the code to close with, 0 if the client has closed."""
        if not self.desk.loop.access.required:
            check_origin(self.desk.headers)
        self.desk.loop.serving.service(self._model)
        while True:
            await self.desk.identify(self._token)
            await self._until(self._most - 1)
            message = await self.desk.receive()
            if message["type"] != "websocket.receive":
                return int(message["code"]) if message["type"] == PARTING else 0
            text = message.get("text")
            if text is None:
                self._take(message["bytes"], codecs.MSGPACK)
            else:
                self._take(text, codecs.JSON)

    def _take(self, data: str | bytes, kind: str) -> None:
        weight = 1 + len(data) // LARGE
        self._count(weight)
        try:
            message, body, read_as = read(data, kind)
        except Misread as wrong:
            if wrong.error.code in WEBSOCKET:
                self._count(-weight)
                raise wrong.error from wrong
            self.complain(kind, wrong.id, wrong.error, weight)
            return
        ask = Ask(self._model, None, False, message.ids, message.version, message.alias)
        ask.caller, ask.body, ask.kind = self.desk.caller, body, read_as
        request = Request(self, message, ask, kind, weight)
        if message.verb != "predict":
            self.begin(request.run(self._desk(body, read_as), message.verb))
            return
        loop = self.desk.loop
        ask.deadline = time.monotonic() + (message.timeout or loop.settings.timeout)
        try:
            check_probabilities(loop, self._model, request.query)
            loop.serving.enqueue(request)
        except LooplineError as error:
            request.settle(error)

    def _desk(self, body: bytes, kind: str) -> Desk:
        """A request over HTTP for the same, for a route's handler."""

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body}

        desk = msgspec.structs.replace(self.desk, receive=receive, path={"model": self._model})
        desk.headers = {b"content-type": kind.encode()}
        return desk

    def put(self, kind: str, value: Any, weight: int) -> None:
        """Have an answer sent, after those that wait already."""
        body = _encoders[kind](value)
        told = {"text": body.decode()} if kind == codecs.JSON else {"bytes": body}
        self._answers.append(({"type": "websocket.send", **told}, weight))
        self._put.set()

    def complain(self, kind: str, id: Any, error: Exception, weight: int) -> None:
        """Have an error sent."""
        answer = problem(error, new_id(), self.desk.loop.settings.debug)
        assert isinstance(answer.body, bytes)
        told: dict[str, Any] = msgspec.json.decode(answer.body)
        if wait := answer.headers.get("retry-after"):
            told["retry_after"] = int(wait)
        self.put(kind, {"id": id, "error": told}, weight)

    async def _write(self) -> None:
        try:
            while await self._put.wait():
                self._put.clear()
                while self._answers:
                    message, weight = self._answers.popleft()
                    await self._send(message)
                    self._count(-weight)
        except CLOSED:
            pass
        finally:
            self.over = True
            self._sent.set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the conversation, until its end at most."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count(self, more: int) -> None:
        self._in_flight += more
        self._tally.in_flight += more
        self._sent.set()

    async def _until(self, most: int) -> None:
        """Wait until no more than so many requests are in flight."""
        while self._in_flight > most and not self.over:
            self._sent.clear()
            await self._sent.wait()

    def _end(self) -> None:
        self.over = True
        self._count(-self._in_flight)
        for task in self._tasks:
            task.cancel()


async def converse(desk: Desk, scope: Any, send: Send, tally: Tally) -> None:
    """Answer a request to open a connection, and all that comes over it."""
    await desk.receive()
    found = ROUTE.fullmatch(inside(scope["path"], desk.prefix))
    if found is None:
        tally.statuses[403] += 1
        await send({"type": "websocket.close"})
        return
    offered = scope.get("subprotocols") or []
    token = next((word[len(BEARER) :] for word in offered if word.startswith(BEARER)), None)
    chosen = PROTOCOL if PROTOCOL in offered else None
    tally.statuses[101] += 1
    await send({"type": "websocket.accept", "subprotocol": chosen})
    await Line(desk, found[1], bearer(desk.headers) or token, send, tally).converse()
