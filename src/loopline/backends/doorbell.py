"""A doorbell over SQLite files: a commit by any process rings it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loopline.backends.sqlite import SqlError, open_readonly

_SHORT, _LONG = 0.001, 0.020
_CHANGE = 0.05


class PollingDoorbell:
    """Rings when one of some SQLite files changes, and for `ring` within this process.

    While anybody waits, one of those who wait asks SQLite for each file's data version: after a
    millisecond at first, then ever less often, at least every 20 ms.

    Args:
        files: the files; they may be made later.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self._files = [_File(Path(file)) for file in files]
        self._condition = threading.Condition()
        self._rings = 0
        self._watched = False

    def ring(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, timeout: float, until: Callable[[], bool] | None = None) -> bool:
        deadline = time.monotonic() + timeout
        first = self._rings
        while True:
            seen = self._rings
            if until() if until else seen != first:
                return True
            if time.monotonic() >= deadline:
                return False
            self._sleep(seen, deadline)

    def _sleep(self, seen: int, deadline: float) -> None:
        """Return at the first ring after the one numbered `seen`, or at the deadline."""
        pause = _SHORT
        with self._condition:
            while self._rings == seen and (left := deadline - time.monotonic()) > 0:
                if self._watched:
                    self._condition.wait(min(left, _CHANGE))
                    continue
                self._watch(seen, min(pause, left))
                pause = min(pause * 1.5, _LONG)

    def _watch(self, seen: int, pause: float) -> None:
        self._watched = True
        try:
            self._condition.wait(pause)
            # A list, because every file's new version has to be taken note of.
            if self._rings == seen and any([file.changed() for file in self._files]):
                self._rings += 1
                self._condition.notify_all()
        finally:
            self._watched = False

    def close(self) -> None:
        """Let go of the files."""
        with self._condition:
            for file in self._files:
                file.close()


class _File:
    """One file and the version it had when somebody last looked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Any = None
        self._version: int | None = None
        self.changed()

    def changed(self) -> bool:
        try:
            if self._connection is None:
                self._connection = open_readonly(self._path)
            if self._connection is None:
                return False
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except SqlError:
            self.close()
            return False
        before, self._version = self._version, version
        return bool(before != version)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._version = None
