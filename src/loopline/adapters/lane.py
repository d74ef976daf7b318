"""The HTTP server, and the fast lane inside it.

Uvicorn parses requests, keeps connections alive and stops in order. Its protocol class is refined
here by one idea: once a request's head is there, `admit` may take the request, which then is
answered without an ASGI scope, task or messages. All others go to the ASGI application untouched.
Idle connections are found by one look a second at all of them, not by a timer for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

Held = list[tuple[bytes, bytes]]
"""Header names in small letters, with their values, as they came."""
Admit = Callable[[bytes, Held], "Head | None"]
"""Understands the target and the headers of a POST, or leaves them to the application."""

LOOK = 1.0
"""Seconds between two looks at all connections."""
PATIENCE = 60.0
"""Seconds a client may say nothing in the middle of a request, or before its first one."""
HUNG_UP = 499
BODIED = frozenset({b"content-length", b"transfer-encoding"})
PARTING = "loopline.parting"
"""The type of the message by which a WebSocket's application hears that it is time to close."""
GOING_AWAY, SERVICE_RESTART = 1001, 1012
CLOSING = 2.0
"""Seconds that a WebSocket client has for answering that the connection is closed."""
PING, PONG = 20.0, 60.0
"""Seconds between two pings on a WebSocket, and until their answer has to be there."""


class Tally:
    """What the lane of one process has answered, by status, and what it is about to answer."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.statuses: Counter[int] = Counter()


class Farewell:
    """How a stopping server parts from connections that are idle.

    It closes them, or, where another process goes on serving, is `kind`: it answers one more
    request on each, saying that it is the last. Closing could cross with a request on its way.
    """

    kind = False


class Head(Protocol):
    """The head of a request, understood; a client that keeps its connection repeats it."""

    def open(self) -> Request | None:
        """Take a request with this head, or leave it to the application this time."""


class _Unheard:
    """Stands where Uvicorn would wake an ASGI task."""

    def set(self) -> None:
        """There is none."""


class Request:
    """A request in the lane, from the end of its head to its answer.

    It stands in the place of Uvicorn's request-response cycle, whose attributes it has.

    Args:
        limit: how many bytes its body may have.
    """

    __slots__ = (
        "body",
        "disconnected",
        "keep_alive",
        "lane",
        "limit",
        "more_body",
        "response_complete",
        "started",
        "too_long",
    )
    message_event = _Unheard()
    lane: Lane
    keep_alive: bool

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.too_long = False
        self.started = False
        self.disconnected = False
        self.response_complete = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self.response_complete or self.disconnected

    def complete(self) -> None:
        """Answer, now that all of the body is there; to be written by who admits."""
        raise NotImplementedError

    def refuse(self) -> None:
        """Answer that the body is longer than the limit; to be written by who admits."""
        raise NotImplementedError

    def take(self, data: bytes) -> None:
        """Take in a part of the body."""
        if not self.body:
            self.body = data
        elif isinstance(self.body, bytearray):
            self.body += data
        else:
            self.body = bytearray(self.body) + data
        if len(self.body) > self.limit:
            self.body, self.too_long = b"", True
            self.go_on()

    def start(self) -> None:
        """All earlier requests of the connection are answered."""
        self.started = True
        self.go_on()

    def go_on(self) -> None:
        """Answer if that is possible by now."""
        if self.started and not self.response_complete:
            if self.too_long:
                self.refuse()
            elif not self.more_body:
                self.complete()

    def reply(self, status: int, kind: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Write the answer, unless the client is gone."""
        lane = self.lane
        if self.gone:
            return
        if lane.flow.write_paused:
            task = lane.loop.create_task(self._reply_later(status, kind, body, headers))
            lane.tasks.add(task)
            task.add_done_callback(lane.tasks.discard)
            return
        self.response_complete = True
        lane.tally.in_flight -= 1
        transport = lane.transport
        if transport.is_closing():
            lane.tally.statuses[HUNG_UP] += 1
            return
        lane.tally.statuses[status] += 1
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
        close = b"" if self.keep_alive else b"connection: close\r\n"
        transport.write(
            b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b"
            % (lane.opening(status), kind.encode(), len(body), more.encode("latin-1"), close, body)
        )
        if close:
            transport.close()
        lane.on_response_complete()

    async def _reply_later(
        self, status: int, kind: str, body: bytes, headers: Mapping[str, str]
    ) -> None:
        """Wait until a client that reads slowly has taken its earlier answers."""
        await self.lane.flow.drain()
        self.reply(status, kind, body, headers)


class Lane(HttpToolsProtocol):
    """One connection.

    Args:
        admit: decides which requests the lane takes.
        tally: where they are counted.
        farewell: how to part.
        given: what Uvicorn gives its protocols.
    """

    def __init__(self, admit: Admit, tally: Tally, farewell: Farewell, **given: Any) -> None:
        super().__init__(**given)
        self.admit = admit
        self.tally = tally
        self.farewell = farewell
        self.last = False
        self._heard = 0.0
        self._begun = False
        self._advancing = False
        self._answered = False
        self._url, self._held = b"", [(b"", b"")]
        self._head: Head | None = None
        self.current: Request | RequestResponseCycle | None = None
        self._default: Any = None
        self._openings: dict[int, bytes] = {}

    def opening(self, status: int) -> bytes:
        """The status line and the headers that all answers of this second have."""
        default = self.server_state.default_headers
        if default is not self._default:
            self._default, self._openings = default, {}
        found = self._openings.get(status)
        if found is None:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in default)
            found = self._openings[status] = STATUS_LINE[status] + lines
        return found

    # From the connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heard = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._heard = self.loop.time()
        self._answered = True
        if not self.pipeline:
            self.flow.resume_reading()
        elif not self._advancing:
            self._advance()

    def _advance(self) -> None:
        """Start the next request in line, and more where one is answered on the spot."""
        self._advancing = True
        try:
            while self._answered and self.pipeline:
                self._answered = False
                cycle, app = self.pipeline.pop()
                if not self.pipeline:
                    # Its body may not be there yet. While others wait, nothing more is read.
                    self.flow.resume_reading()
                self._start_asgi_task(cycle, app)
        finally:
            self._advancing = False

    def look(self, now: float) -> None:
        """Close the connection if it is the client's turn, and has been for too long."""
        cycle = self.cycle
        between = cycle is not None and cycle.response_complete
        if self.flow.read_paused or not (between or cycle is None or cycle.more_body):
            return
        limit = self.timeout_keep_alive if between and not self._begun else PATIENCE
        if now - self._heard > limit and not self.transport.is_closing():
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent its last request may still read the lane's answer.

        To the application it is gone, as it always is with Uvicorn.
        """
        cycle: Any = self.cycle
        if isinstance(cycle, Request) and not (cycle.gone or cycle.more_body):
            cycle.keep_alive = False
            return True
        for each in self._unanswered():
            if isinstance(each, RequestResponseCycle):
                each.disconnected = True
                each.message_event.set()
        return False

    def _unanswered(self) -> list[Any]:
        every = [self.current, self.cycle, *(cycle for cycle, _ in self.pipeline)]
        found = {id(each): each for each in every if each is not None}
        return [each for each in found.values() if not each.response_complete]

    def shutdown(self) -> None:
        cycle = self.cycle
        if self.farewell.kind and (cycle is None or cycle.response_complete):
            self.last = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        for request in self._unanswered():
            if isinstance(request, Request) and not request.disconnected:
                request.disconnected = True
                self.tally.in_flight -= 1
                self.tally.statuses[HUNG_UP] += 1
        super().connection_lost(exc)

    # From the parser.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._begun = True

    def on_headers_complete(self) -> None:
        parser = self.parser
        self._begun = False
        request: Request | None = None
        plain = not (self.expect_100_continue or parser.should_upgrade())
        if plain and parser.get_method() == b"POST":
            if self.url != self._url or self.headers != self._held:
                # A copy: what follows a chunked body comes into the same list.
                self._url, self._held = self.url, self.headers[:]
                self._head = self.admit(self.url, self.headers)
            request = self._head.open() if self._head is not None else None
        if request is None:
            self._hand_on()
            return
        request.lane = self
        lasting = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        request.keep_alive = lasting and not self.last
        self.tally.in_flight += 1
        before: Any = self.cycle
        self.cycle = request  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._start_asgi_task(request, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((request, self.app))  # type: ignore[arg-type]

    def _should_upgrade(self) -> bool:
        """Whether this is the opening of a WebSocket, with nothing before it or in it."""
        names = {name for name, _ in self.headers}
        plain = self.parser.get_method() == b"GET" and names.isdisjoint(BODIED)
        first = self.current is None or self.current.response_complete
        return plain and first and b"sec-websocket-key" in names and super()._should_upgrade()

    def _hand_on(self) -> None:
        """Let Uvicorn make of the request's head what it always makes of one."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        if self.last and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        request: Any = self.cycle
        if not isinstance(request, Request):
            super().on_body(body)
        elif not (request.response_complete or request.too_long):
            request.take(body)

    def on_message_complete(self) -> None:
        request: Any = self.cycle
        if not isinstance(request, Request):
            super().on_message_complete()
        elif not request.response_complete:
            request.more_body = False
            request.go_on()

    def _start_asgi_task(self, cycle: RequestResponseCycle | Request, app: Any) -> None:
        self.current = cycle
        if isinstance(cycle, Request):
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)


class Socket(WebSocketsSansIOProtocol):
    """One WebSocket connection.

    A stopping server leaves it to the application to part, and tells it so by a message of the
    type `PARTING`, which ASGI does not have.

    Args:
        farewell: how to part.
        given: what Uvicorn gives its protocols.
    """

    def __init__(self, farewell: Farewell, **given: Any) -> None:
        super().__init__(**given)
        self.farewell = farewell
        self.close_timeout = CLOSING

    def shutdown(self) -> None:
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self.stop_keepalive()
        code = SERVICE_RESTART if self.farewell.kind else GOING_AWAY
        self.queue.put_nowait({"type": PARTING, "code": code})  # type: ignore[typeddict-item]

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:  # Uvicorn would log it, as if it were a fault of ours
            self.conn.send_close(1007, "not UTF-8")
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()


class _Server(uvicorn.Server):
    """A server that leaves the signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener(Protocol):
    """Another protocol's server, on the event loop of the HTTP server."""

    async def start(self) -> None:
        """Listen.

        Raises:
            Unavailable: the address is in use.
        """

    async def stop(self, grace: float) -> None:
        """Take nothing new, give what was begun `grace` seconds to finish, and let go."""


class Server:
    """A server of one process, over a socket that somebody else listens on.

    Args:
        app: the ASGI application.
        sock: the listening socket.
        drain: seconds that a stopping server may take to finish what it began.
        root_path: the path prefix behind a reverse proxy.
        admit, tally: what the lane takes, and where it counts; None for no lane.
        beside: what else listens as long as this server runs.
        max_message: how many bytes a WebSocket message may have.
    """

    def __init__(
        self,
        app: Any,
        sock: socket.socket,
        drain: float,
        root_path: str = "",
        admit: Admit | None = None,
        tally: Tally | None = None,
        beside: Sequence[Listener] = (),
        max_message: int = 16 * 2**20,
    ) -> None:
        self._sock = sock
        self._drain = drain
        self._beside = beside
        self._leaving = asyncio.Event()
        self._farewell = Farewell()
        lane = partial(Lane, admit or (lambda url, held: None), tally or Tally(), self._farewell)
        config = uvicorn.Config(
            app,
            http=lane,  # type: ignore[arg-type]
            ws=partial(Socket, self._farewell),  # type: ignore[arg-type]
            ws_max_size=max_message,
            ws_ping_interval=PING,
            ws_ping_timeout=PONG,
            ws_per_message_deflate=False,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=max(1, int(drain)),
            root_path=root_path,
        )
        self._server = _Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, started: Callable[[], None]) -> None:
        """Serve until told to leave; `started` is called once connections are taken."""
        if sys.platform == "win32":
            asyncio.run(self._main(started))
        else:
            import uvloop

            uvloop.run(self._main(started))

    async def _main(self, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        for listener in self._beside:
            await listener.start()
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._sock]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.005)
        if not serving.done():
            started()
        parting = asyncio.ensure_future(self._part())
        while not serving.done():
            await asyncio.wait([serving], timeout=LOOK)
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, Lane):
                    connection.look(self._loop.time())
        self._leaving.set()
        await asyncio.gather(serving, parting)

    async def _part(self) -> None:
        await self._leaving.wait()
        await asyncio.gather(*(listener.stop(self._drain) for listener in self._beside))

    def leave(self, kindly: bool = False) -> None:
        """Stop taking connections, finish what was begun, and return from `run`.

        May be called from any thread once `started` was called.

        Args:
            kindly: see `Farewell`.
        """
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._leave, kindly)

    def _leave(self, kindly: bool) -> None:
        self._farewell.kind = kindly
        self._server.should_exit = True
        self._leaving.set()
