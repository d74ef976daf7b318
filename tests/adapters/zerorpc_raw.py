"""ZeroRPC by hand: a server on an event loop of its own, and a client that says what it likes."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgpack
import zmq

from loopline.adapters.zerorpc import Server


class Err(Exception):
    """What a server answered with an ERR."""

    def __init__(self, name: str, message: str, header: dict[str, Any]) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message
        self.header = header


class Event(NamedTuple):
    """An event, as it came."""

    header: dict[str, Any]
    name: str
    args: Any


class Raw:
    """A DEALER socket that sends whatever it is told to."""

    def __init__(self, endpoint: str, prepare: Callable[[Any], None] = lambda sock: None) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        prepare(self.socket)
        self.socket.connect(endpoint)
        self._ids = itertools.count()

    def send(self, *frames: bytes) -> None:
        """Send these frames."""
        self.socket.send_multipart(list(frames))

    def event(self, header: Any, name: Any, args: Any, **packing: Any) -> None:
        """Send an event as it is."""
        self.send(b"", msgpack.packb([header, name, args], **packing))

    def call(self, name: str, *args: Any, **header: Any) -> bytes:
        """Open a channel; returns its id."""
        id = b"%032x" % next(self._ids)
        self.event({"message_id": id, "v": 3, **header}, name, list(args))
        return id

    def go_on(self, id: Any, name: str, args: Any) -> None:
        """Send an event of a channel."""
        self.event({"message_id": b"x", "v": 3, "response_to": id}, name, args)

    def receive(self, timeout: float = 10.0) -> Event | None:
        """The next event, None if there is none in time."""
        if not self.socket.poll(int(timeout * 1000)):
            return None
        *route, payload = self.socket.recv_multipart()
        assert route[-1] == b""
        event = Event(*msgpack.unpackb(payload, raw=False))
        assert event.header["v"] == 3 and event.header["message_id"]
        return event

    def collect(self, seconds: float) -> list[Event]:
        """All events of the next while."""
        until, found = time.monotonic() + seconds, []
        while (left := until - time.monotonic()) > 0:
            event = self.receive(left)
            if event is not None:
                found.append(event)
        return found

    def answer(self, id: Any, timeout: float = 10.0) -> Any:
        """The answer of a channel, when heartbeats and others' events are left out."""
        until = time.monotonic() + timeout
        while (event := self.receive(max(0.0, until - time.monotonic()))) is not None:
            if event.header["response_to"] == id and event.name == "OK":
                (value,) = event.args
                return value
            if event.header["response_to"] == id and event.name == "ERR":
                name, message, traceback = event.args
                assert traceback is None
                raise Err(name, message, event.header)
        raise TimeoutError("there was no answer")

    def ask(self, name: str, *args: Any, timeout: float = 10.0, **header: Any) -> Any:
        """Call, and wait for the answer."""
        return self.answer(self.call(name, *args, **header), timeout)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
        self._context.term()


class Served:
    """A server whose event loop runs in a thread."""

    def __init__(self, thing: Any, factory: Any = asyncio.new_event_loop, **options: Any) -> None:
        options.setdefault("endpoint", "tcp://127.0.0.1:*")
        self.server = Server(thing, **options)
        self._loop = factory()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.run(self.server.start())
        except BaseException:
            self._end()
            raise

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self.server.socket.endpoint

    def run(self, coroutine: Any) -> Any:
        """Run something on its event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def open_calls(self) -> int:
        """How many calls are open."""

        async def count() -> int:
            return sum(len(client.calls) for client in self.server._clients.values())

        found: int = self.run(count())
        return found

    def stop(self, grace: float = 0.0) -> None:
        """Stop the server and its loop, unless that was done."""
        if not self._loop.is_closed():
            self.run(self.server.stop(grace))
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@contextmanager
def served(thing: Any, **options: Any) -> Iterator[Served]:
    """A server for a while."""
    found = Served(thing, **options)
    try:
        yield found
    finally:
        found.stop()


@contextmanager
def client(endpoint: str, prepare: Callable[[Any], None] = lambda sock: None) -> Iterator[Raw]:
    """A client for a while."""
    raw = Raw(endpoint, prepare)
    try:
        yield raw
    finally:
        raw.close()


def wait_until(condition: Callable[[], Any], timeout: float = 10.0) -> None:
    """Wait until something has become true."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
