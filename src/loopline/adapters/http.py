"""HTTP: `create` gives the ASGI application over a loop.

A door finds the caller and answers predictions itself; Litestar finds the other routes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from litestar import HttpMethod, Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from loopline.access import TRUSTED
from loopline.adapters import http_inference as inference
from loopline.adapters.http_openapi import Route
from loopline.adapters.http_predict import Express, PredictHead
from loopline.adapters.http_routes import FILES, HIDDEN, ROUTES
from loopline.adapters.http_socket import converse
from loopline.adapters.http_stream import is_stream, predict
from loopline.adapters.http_wire import (
    Answer,
    Crossing,
    Desk,
    Gone,
    Headers,
    Receive,
    Refused,
    Send,
    bearer,
    check_origin,
    inside,
    problem,
    read_query,
    request_id,
)
from loopline.adapters.lane import HUNG_UP, Tally
from loopline.errors import Unreadable
from loopline.loop import Loop

Req = Request[Any, Any, Any]

DESK = "loopline.desk"
HEALTH = ("/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")
OPEN = frozenset({*HEALTH, *FILES})
"""Paths that need no token: health, and a page that holds nothing but a form for the token."""
QUICK = ((PredictHead, predict), (inference.InferHead, inference.infer))
"""What is answered in front of the router."""
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def create(loop: Loop, *, quick: bool = True) -> Door:
    """Make the ASGI application of an installation.

    Args:
        loop: whose verbs are offered.
        quick: whether predictions are answered in front of the router; the bytes are the same.
    """
    router = Litestar(
        list(_handlers()),
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        logging_config=None,
    )
    return Door(loop, router, quick)


def _handlers() -> Iterator[HTTPRouteHandler]:
    """One handler for each path, so that its `Allow` is complete."""
    paths: dict[str, dict[str, Route]] = {}
    for route in (*ROUTES, *HIDDEN):
        paths.setdefault(route.path, {})[route.method] = route
    for path, routes in paths.items():
        methods = [HttpMethod(name) for name in routes]
        if "GET" in routes:
            routes["HEAD"] = routes["GET"]
            methods.append(HttpMethod.HEAD)
        typed = re.sub(r"{(\w+)}", r"{\1:str}", path)
        yield HTTPRouteHandler(typed, http_method=methods, status_code=200)(_handler(routes))


def _handler(routes: dict[str, Route]) -> Callable[[Req], Awaitable[Response[bytes] | Stream]]:
    async def answer(request: Req) -> Response[bytes] | Stream:
        desk: Desk = request.scope[DESK]  # type: ignore[literal-required]
        route = routes[request.scope["method"]]
        path = {"file": route.path, **request.path_params}
        desk.path = {name: _part(name, value) for name, value in path.items()}
        desk.query = read_query(request.scope["query_string"], route.query)
        return _response(await route.handler(desk))

    return answer


def _part(name: str, text: str) -> Any:
    if name != "version":
        return text
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10):
        raise Refused("unknown-path", f"{text[:50]!r} is not a version's number")
    return int(text)


def _response(answer: Answer) -> Response[bytes] | Stream:
    status, headers = answer.status, answer.headers
    # Litestar adds the character set to texts by itself.
    kind = answer.media_type.removesuffix("; charset=utf-8") if status != 204 else None
    if isinstance(answer.body, bytes):
        return Response(answer.body, status_code=status, media_type=kind, headers=headers)
    return Stream(answer.body, status_code=status, media_type=kind, headers=headers)


def _on_error(request: Req, error: Exception) -> Response[bytes] | Stream:
    """Answer an exception that a route raised, or the router before it."""
    desk: Desk = request.scope[DESK]  # type: ignore[literal-required]
    path, method = request.scope["path"], request.scope["method"]
    if isinstance(error, Gone):
        return Response(b"", status_code=499)
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = (error.headers or {}).get("allow", "")
        error = Refused("wrong-method", f"{path} takes {allow}, not {method}", allow=allow)
    elif isinstance(error, HTTPException) and error.status_code == 404:
        error = Refused("unknown-path", f"there is nothing at {path}; see /docs")
    elif isinstance(error, HTTPException) and error.status_code == 400:
        error = Unreadable(f"the request cannot be read: {error.detail}")
    return _response(_refusal(path, error, desk))


def _refusal(path: str, error: Exception, desk: Desk) -> Answer:
    """An exception in the words of the protocol that has this path."""
    spell = inference.refused if inference.PATH.fullmatch(path) else problem
    return spell(error, desk.instance, desk.loop.settings.debug)


class Door:
    """The outermost ASGI application: finds the caller, answers predictions, hands on the rest.

    `admit` and `tally` are for the fast lane of a server, which answers predictions in its stead.

    Args:
        loop: whose verbs are offered.
        router: the application behind the door.
        quick: whether predictions are answered here.
    """

    def __init__(self, loop: Loop, router: Litestar, quick: bool = True) -> None:
        self.tally = Tally()
        self.admit = Express(loop, *(head for head, _ in QUICK)).admit
        self._loop = loop
        self._router = router
        self._quick = quick
        self._crossing = Crossing()
        loop.metrics.sample("loopline_in_flight", lambda: {(): self.tally.in_flight})
        loop.metrics.sample("loopline_http_requests_total", self._statuses)
        loop.metrics.sample("loopline_queue_requests", self._queues)

    def _statuses(self) -> dict[tuple[str, ...], float]:
        return {(str(status),): count for status, count in self.tally.statuses.items()}

    def _queues(self) -> dict[tuple[str, ...], float]:
        return {(s.record.name,): len(s.queue) for s in self._loop.serving.services()}

    def close(self) -> None:
        """Let go of the threads."""
        self._crossing.close()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await converse(self._desk(scope, receive), scope, send, self.tally)
            return
        if scope["type"] != "http":
            await self._router(scope, receive, send)  # type: ignore[arg-type]
            return
        counted = _Counted(send, scope["method"] == "HEAD")
        self.tally.in_flight += 1
        try:
            await self._admit(scope, receive, counted)
        finally:
            self.tally.in_flight -= 1
            self.tally.statuses[counted.status or HUNG_UP] += 1

    async def _admit(self, scope: Any, receive: Receive, send: Send) -> None:
        desk = self._desk(scope, receive)
        headers, method = desk.headers, scope["method"]
        path = inside(scope["path"], desk.prefix)
        try:
            if path not in OPEN:
                await desk.identify(bearer(headers))
            if method in CHANGING and not self._loop.access.required:
                check_origin(headers)
            # Of a stream, the router would take the rows for a sign that the caller is gone.
            here = method == "POST" and (self._quick or is_stream(headers))
            for head, answer in QUICK if here else ():
                found = head.route.fullmatch(path)
                if found is not None:
                    parts = found.groupdict()
                    desk.path = {name: _part(name, text) for name, text in parts.items() if text}
                    desk.query = read_query(scope["query_string"], head.queries)
                    await _respond(send, await answer(desk))
                    return
        except Gone:
            return
        except Exception as error:
            await _respond(send, _refusal(path, error, desk))
            return
        within = {**scope, "path": path, "root_path": "", DESK: desk}
        await self._router(within, receive, send)  # type: ignore[arg-type]

    def _desk(self, scope: Any, receive: Receive) -> Desk:
        headers: Headers = dict(scope["headers"])
        prefix = (scope.get("root_path") or self._loop.settings.root_path).rstrip("/")
        id = request_id(headers)
        return Desk(self._loop, self._crossing, TRUSTED, headers, receive, id, prefix)


class _Counted:
    """A `send` that remembers the status, and leaves out the body of an answer to HEAD."""

    def __init__(self, send: Send, head: bool) -> None:
        self.status: int | None = None
        self._send = send
        self._head = head
        self._ended = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._send(message)
        elif not self._head:
            await self._send(message)
        elif not self._ended:
            self._ended = True
            await self._send({"type": "http.response.body", "body": b""})


async def _respond(send: Send, answer: Answer) -> None:
    body = answer.body
    headers = [
        (b"content-type", answer.media_type.encode("latin-1")),
        *((n.encode("latin-1"), v.encode("latin-1")) for n, v in answer.headers.items()),
    ]
    if isinstance(body, bytes):
        headers.insert(1, (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body})
        return
    async for part in body:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})
