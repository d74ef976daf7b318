"""Outcomes joined a second: many predictions, then their outcomes in bulk until all are joined."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.bench import load, machine
from tests.bench.rows import Plan
from tests.bench.running import Ours, ours
from tests.bench.workloads import WORKLOADS

CASES = {"outcomes, one": "one", "outcomes, apart": "apart"}
BULK = 1000
SENDERS = 4
PATIENCE = 300.0


def run(plan: Plan) -> None:
    """Measure every placement that is asked for, on a fresh server each time."""
    count = 2_000 if plan.quick else 100_000
    for number in range(plan.rounds):
        for case, placement in CASES.items():
            if plan.wants(case):
                with ours("iris", placement=placement) as server:
                    figures = _measure(server, count)
                plan.keep("outcomes", case, round=number, rows=count, **figures)


def _measure(server: Ours, count: int) -> dict[str, Any]:
    body = WORKLOADS["iris"].body(BULK)
    bodies: list[bytes] = []

    def predict(_: int) -> None:
        found = json.loads(load.post(server.url, body))["predictions"]
        outcomes = [{"id": each["id"], "outcome": "setosa"} for each in found]
        bodies.append(json.dumps(outcomes).encode())

    statuses: dict[str, int] = {}

    def tell(body: bytes) -> None:
        answer = json.loads(load.post(f"{server.model}/outcomes", body))
        for name, value in answer.items():
            if isinstance(value, int):
                statuses[name] = statuses.get(name, 0) + value

    predicted = _together(predict, range(count // BULK))
    server.drained()
    watch = machine.Watch(server.pid)
    began = time.monotonic()
    _together(tell, bodies)
    told = time.monotonic() - began
    while _joined(server) < count and time.monotonic() < began + PATIENCE:
        time.sleep(0.05)
    # Where every answer said "joined", the last answer was the end; asking again is not.
    joined = told if statuses.get("joined") == count else time.monotonic() - began
    return {
        "joined_s": round(count / joined),
        "predicted_s": round(count / predicted),
        "joined": _joined(server),
        "at_once": statuses.get("joined", 0),
        **watch.read(),
    }


def _together(work: Callable[[Any], None], items: Sequence[Any]) -> float:
    """Do something for all items from a few threads; returns the seconds that took."""
    began = time.monotonic()
    with machine.on(machine.LOAD_CPU), ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(work, items))
    return time.monotonic() - began


def _joined(server: Ours) -> int:
    """How many outcomes count in the model's scores by now."""
    found = server.get("/v1/models/bench/scores")["versions"]
    return sum(int(each["outcomes"]) for each in found)
