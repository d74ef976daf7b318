"""Real servers for tests: started as a user would, spoken to over HTTP, killed by process id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from loopline.opening import running


class Server:
    """A `loopline serve` process tree on one data directory and port.

    Args:
        folder: where the data directory, the log file and the application are.
        port: a free port.
        arguments: what follows `loopline serve`.
    """

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            *(sys.executable, "-m", "loopline", "serve", *arguments),
            *("--port", str(port), "--data-dir", str(self.data)),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=30.0)

    def start(self, ready: str = "/livez", timeout: float = 60.0) -> float:
        """Start it and wait until `ready` answers 200; returns the seconds that took."""
        began = time.monotonic()
        output = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
        )
        output.close()
        self._wait_for_own(timeout)
        self.wait(ready, timeout)
        return time.monotonic() - began

    def _wait_for_own(self, timeout: float) -> None:
        """Wait until the data directory is this server's, not one's that is just going."""
        deadline = time.monotonic() + timeout
        while (found := running(self.data)) is None or found.pid != self.pid("supervisor"):
            assert time.monotonic() < deadline, self.log()
            assert self.process is not None and self.process.poll() is None, self.log()
            time.sleep(0.01)

    def wait(self, path: str, timeout: float = 60.0) -> None:
        """Wait until a GET of `path` answers 200."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self.client.get(path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"{path} is not ready: {self.log()}"
            assert self.process is None or self.process.poll() is None, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """The last of what the server printed."""
        return (self.folder / "server.log").read_text(errors="replace")[-4000:]

    def pid(self, role: str) -> int:
        """The process id of `supervisor`, or of `keeper-0`, `replica-0`, `worker-0`."""
        assert self.process is not None
        if role == "supervisor":
            return self.process.pid
        for child in psutil.Process(self.process.pid).children():
            if child.cmdline()[-1:] == [role]:
                return child.pid
        raise LookupError(f"no {role} at the moment")

    def kill(self, role: str) -> None:
        """SIGKILL one process of the tree."""
        os.kill(self.pid(role), signal.SIGKILL)
        if role == "supervisor":
            assert self.process is not None
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as a service manager would; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(30)
        self.client.close()
        return code

    def get(self, path: str, **query: Any) -> Any:
        """GET as JSON; the request has to succeed."""
        answer = self.client.get(path, params=query)
        assert answer.is_success, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """POST JSON, answer as JSON; the request has to succeed."""
        answer = self.client.post(path, json=body, params=query)
        assert answer.is_success, answer.text
        return answer.json()
