"""The event log between processes: `LogInlet` writes what a `LogClient` hands over.

Each client has one stream to the writer. Offers and requests travel on it in order, as frames
with a number; the writer answers with the number up to which everything is committed, and the
client keeps each frame until then, so that a new writer gets whatever the old one did not commit.
Keys are unique, which makes sending again harmless.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import os
import secrets
import selectors
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loopline.backends.handover_client import LogClient
from loopline.backends.handover_wire import (
    NOBODY,
    PROTOCOL,
    Address,
    Frames,
    Garbage,
    Kind,
    Result,
    encode,
    frame,
    read_commit,
    read_rows,
)
from loopline.backends.sqlite import SqliteLog, Work
from loopline.errors import LooplineError, Unavailable

__all__ = ["LogClient", "LogInlet"]

logger = logging.getLogger("loopline.log")

HOLD = 0.004
"""Seconds the writer gathers offers for before it commits them."""
CADENCE = 0.002
"""Seconds between two looks at the sockets while only offers come."""
READ = 2 * 2**20
"""Bytes taken from one client at a look; as much from all of them ends the gathering."""
HELD = 4 * 2**20
"""Bytes of events the writer keeps while the disk is full; past that it stops reading."""
LEISURE = 0.02
"""Seconds within which a client that only offers hears what is committed: each answer wakes it."""

_LONGEST_PATH = 100
_PIECE = 256 * 1024
_RETRY = (0.1, 1.0)
_FAREWELL = 5.0


class _Peer:
    """One client's stream, at the writer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frames = Frames()
        self.welcome = False
        self.ended = False
        self.committed = 0
        self.results: list[Result] = []
        self._out = bytearray()

    def receive(self, most: int) -> int:
        """Take in what the client has sent, up to `most` bytes."""
        got = 0
        while got < most and not self.ended:
            try:
                data = self.sock.recv(_PIECE)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            self.ended = not data
            self.frames.feed(data)
            got += len(data)
            if len(data) < _PIECE:
                break
        return got

    def answer(self) -> None:
        """Say what is committed, and the results of requests."""
        self._out += frame(Kind.ANSWER, self.committed, encode(self.results))
        self.results = []
        self.flush()

    def flush(self) -> None:
        """Send what the client has not taken yet."""
        # A client that died is noticed when reading, because what it sent before still counts.
        with contextlib.suppress(OSError):
            while self._out:
                del self._out[: self.sock.send(self._out)]


class _Part(msgspec.Struct):
    """One frame's part of a transaction."""

    peer: _Peer
    number: int
    kind: int
    work: Work


class LogInlet:
    """The writer's end, to be pumped by one thread.

    Args:
        log: the writer of the file.
        address: where to listen: a path for a Unix socket (a short temporary one is used when it
            is too long, see `address`), or (host, port) for TCP with a key, which is also used
            where there are no Unix sockets. Port 0 picks a free one.
    """

    def __init__(self, log: SqliteLog, address: str | tuple[str, int]) -> None:
        self._log = log
        self._key = ""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._peers: list[_Peer] = []
        self._held: list[_Part] = []
        self._again = self._pause = self._answered = 0.0
        self._asked = False
        self._owed: set[_Peer] = set()
        self._selector = selectors.DefaultSelector()
        self._listener, self.address = self._listen(address)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _listen(self, address: str | tuple[str, int]) -> tuple[socket.socket, Address]:
        if isinstance(address, str) and hasattr(socket, "AF_UNIX"):
            return self._listen_unix(address)
        host, port = ("127.0.0.1", 0) if isinstance(address, str) else address
        self._key = secrets.token_hex(32)
        listener = socket.create_server((host, port))
        return listener, (*listener.getsockname()[:2], self._key)

    def _listen_unix(self, path: str) -> tuple[socket.socket, str]:
        if len(os.fsencode(path)) > _LONGEST_PATH:
            self._folder = tempfile.TemporaryDirectory(prefix="loopline-")
            path = os.path.join(self._folder.name, "log.sock")
        if Path(path).is_socket():
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(path)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        return listener, path

    def pump(self, timeout: float) -> int:
        if not self._wait(timeout):
            for peer in self._peers:
                peer.flush()
            self._answer(set())
            return self._commit([])
        parts: list[_Part] = []
        began = time.monotonic()
        self._asked = False
        taken = self._take(parts)
        while not self._asked and taken < READ and time.monotonic() - began < HOLD:
            time.sleep(CADENCE)
            taken += self._take(parts)
        if self._asked:
            # Whoever reports an outcome may have had the prediction from another client.
            self._take(parts, offers_only=True)
        return self._commit(parts)

    def _wait(self, timeout: float) -> bool:
        """Wait for something to read; accept new clients."""
        full = sum(part.work.size for part in self._held) > HELD
        if not full and any(peer.frames.peek() for peer in self._peers):
            return True
        if self._held or self._owed:
            timeout = min(timeout, LEISURE if self._owed else _RETRY[0])
        ready = self._selector.select(timeout)
        for key, _ in ready:
            if key.fileobj is self._listener:
                self._accept()
        if full:
            time.sleep(CADENCE)
        return bool(ready) and not full

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                self._selector.register(sock, selectors.EVENT_READ)
                self._peers.append(_Peer(sock))

    def _take(self, parts: list[_Part], offers_only: bool = False) -> int:
        taken = 0
        for peer in list(self._peers):
            taken += peer.receive(4 * READ if offers_only else READ)
            try:
                for part in self._read(peer, offers_only):
                    parts.append(part)
                done = peer.ended and (not offers_only or not peer.frames.peek())
            except (Garbage, msgspec.DecodeError, LooplineError) as error:
                logger.warning("a client of the log was sent away: %s", error)
                done = True
            if done:
                self._drop(peer)
        return taken

    def _drop(self, peer: _Peer) -> None:
        self._peers.remove(peer)
        self._selector.unregister(peer.sock)
        peer.sock.close()

    def _read(self, peer: _Peer, offers_only: bool) -> Iterator[_Part]:
        while head := peer.frames.peek():
            length, number, kind = head
            if offers_only and kind != Kind.OFFER:
                return
            body = peer.frames.take(length)
            if kind == Kind.HELLO:
                self._greet(peer, body)
            elif not peer.welcome:
                raise Garbage("no greeting")
            else:
                self._asked |= kind != Kind.OFFER
                yield _Part(peer, number, kind, _work(kind, body))

    def _greet(self, peer: _Peer, body: bytes) -> None:
        protocol, key = msgspec.msgpack.decode(body, type=tuple[int, str])
        if protocol != PROTOCOL or not hmac.compare_digest(key.encode(), self._key.encode()):
            raise Garbage("a wrong key, or another release")
        peer.welcome = True
        peer.answer()

    def _commit(self, parts: list[_Part]) -> int:
        self._held += parts
        if not self._held or time.monotonic() < self._again:
            return 0
        parts, self._held = self._held, []
        try:
            inserted = self._log.together([part.work for part in parts])
        except Unavailable as error:
            self._refuse(parts, error)
            return 0
        if self._pause:
            logger.warning("events are committed again")
            self._pause = 0.0
            self._owed.update(self._peers)
        for part in parts:
            part.peer.committed = max(part.peer.committed, part.number)
            if part.work.error is not None or part.work.result is not None:
                part.peer.results.append(_result(part))
        self._owed.update(part.peer for part in parts)
        self._answer({part.peer for part in parts if part.kind != Kind.OFFER})
        return inserted

    def _refuse(self, parts: list[_Part], error: LooplineError) -> None:
        """Tell everybody that it failed, and why; keep the offers for the next time."""
        if not self._pause:
            logger.warning("nothing can be committed: %s", error)
        self._pause = min(2 * self._pause, _RETRY[1]) or _RETRY[0]
        self._again = time.monotonic() + self._pause
        self._held = [part for part in parts if part.kind == Kind.OFFER]
        for part in parts:
            if part.kind != Kind.OFFER:
                part.work.error = error
                part.peer.results.append(_result(part))
        for peer in self._peers:
            peer.results.append(Result(NOBODY, error.code, error.detail))
            peer.answer()

    def _answer(self, asked: set[_Peer]) -> None:
        """Answer those who asked, and now and then those who only offered."""
        now = time.monotonic()
        if now - self._answered >= LEISURE:
            asked, self._answered = asked | self._owed, now
        for peer in asked:
            peer.answer()
        self._owed -= asked

    def close(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._selector.unregister(self._listener)
        self._listener.close()
        if isinstance(self.address, str):
            with contextlib.suppress(OSError):
                os.unlink(self.address)
        if self._folder is not None:
            self._folder.cleanup()
        self._again = 0.0
        deadline = time.monotonic() + _FAREWELL
        parts: list[_Part] = []
        while (self._take(parts) or parts) and time.monotonic() < deadline:
            self._commit(parts)
            parts = []
        self._commit([])
        for peer in list(self._peers):
            peer.answer()
            self._drop(peer)
        self._selector.close()


def _work(kind: int, body: bytes) -> Work:
    """What a frame asks the log to do."""
    if kind in (Kind.OFFER, Kind.APPEND):
        rows = read_rows(body)
        if not all(math.isfinite(sum([row[1] for row in some])) for some in rows.values()):
            raise Garbage("an event without a time")
        return Work(rows, size=len(body))
    if kind == Kind.COMMIT:
        asked = read_commit(body)
        return Work(
            asked.outputs,
            lambda turn: turn.move_group(asked.group, asked.generation, asked.positions),
        )
    if kind == Kind.OPEN:
        group = msgspec.msgpack.decode(body, type=str)
        return Work(action=lambda turn: turn.open_group(group))
    if kind == Kind.TRIM:
        topic, before, most = msgspec.msgpack.decode(body, type=tuple[str, float, int])
        return Work(action=lambda turn: turn.trim(topic, before, most))
    if kind == Kind.ERASE:
        topic, keys = msgspec.msgpack.decode(body, type=tuple[str, list[str]])
        return Work(action=lambda turn: turn.erase(topic, keys))
    raise Garbage(f"a frame of kind {kind}")


def _result(part: _Part) -> Result:
    error = part.work.error
    if error is not None:
        return Result(part.number, error.code, error.detail)
    return Result(part.number, value=part.work.result)
