"""The servers under measurement, ours and the peers', with each process where it belongs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from tests.bench import machine
from tests.bench.load import post
from tests.bench.workloads import WORKLOADS
from tests.servers import Server

SERVED = Path(__file__).parent / "served.py"
PATIENCE = 180.0
PLACEMENTS = {
    "one": "every process on one core, the load on another",
    "apart": "the keeper and the worker beside the load, the rest on one core",
    "free": "wherever the system puts it, and the load too",
}


class Target(Protocol):
    """A server that runs, as far as a measurement needs to know it."""

    url: str

    @property
    def pid(self) -> int:
        """The process whose descendants are the whole server."""
        ...


class Ours:
    """A Loopline server with a data directory of its own.

    Args:
        folder: where it works; what a former one left there is served again.
        workload: what it serves, a key of `WORKLOADS`.
        log: the model's log mode.
        replicas: how many processes answer.
        placement: a key of `PLACEMENTS`.
        busy: also serve a model whose training takes long.
        also: more arguments of `loopline serve`.
    """

    def __init__(
        self,
        folder: Path,
        workload: str = "iris",
        *,
        log: str = "async",
        replicas: int = 1,
        placement: str = "one",
        busy: bool = False,
        also: Sequence[str] = (),
    ) -> None:
        arguments = (str(SERVED), "--processes", str(replicas), *also)
        self._server = Server(folder, free_port(), *arguments)
        self._server.client.timeout = PATIENCE
        self._environ = {"BENCH_WORKLOAD": workload, "BENCH_LOG": log, "BENCH_BUSY": "y" * busy}
        self._placement = placement
        self.model = f"{self._server.url}/v1/models/bench"
        self.url = f"{self.model}/predict"
        self.data = self._server.data
        self.get, self.post = self._server.get, self._server.post

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._server.pid("supervisor")

    def start(self, ready: str = "/readyz") -> float:
        """Start and wait until it is ready; returns the seconds that took."""
        cpus = machine.CPUS if self._placement == "free" else [machine.SERVER_CPU]
        with environment(**self._environ), machine.on(*cpus):
            spent = self._server.start(ready, PATIENCE)
        if self._placement == "apart":
            for process in (*self.role("keeper"), *self.role("worker")):
                machine.pin(process, machine.LOAD_CPU)
        return spent

    def role(self, role: str) -> list[psutil.Process]:
        """The processes of one role: keeper, replica or worker."""
        found = psutil.Process(self.pid).children()
        return [each for each in found if each.cmdline()[-1].startswith(f"{role}-")]

    def drained(self, patience: float = 60.0) -> float | None:
        """Wait until the log has everything; the seconds that took, None where time was up."""
        began = time.monotonic()
        while (spent := time.monotonic() - began) < patience:
            if self.metric("loopline_log_buffer_bytes") == 0:
                return round(spent, 2)
            time.sleep(0.02)
        return None

    def metric(self, name: str) -> float:
        """One number of /metrics, summed over its labels."""
        text = self._server.client.get("/metrics").text
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def stop(self) -> None:
        """Stop in order."""
        self._server.stop()


class Theirs:
    """A peer's server: any command that answers on a port of ours, and perhaps on a second."""

    def __init__(self, command: list[str], path: str, environ: dict[str, str]) -> None:
        self.port, self.second = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}{path}"
        self._folder = tempfile.mkdtemp(prefix="loopline-bench-")
        self._command = [self._placed(part) for part in command]
        self._environ = {name: self._placed(value) for name, value in environ.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def _placed(self, text: str) -> str:
        return text.replace("SECOND", str(self.second)).replace("PORT", str(self.port))

    @property
    def pid(self) -> int:
        """The first process."""
        assert self._process is not None
        return self._process.pid

    def start(self, body: bytes, patience: float) -> float:
        """Start and wait for the first good answer; returns the seconds that took."""
        began = time.monotonic()
        with machine.on(machine.SERVER_CPU), open(f"{self._folder}/log", "wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**os.environ, **self._environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            try:
                post(self.url, body, timeout=10.0)
                return time.monotonic() - began
            except OSError as error:
                said = str(error)
            if self._process.poll() is not None or time.monotonic() > began + patience:
                raise RuntimeError(f"{self._command[0]}: {said}; {self.log()}")
            time.sleep(0.05)

    def log(self) -> str:
        """The last of what it printed."""
        return Path(self._folder, "log").read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        """Stop it, and kill by process id what it leaves behind."""
        if self._process is None:
            return
        started = machine.tree(self._process.pid)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def ours(workload: str = "iris", **options: Any) -> Iterator[Ours]:
    """A Loopline server in a temporary folder, ready to answer."""
    with tempfile.TemporaryDirectory(prefix="loopline-bench-") as folder:
        server = Ours(Path(folder), workload, **options)
        try:
            server.start()
            check(server.url, workload)
            yield server
        finally:
            server.stop()


def check(url: str, workload: str) -> None:
    """Make sure that a server answers right: speed without that is worth nothing."""
    wanted = WORKLOADS[workload]
    found = post(url, wanted.body()).decode()
    if wanted.expect not in found:
        raise RuntimeError(f"{url} answers {found[:300]!r} without {wanted.expect!r}")


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def free_port() -> int:
    """A port that is free on the loopback address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
