"""The machine that is measured on: where processes run, what they use, and what disturbs them."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
NOISY = 12.0
"""Percent of a core that other programs may take before a run counts as disturbed."""
PACKAGES = ("loopline", "uvicorn", "uvloop", "msgspec", "numpy", "scikit-learn", "lightgbm")


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


CPUS = _allowed()
PINNED = len(CPUS) > 1
SERVER_CPU, LOAD_CPU = CPUS[:2] if PINNED else (0, 0)


@contextlib.contextmanager
def on(*cpus: int) -> Iterator[None]:
    """Start processes on these CPUs: they inherit what this thread may use meanwhile."""
    if not PINNED:
        yield
        return
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CPUS)


def pin(process: psutil.Process, *cpus: int) -> None:
    """Move a running process to these CPUs, every thread of it."""
    if PINNED:
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cpus)


def hurry(pid: int) -> None:
    """Let a process go first where we may: a load generator that waits is no clock."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -20)
        # Niceness ranks only inside a session where the kernel groups processes by session.
        Path(f"/proc/{pid}/autogroup").write_text("-20")


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything that descends from it."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """The processor time that these processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def megabytes(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Memory of these processes: proportional (PSS), their own (USS) and resident (RSS)."""
    sums = {"pss": 0.0, "uss": 0.0, "rss": 0.0}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            full = process.memory_full_info()
            for name in sums:
                sums[name] += getattr(full, name, 0) / 1e6
    return {name: round(value, 1) for name, value in sums.items()}


class Watch:
    """Who used the processors between its making and `read`, in percent of one core."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self._server = cpu_seconds(tree(pid))
        self._load = _children()
        self._busy = _busy()

    def read(self) -> dict[str, float]:
        """The shares of the server, of the load generator that has ended, and of all others."""
        percent = 100 / (time.monotonic() - self._began)
        server = (cpu_seconds(tree(self._pid)) - self._server) * percent
        load = (_children() - self._load) * percent
        others = max(0.0, (_busy() - self._busy) * percent - server - load)
        return {"server_cpu": round(server), "load_cpu": round(load), "others": round(others)}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime + own.ru_utime + own.ru_stime


def _busy() -> float:
    times = psutil.cpu_times()._asdict()
    counted_twice = ("guest", "guest_nice")
    idle = ("idle", "iowait", *counted_twice)
    return float(sum(spent for name, spent in times.items() if name not in idle))


def describe() -> dict[str, Any]:
    """What a reader has to know of the machine and the software."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(CPUS) or os.cpu_count(),
        "pinned": PINNED,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "commit": _commit(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


def _commit() -> str:
    """The revision that is measured; a plus sign says that it was changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""
