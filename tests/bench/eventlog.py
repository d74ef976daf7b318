"""What the event log takes from a replica: offered in batches, and appended durably."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from loopline.contracts import EventLog
from loopline.errors import Overloaded
from loopline.opening import open_served
from loopline.records import Event, new_id
from loopline.settings import read_settings
from tests.bench import load, machine
from tests.bench.rows import Plan
from tests.bench.running import ours

CASES = (
    *(f"log, offered by {size}" for size in (10, 100, 1000)),
    *(f"log, durable by {threads}" for threads in (1, 8, 64)),
)
PAYLOAD = bytes(127)
TOPIC = "measured.predictions"
"""Of no model, so that the join leaves it alone."""


def run(plan: Plan) -> None:
    """Measure both ways in, each in several sizes."""
    if not any(map(plan.wants, CASES)):
        return
    with ours("iris") as server:
        for number in range(plan.rounds):
            for name in filter(plan.wants, CASES):
                with closing(_open(server.data)) as log, machine.on(machine.LOAD_CPU):
                    size = int(name.split()[-1])
                    if "offered" in name:
                        figures = _offer(log, size, 20_000 if plan.quick else 300_000)
                    else:
                        figures = _append(log, size, plan.seconds)
                plan.keep("log", name, round=number, **figures)


def _open(data: Path) -> EventLog:
    """The log as a replica of the running server opens it."""
    return open_served(read_settings({}, data_dir=str(data))).log


def _events(count: int) -> list[Event]:
    at = time.time()
    return [Event(topic=TOPIC, key=new_id(), at=at, value=PAYLOAD) for _ in range(count)]


def _offer(log: EventLog, size: int, count: int) -> dict[str, Any]:
    """Offer what was made beforehand, then wait until all is on disk: that counts too."""
    batches = [_events(size) for _ in range(count // size)]
    waits = 0
    began = time.monotonic()
    for batch in batches:
        while not _taken(log, batch):
            waits += 1
            time.sleep(0.005)
    while log.buffered:
        time.sleep(0.001)
    spent = time.monotonic() - began
    return {"events_s": round(count / spent), "waits": waits, "seconds": round(spent, 2)}


def _taken(log: EventLog, batch: list[Event]) -> bool:
    try:
        log.offer(batch)
    except Overloaded:
        return False
    return True


def _append(log: EventLog, threads: int, seconds: float) -> dict[str, Any]:
    """Append single events from so many threads, each waiting until its own is durable."""
    taken: list[float] = []
    end = time.monotonic() + seconds

    def work() -> None:
        while (began := time.monotonic()) < end:
            log.append(_events(1))
            taken.append(time.monotonic() - began)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    latency = load.quantiles(np.array(taken) * 1000)
    return {"events_s": round(len(taken) / seconds), **latency}
