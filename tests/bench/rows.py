"""Raw rows, one per measurement, kept as they come; and what a run was asked to do."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class Plan:
    """What a run was asked to do, and what it has found so far.

    Args:
        file: where raw rows are appended, as JSON Lines.
        rounds: how often every case is measured, in turn with the others.
        seconds: how long each time.
        only: patterns of case names; all where there are none.
        quick: as little as shows that it works.
        long: also what takes very long.
    """

    file: Path
    rounds: int = 3
    seconds: float = 6.0
    only: Sequence[str] = ()
    quick: bool = False
    long: bool = False
    rows: list[Row] = field(default_factory=list)

    @property
    def warm(self) -> float:
        """Seconds of load before it counts."""
        return min(2.0, self.seconds)

    def wants(self, case: str) -> bool:
        """Whether a case is asked for."""
        return not self.only or any(fnmatch(case, pattern) for pattern in self.only)

    def keep(self, suite: str, case: str, **figures: Any) -> Row:
        """Keep one raw row, on disk at once, and say that it is there."""
        row = {"suite": suite, "case": case, "at": round(time.time(), 1), **figures}
        self.rows.append(row)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = ", ".join(f"{name} {value}" for name, value in figures.items())
        print(f"  {suite}: {case}: {shown}", flush=True)
        return row


def read(file: Path) -> list[Row]:
    """The raw rows of an earlier run."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def cases(rows: Iterable[Row], suite: str) -> dict[str, list[Row]]:
    """The rows of one suite by case, in the order in which cases first came."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["suite"] == suite:
            found.setdefault(row["case"], []).append(row)
    return found


def median(rows: Sequence[Row], name: str) -> float | None:
    """The median of one figure over the rows that have it."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.median(values) if values else None


def spread(rows: Sequence[Row], name: str) -> float | None:
    """How far the rows lie apart, in percent of the largest."""
    values = [row[name] for row in rows if row.get(name)]
    return 100 * (max(values) - min(values)) / max(values) if len(values) > 1 else None
