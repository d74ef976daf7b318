"""How long a start takes, and how much memory is kept, beyond the model's own libraries."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench import load, machine
from tests.bench.rows import Plan
from tests.bench.running import Ours, ours
from tests.bench.workloads import WORKLOADS

LIBRARIES = """
import numpy, pandas, sklearn.pipeline, sklearn.preprocessing, sklearn.linear_model
import sklearn.datasets
print("there", flush=True)
input()
"""
STARTS = {"start, one": "one", "start, free": "free"}
REQUESTS = 500_000
LONG = 5_000_000


def start(plan: Plan) -> None:
    """Time a restart to the first right answer, and the imports that any server would need."""
    for case, placement in STARTS.items():
        if plan.wants(case):
            with tempfile.TemporaryDirectory(prefix="loopline-bench-") as folder:
                _start(plan, case, Path(folder), placement)


def _start(plan: Plan, case: str, folder: Path, placement: str) -> None:
    first = Ours(folder, placement=placement)
    first.start()
    first.stop()
    for number in range(1 if plan.quick else 5):
        seconds = _answered(Ours(folder, placement=placement))
        imports, _ = _libraries()
        figures = {"seconds": seconds, "imports": imports, "own": seconds - imports}
        shown = {name: round(value, 2) for name, value in figures.items()}
        plan.keep("start", case, round=number, **shown)


def _answered(server: Ours) -> float:
    """From the command to the first right answer; the first version was trained before."""
    began = time.monotonic()
    try:
        server.start("/livez")
        while True:
            try:
                load.post(server.url, WORKLOADS["iris"].body())
                return time.monotonic() - began
            except OSError:
                time.sleep(0.005)
    finally:
        server.stop()


def _libraries() -> tuple[float, dict[str, float]]:
    """A bare interpreter that imports the model's libraries: seconds, and its memory."""
    began = time.monotonic()
    with (
        machine.on(machine.SERVER_CPU),
        subprocess.Popen(
            [sys.executable, "-c", LIBRARIES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as bare,
    ):
        assert bare.stdout is not None
        bare.stdout.readline()
        spent = time.monotonic() - began
        memory = machine.megabytes([psutil.Process(bare.pid)])
        bare.communicate(b"\n")
    return spent, memory


def memory(plan: Plan) -> None:
    """Weigh each process after its start and after many requests."""
    if not plan.wants("memory"):
        return
    _, bare = _libraries()
    plan.keep("memory", "the libraries alone", **bare)
    goals = [20_000] if plan.quick else [REQUESTS, LONG] if plan.long else [REQUESTS]
    with ours("iris") as server:
        _weigh(plan, server, 0, bare["pss"])
        answered = 0
        for goal in goals:
            while answered < goal:
                answered += _answer_some(server, plan)
            server.drained()
            _weigh(plan, server, answered, bare["pss"])


def _answer_some(server: Ours, plan: Plan) -> int:
    seconds = 1.0 if plan.quick else 10.0
    body = WORKLOADS["iris"].body()
    return int(load.closed(server.url, body, seconds, machine.LOAD_CPU)["requests"])


def _weigh(plan: Plan, server: Ours, requests: int, bare: float) -> None:
    for role in ("replica", "keeper", "worker"):
        found: dict[str, Any] = machine.megabytes(server.role(role))
        if role == "replica":
            found["above"] = round(found["pss"] - bare, 1)
        plan.keep("memory", role, requests=requests, **found)
