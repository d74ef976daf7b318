"""What a client notices of trainings and swaps: requests on a schedule, at half of the capacity.

Steady windows, windows with a training at work and windows with swaps take turns. A latency counts
from the moment its request was due, so a pause shows in all that should have been sent meanwhile.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from tests.bench import load, machine
from tests.bench.rows import Plan
from tests.bench.running import Ours, ours
from tests.bench.serving import capacity
from tests.bench.workloads import WORKLOADS

CASES = {"pauses, one": "one", "pauses, apart": "apart"}
WINDOWS = 5
SWAPS = 4
"""Swaps in each window, so 20 in all."""
VERSIONS = 10
"""More than a server keeps loaded, so that every swap has to load its version."""
AFTER = 1.0
"""Seconds after a swap was asked for in which it can be noticed."""


def run(plan: Plan) -> None:
    """Measure every placement that is asked for."""
    with tempfile.TemporaryDirectory(prefix="loopline-bench-") as folder:
        program = load.compile_scheduler(Path(folder))
        if program is None:
            print("  pauses: needs a C compiler, and was left out")
            return
        for case, placement in CASES.items():
            if plan.wants(case):
                with ours("iris", placement=placement, busy=True) as server:
                    _measure(plan, case, server, program)


def _measure(plan: Plan, case: str, server: Ours, program: Path) -> None:
    body = WORKLOADS["iris"].body()
    versions = 2 if plan.quick else VERSIONS
    for _ in range(versions - 1):
        server.post("/v1/models/bench/train", wait=120)
    rate = round(capacity(plan, server, body) / 2)
    seconds = SWAPS * AFTER + 1.0
    for number in range(1 if plan.quick else WINDOWS):
        for kind in ("steady", "training", "swaps"):
            watch = machine.Watch(server.pid)
            with _Doing(server, kind, number, versions) as doing:
                window = load.Scheduled(program, server.url, body, rate, seconds)
                figures, due, latency = window.read()
                figures |= watch.read()
            steps = [
                round(float(latency[(due >= at - 0.1) & (due < at + AFTER)].max()), 3)
                for at in doing.swapped
            ]
            more = {"trainings": doing.trainings, "steps": steps}
            plan.keep("pauses", case, kind=kind, round=number, rate=rate, **figures, **more)


class _Doing:
    """What goes on beside the load: nothing, trainings end to end, or some swaps."""

    def __init__(self, server: Ours, kind: str, number: int, versions: int) -> None:
        self._server, self._number, self._versions = server, number, versions
        self._work = {"steady": lambda: None, "training": self._train, "swaps": self._swap}[kind]
        self._stop, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._trouble: BaseException | None = None
        self.trainings = 0
        self.swapped: list[float] = []

    def __enter__(self) -> _Doing:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._trouble is not None:
            raise self._trouble

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._trouble = error
        finally:
            self._begun.set()

    def _train(self) -> None:
        """Train without a break, and have the last one cancelled."""
        while not self._stop.is_set():
            job = self._server.post("/v1/models/busy/train")["job"]
            while (state := self._state(job)) in ("queued", "running"):
                if state == "running":
                    self._begun.set()
                if self._stop.is_set():
                    self._server.post(f"/v1/jobs/{job}/cancel")
            self.trainings += 1

    def _state(self, job: str) -> str:
        return str(self._server.get(f"/v1/jobs/{job}", wait=0.5)["state"])

    def _swap(self) -> None:
        """Promote one version after another, and at last go back."""
        self._begun.set()
        for turn in range(SWAPS):
            if self._stop.wait(AFTER if turn else 0.5):
                return
            self.swapped.append(time.monotonic())
            if turn == SWAPS - 1:
                self._server.post("/v1/models/bench/rollback")
            else:
                version = (self._number * (SWAPS - 1) + turn + 1) % self._versions + 1
                self._server.post("/v1/models/bench/promote", {"version": version})
