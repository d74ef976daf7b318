"""The harness runs. No time is asserted here: that is what `make bench` is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import __main__ as command
from tests.bench import machine, report
from tests.bench.rows import read

FIGURES: dict[str, Any] = {
    **{"rps": 2.0, "p50": 1.0, "p99": 3.0, "p999": 4.0, "longest": 5.0, "failed": 0},
    **{"server_cpu": 90, "others": 3, "pss": 150.0, "workload": "iris", "rows": 1},
}


def cells(line: str) -> list[str]:
    """What stands between the bars of a table's line."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_one_case_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run of one case, with the client that needs no wrk, ends in a row and a table."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(machine, "PINNED", False)  # on one core the start takes twice as long
    raw, tables = tmp_path / "raw.jsonl", tmp_path / "tables.md"
    files = ["--json", str(raw), "--markdown", str(tables)]
    command.main(["serving", "--quick", "--seconds", "0.2", "--only", "loopline", *files])
    about, row = read(raw)
    assert about["suite"] == "machine" and row["case"] == "loopline"
    assert row["failed"] == 0 and row["requests"] > 0 and row["drained"] is not None
    assert "| loopline" in tables.read_text("utf-8") and "| loopline" in capsys.readouterr().out


def test_ratios_come_from_the_same_run() -> None:
    """Ours is divided by FastAPI by hand with the same model and rows; the log by its absence."""
    rows = [
        {"suite": "serving", "case": name, **FIGURES, **more}
        for name, more in (
            ("loopline", {"rps": 30.0}),
            ("loopline, no log", {"rps": 40.0, "p99": 2.0}),
            ("loopline, trees", {"workload": "trees"}),
            ("fastapi async", {}),
        )
    ]
    found = [cells(line) for line in report.write(rows).splitlines()]
    assert ["loopline", "30", "", "15.0"] in [line[:4] for line in found]
    assert ["loopline, trees", "2", "", ""] in [line[:4] for line in found]
    assert ["loopline", "3.00", "2.00", "1.50"] in found


def test_windows_are_compared_with_the_steady_ones() -> None:
    """A median of the windows with swaps is given as a multiple of the steady windows' median."""
    windows = [("steady", 2.0), ("steady", 2.0), ("swaps", 3.0), ("swaps", 5.0), ("swaps", 3.0)]
    rows = [
        {"suite": "pauses", "case": "pauses", "kind": kind, "rate": 100, "late": 0.1}
        | {**FIGURES, "p99": p99, "steps": [7.0] if kind == "swaps" else []}
        for kind, p99 in windows
    ]
    line = next(line for line in report.write(rows).splitlines() if "pauses, swaps" in line)
    assert cells(line)[:8] == ["pauses, swaps", "100", "3", "1.00", "3.00", "1.50", "5.0", "3: 7.0"]
