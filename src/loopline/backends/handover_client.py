"""The client's end of the hand-over: an event log for every process that is not the writer."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from loopline.backends.handover_wire import (
    HEAD,
    MAX_FRAME,
    NOBODY,
    PROTOCOL,
    Address,
    Frames,
    Garbage,
    Kind,
    Positions,
    Result,
    encode,
    frame,
    read_results,
)
from loopline.backends.sqlite import LogFile, rows_of
from loopline.errors import InvalidInput, LooplineError, Overloaded, Unavailable, WrongState
from loopline.records import Event

logger = logging.getLogger("loopline.log")

_BACK_OFF = (0.01, 0.1)
_LEAST = 0.25
_ANSWER = 5.0
_TROUBLED = 1.5
_FAREWELL = 5.0
_ERRORS: dict[str, type[LooplineError]] = {
    kind.code: kind for kind in (InvalidInput, Unavailable, WrongState)
}
_Told = list[tuple[Future[Any], Result]]


class _Sent(msgspec.Struct):
    """A frame that the writer has not committed yet; only requests have somebody waiting."""

    data: bytes
    future: Future[Any] | None


class LogClient(LogFile):
    """The event log for every process that is not its writer.

    Reading goes straight to the file. One thread of its own, started with the first event,
    receives answers, sends what a socket would not take at once, and finds the next writer.

    Args:
        path: the log's file; it need not be there yet.
        address: where the writer listens, or a function that says where it listens now.
        max_buffer: bytes of offered events that may be unacknowledged.
        patience: seconds a request waits while no writer is there.
    """

    def __init__(
        self,
        path: str | Path,
        address: Address | Callable[[], Address],
        max_buffer: int = 64 * 2**20,
        patience: float = 2.0,
    ) -> None:
        super().__init__(path)
        self._find_writer = address if callable(address) else lambda: address
        self._max_buffer = max_buffer
        self._patience = patience
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._pending: OrderedDict[int, _Sent] = OrderedDict()
        self._rest: deque[memoryview] = deque()
        self._number = 0
        self._offered = 0
        self._sock: socket.socket | None = None
        self._frames = Frames()
        self._here = False
        self._heard = 0.0
        self._away_since = 0.0
        self._trouble = ""
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wake: tuple[socket.socket, socket.socket] | None = None

    @property
    def buffered(self) -> int:
        return self._offered

    def offer(self, events: Sequence[Event]) -> None:
        if events:
            self._send(Kind.OFFER, encode(rows_of(events)), None)

    def append(self, events: Sequence[Event]) -> None:
        if events:
            self._ask(Kind.APPEND, rows_of(events))

    def trim(self, topic: str, before: float, most: int = 1000) -> int:
        return int(self._ask(Kind.TRIM, (topic, float(before), most)))

    def erase(self, topic: str, keys: Sequence[str]) -> int:
        return int(self._ask(Kind.ERASE, (topic, list(keys))))

    def open_group(self, group: str) -> tuple[int, dict[str, int]]:
        generation, positions = self._ask(Kind.OPEN, group)
        return generation, positions

    def commit_group(
        self, group: str, generation: int, positions: dict[str, int], outputs: Sequence[Event]
    ) -> None:
        self._ask(Kind.COMMIT, Positions(group, generation, positions, rows_of(outputs)))

    def _ask(self, kind: Kind, body: Any) -> Any:
        """Send a request and wait for its result."""
        future: Future[Any] = Future()
        number = self._send(kind, encode(body), future)
        began = time.monotonic()
        while True:
            now = time.monotonic()
            until = max(began, self._heard) + _ANSWER
            if not self._here:
                until = min(until, max(self._away_since + self._patience, began + _LEAST))
            elif self._trouble:
                until = min(until, began + _TROUBLED)
            if now >= until:
                self._give_up(number, future)
            try:
                return future.result(max(0.001, min(until - now, 0.1)))
            except TimeoutError:
                continue

    def _give_up(self, number: int, future: Future[Any]) -> None:
        """Fail a request that nobody has answered, and do not send it again."""
        with self._lock:
            sent = self._pending.pop(number, None)
            # Of a frame that has begun to go out, the writer needs the rest.
            data = sent.data if sent is not None else b""
            self._rest = deque(v for v in self._rest if v.obj is not data or len(v) < len(data))
        if sent is not None:
            sentence = self._trouble or "The log's writer is away; try again shortly."
            future.set_exception(Unavailable(sentence, retry_after=1.0))

    def _send(self, kind: Kind, body: bytes, future: Future[Any] | None) -> int:
        if len(body) > MAX_FRAME:
            raise InvalidInput(f"these events have {len(body)} bytes, the log takes {MAX_FRAME}")
        size = len(body) + HEAD.size
        with self._lock:
            if self._closing:
                raise Unavailable("The log was closed.")
            if future is None:
                if self._offered + size > self._max_buffer:
                    raise Overloaded(
                        "The buffer of the log is full; try again shortly.", retry_after=1.0
                    )
                self._offered += size
            self._start()
            self._number += 1
            data = frame(kind, self._number, body)
            self._pending[self._number] = _Sent(data, future)
            if self._sock is not None:
                self._push(data)
            elif future is not None:
                self._nudge()
            return self._number

    def _push(self, data: bytes) -> None:
        """Send at once what the socket takes, and leave the rest to the thread."""
        self._rest.append(memoryview(data))
        if len(self._rest) == 1:
            self._flush()
            if self._rest:
                self._nudge()

    def _flush(self) -> None:
        """Send what is left, as far as the socket takes it. The lock is held."""
        while self._rest and self._sock is not None:
            try:
                sent = self._sock.send(self._rest[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # No later frame may pass this one, so nothing more goes out on this stream.
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                return
            if sent == len(self._rest[0]):
                self._rest.popleft()
            else:
                self._rest[0] = self._rest[0][sent:]

    def _nudge(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                self._wake[1].send(b"\0")

    def _start(self) -> None:
        if self._thread is not None:
            return
        self._wake = socket.socketpair()
        for end in self._wake:
            end.setblocking(False)
        self._away_since = time.monotonic()
        self._attach(self._reach())
        self._thread = threading.Thread(target=self._run, name="log client", daemon=True)
        self._thread.start()

    def _reach(self) -> tuple[socket.socket, str] | None:
        """Connect to whoever is the writer now."""
        try:
            return _open(self._find_writer())
        except (OSError, LooplineError):
            return None

    def _attach(self, found: tuple[socket.socket, str] | None) -> None:
        """Send a writer what none has committed. The lock is held."""
        if found is None:
            return
        self._sock, key = found
        self._frames = Frames()
        hello = frame(Kind.HELLO, 0, encode((PROTOCOL, key)))
        self._rest = deque(memoryview(sent.data) for sent in self._pending.values())
        self._rest.appendleft(memoryview(hello))
        self._flush()

    def _run(self) -> None:
        pause = _BACK_OFF[0]
        while not self._over():
            if self._sock is not None and self._listen(self._sock):
                pause = _BACK_OFF[0]
            self._nap(pause)
            pause = min(2 * pause, _BACK_OFF[1])
            found = self._reach()
            with self._lock:
                self._attach(found)
        if self._sock is not None:
            self._sock.close()

    def _over(self) -> bool:
        with self._lock:
            return self._closing and not self._pending

    def _nap(self, pause: float) -> None:
        assert self._wake is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake[0], selectors.EVENT_READ)
            if selector.select(pause):
                self._wake[0].recv(4096)

    def _listen(self, sock: socket.socket) -> bool:
        """Talk to one writer until it or this client goes; tell whether it ever answered."""
        assert self._wake is not None
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._wake[0], selectors.EVENT_READ)
            with contextlib.suppress(OSError, Garbage, msgspec.DecodeError):
                while not self._over():
                    self._turn(sock, selector)
        with self._lock:
            answered, self._here, self._sock, self._trouble = self._here, False, None, ""
            if answered:
                self._away_since = time.monotonic()
        sock.close()
        return answered

    def _turn(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        assert self._wake is not None
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._rest else 0)
        if selector.get_key(sock).events != wanted:
            selector.modify(sock, wanted)
        for key, ready in selector.select(1.0):
            if key.fileobj is not sock:
                self._wake[0].recv(4096)
                continue
            if ready & selectors.EVENT_WRITE:
                with self._lock:
                    self._flush()
            if ready & selectors.EVENT_READ:
                data = sock.recv(65_536)
                if not data:
                    raise ConnectionResetError
                self._frames.feed(data)
        while head := self._frames.peek():
            self._settle(head[1], read_results(self._frames.take(head[0])))

    def _settle(self, committed: int, results: list[Result]) -> None:
        """Let go of what is committed or refused, and tell those who wait."""
        told: _Told = []
        with self._lock:
            self._here, self._heard = True, time.monotonic()
            self._trouble = next((each.detail for each in results if each.number == NOBODY), "")
            for result in results:
                self._let_go(result.number, told, result)
            while self._pending and (number := next(iter(self._pending))) <= committed:
                self._let_go(number, told)
            if not self._pending:
                self._drained.notify_all()
        for future, result in told:
            if result.code is None:
                future.set_result(result.value)
            else:
                future.set_exception(_ERRORS.get(result.code, Unavailable)(result.detail))

    def _let_go(self, number: int, told: _Told, result: Result | None = None) -> None:
        sent = self._pending.pop(number, None)
        if sent is None:
            return
        if sent.future is None:
            self._offered -= len(sent.data)
        else:
            told.append((sent.future, result or Result(number)))

    def close(self) -> None:
        with self._lock:
            already, self._closing = self._closing, True
            if self._thread is not None and not already:
                patience = _FAREWELL if self._here else self._patience
                self._drained.wait_for(lambda: not self._pending, patience)
                if self._pending:
                    logger.error("%d frames found no writer and are lost", len(self._pending))
                for sent in self._pending.values():
                    if sent.future is not None:
                        sent.future.set_exception(Unavailable("The log was closed."))
                self._pending.clear()
            self._nudge()
        if self._thread is not None and not already:
            self._thread.join()
            for end in self._wake or ():
                end.close()
        super().close()


def _open(address: Address) -> tuple[socket.socket, str]:
    """Connect to a writer; also returns the key it asks for."""
    if isinstance(address, str):
        sock, key = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), ""
        where: Any = address
    else:
        host, port, key = address
        sock, where = socket.socket(socket.AF_INET, socket.SOCK_STREAM), (host, port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 2**20)
        sock.settimeout(0.5)
        sock.connect(where)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock, key
