"""A process that writes a log for others, as the keeper does, and can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CODE = """
import json, select, sys
from loopline.backends.handover import LogInlet
from loopline.backends.sqlite import SqliteLog
log = SqliteLog(sys.argv[1])
address = json.loads(sys.argv[2])
inlet = LogInlet(log, address if isinstance(address, str) else tuple(address))
print(json.dumps(inlet.address), flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    inlet.pump(0.005)
inlet.close()
log.close()
"""


class Writer:
    """The writer of one file; started again, it may listen somewhere else."""

    def __init__(self, file: Path, address: str | tuple[str, int]) -> None:
        self.file = file
        self._wanted = json.dumps(address)
        self._process: subprocess.Popen[str] | None = None
        self.address: Any = None

    def start(self) -> Writer:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(self.file), self._wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = json.loads(self._process.stdout.readline())
        return self

    def kill(self) -> None:
        """Kill it with no warning."""
        assert self._process is not None
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Let it take what was handed over and end."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(20)
        for end in (self._process.stdin, self._process.stdout):
            if end is not None and not end.closed:
                end.close()
