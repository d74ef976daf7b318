"""Numbers about a process in the Prometheus text format 0.0.4, summed over processes.

`Metrics` belongs to one process. `snapshot` takes its numbers out as plain data, which a `Pool`
leaves in a folder for the other processes of the server; `merge` adds snapshots up; `render`
writes one out. Everything is counted per batch, never per row, so the cost does not show.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

logger = logging.getLogger("loopline.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)

Labels = tuple[str, ...]
Snapshot = dict[str, list[tuple[Labels, list[float]]]]
"""Family name to its series: label values with [value], or [bucket counts..., sum] for histograms.

Plain enough for JSON and MessagePack.
"""


class Family(NamedTuple):
    """One metric: its type, meaning and labels, and how processes are combined."""

    kind: str  # counter | gauge | histogram
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    merge: str = "sum"  # sum | max, over processes


FAMILIES: dict[str, Family] = {
    "loopline_predictions_total": Family(
        "counter", "Prediction requests, by the code they ended with.", ("model", "version", "code")
    ),
    "loopline_prediction_rows_total": Family(
        "counter", "Rows answered with a prediction.", ("model", "version")
    ),
    "loopline_prediction_duration_seconds": Family(
        "histogram",
        "Time to validate, predict and log one micro-batch.",
        ("model", "version"),
        SECONDS,
    ),
    "loopline_batch_rows": Family(
        "histogram", "Rows answered by one call of the model.", ("model",), ROWS
    ),
    "loopline_shed_total": Family(
        "counter", "Requests refused because a bound was reached.", ("model", "reason")
    ),
    "loopline_timeouts_total": Family(
        "counter", "Calls of a model that did not come back before a deadline.", ("model",)
    ),
    "loopline_unseen_categories_total": Family(
        "counter", "Values that the training data did not have.", ("model", "field")
    ),
    "loopline_in_flight": Family("gauge", "HTTP requests being answered now."),
    "loopline_queue_requests": Family("gauge", "Predictions waiting for their batch.", ("model",)),
    "loopline_http_requests_total": Family(
        "counter", "HTTP requests answered, by status.", ("status",)
    ),
    "loopline_log_buffer_bytes": Family(
        "gauge", "Bytes handed to the log that it has not acknowledged."
    ),
    "loopline_log_dropped_total": Family(
        "counter", "Predictions answered but not logged, because the log was full.", ("model",)
    ),
    "loopline_outcomes_total": Family(
        "counter", "Outcomes taken, by what became of them.", ("model", "result")
    ),
    "loopline_learned_rows_total": Family("counter", "Rows taken by learn.", ("model",)),
    "loopline_trainings_total": Family("counter", "Trainings asked for by hand.", ("model",)),
    "loopline_swap_duration_seconds": Family(
        "histogram", "Time to load a version beside the old one and swap.", ("model",), SECONDS
    ),
    "loopline_model_info": Family(
        "gauge", "1 for the version that answers.", ("model", "version"), merge="max"
    ),
    "loopline_jobs": Family("gauge", "Jobs by state.", ("state",), merge="max"),
    "loopline_gc_longest_pause_seconds": Family(
        "gauge", "The longest stop for a garbage collection so far.", merge="max"
    ),
    "loopline_processes": Family("gauge", "Processes that these numbers are summed over."),
}

Sampler = Callable[[], Mapping[Labels, float]]


class Metrics:
    """The numbers of one process; safe to use from any thread.

    Args:
        families: what can be counted, by name.
    """

    def __init__(self, families: Mapping[str, Family] = FAMILIES) -> None:
        self._families = families
        self._lock = threading.Lock()
        self._numbers: dict[str, dict[Labels, list[float]]] = {name: {} for name in families}
        self._samplers: dict[str, Sampler] = {}
        self.pool: Pool | None = None
        self._pause = 0.0
        self._pause_began = 0.0

    # The ways to record a number.

    def add(self, name: str, value: float = 1.0, labels: Labels = ()) -> None:
        """Add to a counter, or to a gauge."""
        with self._lock:
            series = self._numbers[name].setdefault(labels, [0.0])
            series[0] += value

    def observe(self, name: str, value: float, labels: Labels = ()) -> None:
        """Put a value into a histogram."""
        bounds = self._families[name].bounds
        with self._lock:
            series = self._numbers[name].get(labels)
            if series is None:
                series = self._numbers[name][labels] = [0.0] * (len(bounds) + 2)
            series[bisect_left(bounds, value)] += 1
            series[-1] += value

    def sample(self, name: str, sampler: Sampler) -> None:
        """Ask `sampler` for a gauge's values (by label values) whenever a snapshot is taken."""
        self._samplers[name] = sampler

    # What the serving path counts.

    def batch(
        self,
        model: str,
        version: int,
        requests: int,
        rows: int,
        seconds: float,
        failed: Sequence[str] = (),
    ) -> None:
        """Count one micro-batch.

        Args:
            requests: how many requests it held.
            rows: how many rows reached the model.
            seconds: how long all of it took.
            failed: the error code of every request that was refused or failed.
        """
        number = str(version)
        if requests > len(failed):
            self.add("loopline_predictions_total", requests - len(failed), (model, number, "ok"))
        for code in failed:
            self.add("loopline_predictions_total", 1.0, (model, number, code))
        if rows:
            self.add("loopline_prediction_rows_total", rows, (model, number))
            self.observe("loopline_batch_rows", rows, (model,))
        self.observe("loopline_prediction_duration_seconds", seconds, (model, number))

    def each(self, name: str, model: str, counts: Mapping[str, int]) -> None:
        """Count a model's things by what they are."""
        for kind, count in counts.items():
            if count:
                self.add(name, count, (model, kind))

    # Garbage collection.

    def watch_collector(self) -> None:
        """Measure every garbage collection of this process from now on."""
        if self._collected not in gc.callbacks:
            gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: Mapping[str, Any]) -> None:
        if phase == "start":
            self._pause_began = time.perf_counter()
        elif self._pause_began:
            self._pause = max(self._pause, time.perf_counter() - self._pause_began)

    # Taking the numbers out.

    def snapshot(self) -> Snapshot:
        """This process's numbers now, as plain data."""
        sampled = {name: sampler() for name, sampler in self._samplers.items()}
        with self._lock:
            taken: Snapshot = {
                name: [(labels, list(series)) for labels, series in found.items()]
                for name, found in self._numbers.items()
                if found
            }
        for name, values in sampled.items():
            taken[name] = [(labels, [float(value)]) for labels, value in values.items()]
        taken["loopline_gc_longest_pause_seconds"] = [((), [self._pause])]
        taken["loopline_processes"] = [((), [1.0])]
        return taken

    def render(self) -> str:
        """The text a scrape gets: this process and the others of its pool summed."""
        others = self.pool.others() if self.pool else ()
        return render(merge([self.snapshot(), *others]))


class Pool:
    """What the processes of one server have counted, in a folder with a file for each.

    Args:
        folder: theirs alone.
        pid: of the process that publishes here; 0 stands for those that have ended.
    """

    def __init__(self, folder: Path, pid: int = 0) -> None:
        self._folder = folder
        self._own = folder / f"{pid}.json"
        self._due = 0.0

    def clear(self) -> None:
        """Begin a server: whatever an earlier one has left is gone."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("*.json"):
            path.unlink()

    def publish(self, metrics: Metrics, now: float = math.inf) -> None:
        """Leave this process's numbers for the others, at most once a second.

        Where the disk is full they are a little old until there is room.
        """
        if now >= self._due:
            self._due = now + 1.0
            try:
                self._write(metrics.snapshot())
            except OSError as error:
                logger.warning("the metrics of this process were not published: %s", error)
                self._due = now + 10.0

    def others(self) -> list[Snapshot]:
        """What the other processes have published last, and those that have ended."""
        found = [_read(path) for path in self._folder.glob("*.json") if path != self._own]
        return [snapshot for snapshot in found if snapshot is not None]

    def retire(self, pid: int) -> None:
        """Keep what a process that has ended had counted, so that no total ever falls."""
        path = self._folder / f"{pid}.json"
        if (last := _read(path)) is not None:
            counted = {name: last[name] for name in last if FAMILIES[name].kind != "gauge"}
            try:
                self._write(merge([_read(self._own) or {}, counted]))
                path.unlink()
            except OSError as error:  # its own file is summed as before
                logger.warning("the metrics of process %d stay as they are: %s", pid, error)

    def _write(self, snapshot: Snapshot) -> None:
        fresh = self._own.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(snapshot))
        fresh.replace(self._own)


def _read(path: Path) -> Snapshot | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except FileNotFoundError:
        return None


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Combine several processes: counters and histograms add up, some gauges keep the largest."""
    totals: dict[str, dict[Labels, list[float]]] = {}
    for snapshot in snapshots:
        for name, series in snapshot.items():
            largest = name in FAMILIES and FAMILIES[name].merge == "max"
            into = totals.setdefault(name, {})
            for labels, values in series:
                key = tuple(labels)
                old = into.get(key, [0.0] * len(values))
                into[key] = (
                    [max(pair) for pair in zip(old, values, strict=True)]
                    if largest
                    else [sum(pair) for pair in zip(old, values, strict=True)]
                )
    return {name: list(found.items()) for name, found in totals.items()}


def render(snapshot: Snapshot, families: Mapping[str, Family] = FAMILIES) -> str:
    """Write a snapshot in the Prometheus text format 0.0.4."""
    lines: list[str] = []
    for name, family in families.items():
        series = snapshot.get(name)
        if not series:
            continue
        lines.append(f"# HELP {name} {family.help}")
        lines.append(f"# TYPE {name} {family.kind}")
        for labels, values in sorted(series):
            if family.kind == "histogram":
                lines.extend(_histogram(name, family, labels, values))
            else:
                lines.append(f"{name}{_braces(family.labels, labels)} {_number(values[0])}")
    return "\n".join(lines) + "\n"


def _histogram(
    name: str, family: Family, labels: Sequence[str], values: Sequence[float]
) -> Iterable[str]:
    running = 0.0
    for bound, count in zip((*family.bounds, math.inf), values[:-1], strict=True):
        running += count
        braces = _braces((*family.labels, "le"), (*labels, _number(bound)))
        yield f"{name}_bucket{braces} {_number(running)}"
    braces = _braces(family.labels, labels)
    yield f"{name}_sum{braces} {_number(values[-1])}"
    yield f"{name}_count{braces} {_number(running)}"


def _braces(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = zip(names, values, strict=True)
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() else repr(float(value))
