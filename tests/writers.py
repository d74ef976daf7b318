"""A log's writer in a process of its own, as the keeper is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import signal, sys
from pathlib import Path
from loopline.backends.handover import LogInlet
from loopline.backends.sqlite import SqliteLog

folder = Path(sys.argv[1])
log = SqliteLog(folder / "log.db")
inlet = LogInlet(log, str(folder / "keeper.sock"))
going = [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
print(inlet.address, flush=True)
while going:
    inlet.pump(0.005)
inlet.close()
log.close()
"""


class Writer:
    """A process that writes `folder/log.db` for whoever connects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "log.db"
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and learn where it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """SIGKILL it."""
        assert self._process is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Writer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.terminate()
        assert self._process.wait(20) in (0, -9)
        self._process.stdout.close()
