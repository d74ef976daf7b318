"""What travels between a log's clients and its writer: numbered frames of MessagePack."""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from loopline.backends.sqlite import Rows

Address = str | tuple[Any, ...] | list[Any]
"""A path of a Unix socket, or (host, port, key) on the loopback address."""

PROTOCOL = 1
MAX_FRAME = 128 * 2**20
HEAD = struct.Struct("<IQB")


class Kind(IntEnum):
    """What a frame holds."""

    HELLO = 0  # [protocol, key]
    OFFER = 1  # events by topic
    APPEND = 2  # events by topic
    OPEN = 3  # group
    COMMIT = 4  # [group, generation, positions, events by topic]
    TRIM = 5  # [topic, before, most]
    ERASE = 6  # [topic, keys]
    ANSWER = 7  # to the client: results of requests, and in the head what is committed


class Positions(msgspec.Struct, array_like=True):
    """What a consumer commits."""

    group: str
    generation: int
    positions: dict[str, int]
    outputs: Rows


NOBODY = 0
"""The number of a result that is for everyone who waits: nothing can be committed."""


class Result(msgspec.Struct, array_like=True):
    """What became of the request with that number: a value, or an error by its code."""

    number: int
    code: str | None = None
    detail: str = ""
    value: Any = None


class Garbage(Exception):
    """The other end does not speak this protocol."""


encode = msgspec.msgpack.Encoder().encode
# SQLite's driver looks for an adapter of every `bytes` it is given, and that costs as much as the
# insertion itself; a `bytearray` it takes as it is.
_Taken = dict[str, list[tuple[str, float, bytearray]]]
read_rows: Callable[[bytes], Any] = msgspec.msgpack.Decoder(_Taken).decode
read_commit = msgspec.msgpack.Decoder(Positions).decode
read_results = msgspec.msgpack.Decoder(list[Result]).decode


def frame(kind: Kind, number: int, body: bytes) -> bytes:
    """A frame: length of the body, number, kind, body."""
    return HEAD.pack(len(body), number, kind) + body


class Frames:
    """Bytes as they arrive, cut into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Take in what was received."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def peek(self) -> tuple[int, int, int] | None:
        """The head (length, number, kind) of the next frame, if all of it is there."""
        there = len(self._buffer) - self._start - HEAD.size
        if there < 0:
            return None
        head = HEAD.unpack_from(self._buffer, self._start)
        if head[0] > MAX_FRAME or head[2] > Kind.ANSWER:
            raise Garbage(f"a frame of kind {head[2]} and {head[0]} bytes")
        return head if there >= head[0] else None

    def take(self, length: int) -> bytes:
        """The body of the frame that `peek` has found, which is so long."""
        start = self._start + HEAD.size
        self._start = start + length
        return bytes(self._buffer[start : self._start])
