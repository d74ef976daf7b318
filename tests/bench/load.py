"""Load on an HTTP server: closed loops (wrk, or Python without it) and an open one on a schedule.

A closed loop has so many clients that each wait for their answer: it finds the capacity. The open
one sends when a request is due, whatever became of those before it, and counts latency from then:
only so does a pause show, since closed clients politely stop sending while the server stands.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

from tests.bench import machine

HERE = Path(__file__).parent
RECORD = np.dtype([(name, "<u4") for name in ("due", "noticed", "latency", "status")])
CONNECTIONS = 64
OPEN_CONNECTIONS = 256

Figures = dict[str, Any]


def post(url: str, body: bytes, timeout: float = 60.0) -> bytes:
    """POST some JSON and return the answer, which has to be a good one."""
    request = Request(url, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=timeout) as answer:
        found: bytes = answer.read()
        return found


def closed(url: str, body: bytes, seconds: float, *cpus: int) -> Figures:
    """Load with 64 clients that wait for their answers.

    Args:
        cpus: where the load generator runs; one thread for each.

    Returns:
        requests, seconds, rps, failed, and p50, p99, p999 and longest in milliseconds.
    """
    if shutil.which("wrk"):
        figures = _wrk(url, body, seconds, cpus)
    else:
        figures = asyncio.run(_clients(url, body, seconds))
    figures["rps"] = round(figures["requests"] / figures["seconds"], 1)
    return figures


def _wrk(url: str, body: bytes, seconds: float, cpus: tuple[int, ...]) -> Figures:
    # wrk counts whole seconds only.
    command = ["wrk", f"-t{max(1, len(cpus))}", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
    command += ["--timeout", "10s", "--latency", "-s", str(HERE / "post.lua"), url]
    with machine.on(*cpus):
        done = subprocess.run(
            command,
            env={**os.environ, "BENCH_BODY": body.decode()},
            capture_output=True,
            text=True,
        )
    lines = [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]
    if not lines:
        raise RuntimeError(f"wrk said nothing of use: {done.stdout} {done.stderr}")
    figures: Figures = json.loads(lines[0])
    return {**figures, "client": "wrk"}


async def _clients(url: str, body: bytes, seconds: float) -> Figures:
    """The fallback without wrk: right, but so slow that it measures itself."""
    taken: list[float] = []
    failed = 0
    request = spelled(url, body)
    began = time.monotonic()

    async def client() -> None:
        nonlocal failed
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        while (sent := time.monotonic()) < began + seconds:
            writer.write(request)
            failed += await _status(reader) != 200
            taken.append(time.monotonic() - sent)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    spent = time.monotonic() - began
    figures = {"requests": len(taken), "seconds": spent, "failed": failed, "client": "python"}
    return {**figures, **quantiles(np.array(taken) * 1000)}


async def _status(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    sizes = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
    await reader.readexactly(sizes[0])
    return int(head[9:12])


def spelled(url: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    where = urlsplit(url)
    head = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def quantiles(milliseconds: np.ndarray[Any, Any]) -> Figures:
    """p50, p99, p999 and the longest of some latencies."""
    p50, p99, p999 = np.percentile(milliseconds, [50, 99, 99.9])
    named = {"p50": p50, "p99": p99, "p999": p999, "longest": milliseconds.max()}
    return {name: round(float(value), 3) for name, value in named.items()}


class Scheduled:
    """An open-loop run that goes on in the background until `read`.

    Args:
        program: what `compile_scheduler` returned.
        rate: requests a second, equally spaced.
    """

    def __init__(self, program: Path, url: str, body: bytes, rate: float, seconds: float) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="loopline-bench-")
        request, self._records = (Path(self._folder.name) / name for name in ("request", "records"))
        request.write_bytes(spelled(url, body))
        numbers = [str(urlsplit(url).port), str(rate), str(seconds), str(OPEN_CONNECTIONS)]
        with machine.on(machine.LOAD_CPU):
            self._process = subprocess.Popen(
                [str(program), *numbers, str(request), str(self._records)],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        machine.hurry(self._process.pid)

    def read(self) -> tuple[Figures, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Wait for the end.

        Returns:
            The figures; the moments on `time.monotonic` when requests were due; and their
            latencies in milliseconds. `late` is the p99 of how late the generator itself was.
        """
        out, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError("the load on a schedule failed")
        told = json.loads(out)
        records = np.fromfile(self._records, RECORD)
        self._folder.cleanup()
        latency = records["latency"] / 1e3
        late = float(np.percentile(records["noticed"], 99)) / 1e3
        due = told.pop("start") + records["due"] / 1e6
        return {**told, **quantiles(latency), "late": round(late, 3)}, due, latency


def compile_scheduler(folder: Path) -> Path | None:
    """Compile the open-loop generator; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    program = folder / "schedule"
    subprocess.run([compiler, "-O2", "-o", str(program), str(HERE / "schedule.c")], check=True)
    return program
