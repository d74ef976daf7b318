"""Load over other protocols: closed loops that keep so many requests in flight on one connection.

Requests are encoded once and answers looked at as little as possible, so that the server is what
is measured: gRPC by h2load, ZeroRPC by a bare DEALER, WebSocket by a bare socket.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.bench import machine
from tests.bench.load import CONNECTIONS, Figures

Load = Callable[[float], Figures]


def grpc(address: str, path: str, message: bytes) -> Load:
    """Unary gRPC calls of one message on 64 connections, by h2load."""

    def run(seconds: float) -> Figures:
        if not shutil.which("h2load"):
            raise RuntimeError("needs h2load (Debian's nghttp2-client)")
        with tempfile.TemporaryDirectory(prefix="loopline-bench-") as folder:
            body = Path(folder, "body")
            body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
            command = ["h2load", f"-c{CONNECTIONS}", "-m1", "-t1", f"-D{max(1, round(seconds))}"]
            command += ["-d", str(body), "-H", "content-type: application/grpc"]
            command += ["-H", "te: trailers", f"http://{address}{path}"]
            with machine.on(machine.LOAD_CPU):
                done = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"finished in ([\d.]+)s", done.stdout)
        count = re.search(r"(\d+) succeeded, (\d+) failed", done.stdout)
        if found is None or count is None:
            raise RuntimeError(f"h2load said nothing of use: {done.stdout} {done.stderr}")
        return _figures(int(count[1]), float(found[1]), [], failed=int(count[2]))

    return run


def zerorpc(endpoint: str, method: str, argument: Any, wanted: str, flight: int = 64) -> Load:
    """Calls of one method, so many in flight, in the wire format of ZeroRPC 3."""
    import zmq

    def run(seconds: float) -> Figures:
        context = zmq.Context()
        sock = context.socket(zmq.DEALER)
        sock.connect(endpoint)
        decode, encode = msgspec.msgpack.Decoder().decode, msgspec.msgpack.encode
        sent: dict[str, float] = {}
        taken: list[float] = []

        def ask(number: int) -> None:
            id = f"{number:032x}"
            sent[id] = time.perf_counter()
            sock.send_multipart([b"", encode([{"message_id": id, "v": 3}, method, [argument]])])

        try:
            with machine.on(machine.LOAD_CPU):
                began = time.perf_counter()
                for number in range(flight):
                    ask(number)
                number = flight
                while (now := time.perf_counter()) - began < seconds:
                    header, name, answer = decode(sock.recv_multipart()[-1])
                    if name == "_zpc_hb":
                        continue
                    if name != "OK" or wanted not in str(answer):
                        raise RuntimeError(f"{endpoint} answers {name} {answer}")
                    taken.append(now - sent.pop(header["response_to"]))
                    ask(number)
                    number += 1
            return _figures(len(taken), time.perf_counter() - began, taken)
        finally:
            context.destroy(linger=0)

    return run


def websocket(host: str, port: int, path: str, message: bytes, flight: int = 128) -> Load:
    """Text messages, so many in flight on one connection."""

    def run(seconds: float) -> Figures:
        with socket.create_connection((host, port)) as sock, machine.on(machine.LOAD_CPU):
            _upgrade(sock, host, port, path)
            frame = _masked(message)
            began, count, held = time.perf_counter(), 0, b""
            sock.sendall(frame * flight)
            while time.perf_counter() - began < seconds:
                held += sock.recv(1 << 18)
                found, held = _frames(held)
                count += found
                sock.sendall(frame * found)
            return _figures(count, time.perf_counter() - began, [])

    return run


def _upgrade(sock: socket.socket, host: str, port: int, path: str) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket"]
    lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += sock.recv(4096)
    if b" 101 " not in answer.partition(b"\r\n")[0]:
        raise RuntimeError(f"no WebSocket at {path}: {answer!r}")


def _masked(message: bytes) -> bytes:
    """One text frame; a mask of zeros leaves the bytes as they are."""
    size = len(message)
    head = bytes([0x81, 0x80 | size]) if size < 126 else struct.pack(">BBH", 0x81, 0xFE, size)
    return head + bytes(4) + message


def _frames(held: bytes) -> tuple[int, bytes]:
    """How many whole answers there are, and what is left behind them."""
    at = count = 0
    while len(held) - at >= 4:
        size, start = held[at + 1] & 0x7F, at + 2
        if size == 126:
            size, start = struct.unpack_from(">H", held, start)[0], start + 2
        if len(held) < start + size:
            break
        if held[at] & 0x0F == 1:
            if b'"error"' in held[start : start + size]:
                raise RuntimeError(f"an answer is {held[start : start + size]!r}")
            count += 1
        at = start + size
    return count, held[at:]


def _figures(count: int, seconds: float, taken: list[float], failed: int = 0) -> Figures:
    figures: Figures = {"requests": count, "seconds": round(seconds, 3), "failed": failed}
    figures["rps"] = round(count / seconds, 1)
    if taken:
        taken.sort()
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            figures[name] = round(1000 * taken[int(len(taken) * share)], 3)
    return figures
