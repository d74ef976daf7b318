"""A server in a thread, and raw sockets that speak to it."""

from __future__ import annotations

import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from loopline.adapters.http import create
from loopline.adapters.lane import Server
from loopline.loop import Loop

T = TypeVar("T")
Headers = Sequence[tuple[str, str]]

PATIENCE = 20.0
"""Seconds after which something that has not happened is taken to hang."""
PREDICT = "/v1/models/iris/predict"
PING = b"GET /ping HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"
"""A request for the application, after which the server closes."""

_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")
_DATE = re.compile(rb"(?m)^date: [^\r]*\r$")
_FRESH = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def until(true: Callable[[], Any], what: str) -> None:
    """Wait for something that gives no notice of itself."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


def masked(stream: bytes) -> bytes:
    """A stream of answers without what differs from one to the next: the date and fresh ids."""
    return _FRESH.sub(b"(fresh)", _DATE.sub(b"date: (now)\r", stream))


def post(
    body: Any = b"",
    path: str = PREDICT,
    headers: Headers = (),
    *,
    method: str = "POST",
    version: str = "1.1",
    chunks: Iterable[int] | None = None,
) -> bytes:
    """The bytes of a request.

    Args:
        body: bytes, or what they spell as JSON.
        chunks: where to cut a chunked body; None for one with a length.
    """
    data: bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", "host: here"]
    lines += [f"{name}: {value}" for name, value in headers]
    if chunks is None:
        lines.append(f"content-length: {len(data)}")
    else:
        lines.append("transfer-encoding: chunked")
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cut(data, chunks))
        data += b"0\r\n\r\n"
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The parts of some bytes, of which none is empty."""
    ends = sorted({0, len(data), *(place for place in places if 0 < place < len(data))})
    return [data[start:stop] for start, stop in pairwise(ends)]


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


class Line:
    """A connection, of which every byte is seen.

    Args:
        address: whom to call.
        buffer: bytes that the kernel takes in before somebody reads; 0 for as many as it likes.
    """

    def __init__(self, address: tuple[str, int], buffer: int = 0) -> None:
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes, places: Iterable[int] = ()) -> None:
        """Send some bytes, in parts; what a closed connection does not take is let go."""
        with suppress(OSError):
            for part in cut(data, places):
                self.socket.sendall(part)

    def ask(self, data: bytes) -> Reply:
        """Send a request and wait for its answer."""
        self.send(data)
        return self.answer()

    def answer(self) -> Reply:
        """The next answer."""
        while b"\r\n\r\n" not in self._held:
            self._more()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", "0"))
        while len(self._held) < size:
            self._more()
        body, self._held = self._held[:size], self._held[size:]
        return Reply(int(first.split()[1]), headers, body)

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, f"the connection ended after {self._held[:500]!r}"
        self._held += data

    def rest(self) -> bytes:
        """All that still comes, up to the end of the connection."""
        parts, self._held = [self._held], b""
        with suppress(ConnectionResetError):
            while data := self.socket.recv(1 << 16):
                parts.append(data)
        return b"".join(parts)

    def finish(self) -> None:
        """Say that no more will be sent."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class Served:
    """The server of a loop, whose event loop runs in a thread.

    Args:
        loop: what is served.
        lane: whether its fast lane is open; None to have Uvicorn's own protocol class.
        buffer: bytes that the kernel holds for a client; 0 for as many as it likes.
        given: further arguments of the server.
    """

    def __init__(self, loop: Loop, lane: bool | None = True, buffer: int = 0, **given: Any) -> None:
        self.loop = loop
        self.door = create(loop)
        self.tally = self.door.tally
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        if buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.address: tuple[str, int] = listening.getsockname()
        opened: dict[str, Any] = {"admit": self.door.admit, "tally": self.tally} if lane else {}
        self.server = Server(self.door, listening, given.pop("drain", 10.0), **given, **opened)
        if lane is None:
            self.server._server.config.http = "httptools"
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run, name="server")
        self._started = threading.Event()

    def _run(self) -> None:
        self.server.run(self._started.set)

    def start(self) -> None:
        """Return once connections are taken."""
        self._thread.start()
        assert self._started.wait(PATIENCE)

    def leave(self, kindly: bool = False) -> None:
        """Let the server stop; see `join`."""
        self.server.leave(kindly)

    def join(self) -> None:
        """Wait until it has stopped."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not come to its end"

    def close(self) -> None:
        """Stop the server if it still runs."""
        if self._thread.is_alive():
            self.leave()
            self.join()
        self.door.close()

    def line(self, buffer: int = 0) -> Line:
        """A new connection."""
        return Line(self.address, buffer)

    def ask(self, data: bytes) -> Reply:
        """One request on a connection of its own."""
        with self.line() as line:
            return line.ask(data)

    def within(self, work: Callable[[], T]) -> T:
        """Do something in the server's event loop."""
        events = self.server._loop
        done, found = threading.Event(), []

        def act() -> None:
            try:
                found.append(work())
            finally:
                done.set()

        assert events is not None
        events.call_soon_threadsafe(act)
        assert done.wait(PATIENCE)
        return found[0]

    @property
    def connections(self) -> set[Any]:
        """The open connections as the server has them."""
        return self.server._server.server_state.connections

    @property
    def tasks(self) -> set[Any]:
        """The tasks that answer requests."""
        return self.server._server.server_state.tasks

    def at_rest(self) -> None:
        """Wait until no connection, no task and no request is left over."""
        until(lambda: not self.connections, "all connections are gone")
        until(lambda: not self.tasks, "all tasks are done")
        until(lambda: not self.tally.in_flight, "nothing is in flight")


class _Collector(logging.Handler):
    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # Uvicorn's own: an application may answer before it hears that the client has vanished.
        if "the handler is closed" not in text:
            self._into.append(text)


@contextmanager
def served(loop: Loop, lane: bool | None = True, **given: Any) -> Iterator[Served]:
    """A running server; what Uvicorn logs as an error fails the test that it happens in."""
    loggers = [logging.getLogger(name) for name in _UVICORN]
    before = [(each.level, each.propagate, each.handlers[:]) for each in loggers]
    with ExitStack() as stack:
        each = Served(loop, lane, **given)
        stack.callback(each.close)
        # Uvicorn has just set its loggers up for a program of its own.
        collector = _Collector(each.errors)
        loggers[0].handlers[:] = [collector]
        try:
            each.start()
            yield each
        finally:
            stack.close()
            for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
                logger.setLevel(level)
                logger.propagate = propagate
                logger.handlers[:] = handlers
    assert not each.errors, each.errors
