"""What all HTTP routes share: queries, bodies with a limit, problems, the way to a thread."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from loopline import codecs
from loopline.access import Caller
from loopline.adapters.status import HTTP_ONLY, http_retry_after, http_status
from loopline.errors import (
    FieldError,
    Forbidden,
    InvalidInput,
    LooplineError,
    Overloaded,
    TooLarge,
)
from loopline.facts import parse_time
from loopline.loop import Loop
from loopline.records import new_id

logger = logging.getLogger("loopline.http")

T = TypeVar("T")
Headers = dict[bytes, bytes]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PROBLEM = "application/problem+json"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
READABLE = (codecs.JSON, codecs.MSGPACK, codecs.FORM, codecs.CSV, codecs.NDJSON)


class Answer(msgspec.Struct):
    """What goes onto the wire: bytes at once, or a stream of them."""

    body: bytes | AsyncIterator[bytes] = b""
    status: int = 200
    media_type: str = codecs.JSON
    headers: dict[str, str] = {}


def plain(value: Any, status: int = 200, **headers: str) -> Answer:
    """Answer plain data as JSON; underscores in header names are dashes."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(msgspec.json.encode(value), status, codecs.JSON, named)


class Problem(msgspec.Struct, kw_only=True):
    """An error as RFC 9457 has it; `code` is stable, and `errors` names every field at once."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldError] | msgspec.UnsetType = msgspec.UNSET
    job: str | msgspec.UnsetType = msgspec.UNSET
    traceback: str | msgspec.UnsetType = msgspec.UNSET


class Refused(Exception):
    """An HTTP request that reaches no verb, for a reason that only HTTP knows.

    Args:
        code: one of `HTTP_ONLY`.
        detail: what happened, for the person who asked.
        headers: to be sent along.
    """

    def __init__(self, code: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}


class Gone(Exception):
    """The caller hung up."""


def problem(error: Exception, instance: str, debug: bool = False, job: str | None = None) -> Answer:
    """Turn any exception into problem details, and log those that are not the caller's doing.

    Args:
        instance: the request's id, which the log line carries too.
        debug: add the traceback for the caller to see.
        job: the job that failed, where the caller waited for one.
    """
    told = Problem(title="", status=500, detail=str(error), instance=instance, code="")
    headers: dict[str, str] = {}
    if isinstance(error, LooplineError):
        told.code, told.status, told.detail = error.code, http_status(error), error.detail
        told.errors = list(error.fields) or msgspec.UNSET
        wait = http_retry_after(error)
        headers = {} if wait is None else {"retry-after": str(wait)}
    elif isinstance(error, Refused):
        told.code, told.status, headers = error.code, HTTP_ONLY[error.code], dict(error.headers)
    else:
        told.code = "internal-error"
        told.detail = "something went wrong here; the log has the details under this request's id"
    if told.status == 500 and job is None:
        logger.error("%s: %s", instance, error, exc_info=error)
    if told.status == 401:
        headers["www-authenticate"] = 'Bearer realm="loopline"'
    if debug and told.status == 500:
        told.traceback = "".join(traceback.format_exception(error))
    told.title = HTTPStatus(told.status).phrase
    told.job = msgspec.UNSET if job is None else job
    return Answer(msgspec.json.encode(told), told.status, PROBLEM, headers)


class Query(NamedTuple):
    """A query parameter: how it is read, and what it is called where it is used."""

    name: str
    kind: str  # integer | number | text | time | boolean
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    into: str = ""
    description: str = ""

    def read(self, text: str) -> Any:
        """The value that the text spells.

        Raises:
            ValueError: with a sentence about it.
        """
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}")
        if self.kind == "time":
            # A plus sign in a query string means a space unless it was escaped.
            return parse_time(text.strip().replace(" ", "+"), f"?{self.name}")
        if self.kind == "boolean":
            return _boolean(text)
        return text if self.kind == "text" else self._number(text)

    def _number(self, text: str) -> float:
        whole = self.kind == "integer"
        try:
            value = int(text) if whole and len(text) < 20 else float(text)
        except ValueError:
            value = math.nan
        if (whole and not isinstance(value, int)) or not math.isfinite(value):
            raise ValueError(f"{text!r} is not a {'whole ' if whole else ''}number")
        if not self.low <= value <= self.high:
            raise ValueError(f"{text} is not between {self.low:g} and {self.high:g}")
        return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


def read_query(raw: bytes, known: Sequence[Query]) -> dict[str, Any]:
    """Read a query string; parameters that are not known are left alone.

    Returns:
        What was given, by the names it has where it is used.

    Raises:
        InvalidInput: naming every parameter that is not right as `?name`.
    """
    if not raw:
        return {}
    given = dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True))
    values: dict[str, Any] = {}
    errors: list[FieldError] = []
    for query in known:
        if query.name in given:
            try:
                values[query.into or query.name] = query.read(given[query.name])
            except InvalidInput as error:
                errors.extend(error.fields)
            except ValueError as error:
                errors.append(FieldError(f"?{query.name}", str(error)))
    if errors:
        told = "; ".join(f"{each.pointer}: {each.detail}" for each in errors)
        raise InvalidInput(told, fields=errors)
    return values


class Crossing:
    """The one way from the event loop to the synchronous verbs: a thread from a bounded pool.

    Args:
        threads: how many verbs run at once.
        waiting: how many may run or wait; the next one is refused at once.
    """

    def __init__(self, threads: int = 40, waiting: int = 1000) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verb")
        self._waiting = waiting
        self._under_way = 0

    async def run(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run `work` in a thread.

        Raises:
            Overloaded: as many calls as allowed are under way.
        """
        if self._under_way >= self._waiting:
            raise Overloaded(f"{self._under_way} calls are under way already", retry_after=1.0)
        self._under_way += 1
        try:
            running = asyncio.get_running_loop()
            return await running.run_in_executor(self._pool, partial(work, *args, **options))
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Let what runs end, and take no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Desk(msgspec.Struct):
    """One request, and what it is answered with.

    `instance` is the request's id, and `prefix` the path under which the outside world sees the
    application. `path` and `query` hold the route's parameters.
    """

    loop: Loop
    crossing: Crossing
    caller: Caller
    headers: Headers
    receive: Receive
    instance: str
    prefix: str
    path: dict[str, Any] = {}
    query: dict[str, Any] = {}

    def header(self, name: str) -> str | None:
        """A header by its name in small letters."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    async def identify(self, token: str | None) -> None:
        """Find out who asks; only what is not known by heart takes a thread.

        Raises:
            Unauthorized: a token is required, and this is none.
        """
        access = self.loop.access
        caller = access.recall(token)
        self.caller = await self.crossing.run(access.identify, token) if caller is None else caller

    async def call(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a verb of the loop in a thread, as this request's caller."""
        return await self.crossing.run(verb, *args, caller=self.caller, **options)

    async def body(self) -> bytes:
        """Read the body, whether or not it says how long it is.

        Raises:
            TooLarge: it is longer than the settings allow, or says so.
            Gone: the caller hung up before its end.
        """
        limit = self.loop.settings.max_body
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise too_large(limit)
        message = await self.receive()
        body: bytes = message.get("body", b"")
        chunks, size = [body], len(body)
        while message.get("more_body", False) and size <= limit:
            message = await self.receive()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
        if message["type"] == "http.disconnect":
            raise Gone
        if size > limit:
            raise too_large(limit)
        return body if len(chunks) == 1 else b"".join(chunks)

    async def value(self) -> tuple[Any, bool]:
        """The body's value, and whether it came as text; see `codecs.read`."""
        return self.decode(await self.body())

    def decode(self, body: bytes) -> tuple[Any, bool]:
        """Decode a body by the request's headers.

        Raises:
            Refused: its content type or coding is not one that can be read here.
            Unreadable: the bytes are not what the content type says.
        """
        return codecs.read(body, self.kind())

    def kind(self) -> str:
        """The body's content type under its one name.

        Raises:
            Refused: its content type or coding is not one that can be read here.
        """
        kind, coding = self.header("content-type"), self.header("content-encoding")
        if codecs.kind_of(kind) not in READABLE:
            told = f"cannot read {kind!r}; send one of {', '.join(READABLE)}"
            raise Refused("unsupported-media-type", told, accept_post=", ".join(READABLE))
        if coding and coding.strip().lower() != "identity":
            told = f"cannot read the content coding {coding!r}; send the body as it is"
            raise Refused("unsupported-media-type", told, accept_encoding="identity")
        return codecs.kind_of(kind)

    async def table(self, *keys: str) -> dict[str, Any]:
        """The body's object, with no other keys than those named; an empty body has none.

        Raises:
            InvalidInput: it is no object, or has other keys.
        """
        body = await self.body()
        value = self.decode(body)[0] if body else {}
        if not isinstance(value, dict):
            raise InvalidInput("the body is not an object", fields=[FieldError("", "no object")])
        known = f"is not known; there are {', '.join(keys)}"
        strange = [FieldError(f"/{key}", known) for key in value if keys and key not in keys]
        if strange:
            raise InvalidInput(f"some keys of the body are not known: {known}", fields=strange)
        return value


def inside(path: str, prefix: str) -> str:
    """The path as the routes have it, whether or not a proxy has cut the prefix off."""
    while prefix and (path == prefix or path.startswith(f"{prefix}/")):
        path = path[len(prefix) :] or "/"
    return path


def bearer(headers: Headers) -> str | None:
    """The token that the caller sent, if any."""
    kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def request_id(headers: Headers) -> str:
    """The caller's `X-Request-Id` if it can stand in a URI and in a log line, else a new id."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(text := given.decode("latin-1")):
        return text
    return new_id()


def too_large(limit: int) -> TooLarge:
    """The error of a body that is longer than the limit, in bytes."""
    return TooLarge(f"the body is larger than the {limit:,} bytes accepted here")


def check_origin(headers: Headers) -> None:
    """Refuse what a page of another site makes a visitor's browser send.

    Without tokens, being able to connect is the permission, and a browser on this machine can
    connect for any page it shows.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return
    host = headers.get(b"host", b"").decode("latin-1")
    if urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower():
        raise Forbidden(
            "this comes from a page of another site; require tokens to allow that, or send it "
            "from a server of yours"
        )
