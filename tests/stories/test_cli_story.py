"""A model's life on the command line alone, and the demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server


def loopline(*arguments: str | Path, cwd: Path) -> str:
    """Run a command, which has to succeed; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "loopline", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def told(*arguments: str | Path, cwd: Path) -> Any:
    """The JSON that a command prints."""
    return json.loads(loopline(*arguments, "--json", cwd=cwd))


def test_a_models_life(tmp_path: Path, free_port: int) -> None:
    """Trained alone, served, told the truth, retrained by policy, rolled back, and still there."""
    rows = "".join(f"{x % 17},{(x % 17) * 2}\n" for x in range(40))
    (tmp_path / "old.csv").write_text(f"x,y\n{rows}")
    place = ("old.csv", "--target", "y", "--model", "linear")
    policy = ("--retrain-every", "60", "--mode", "auto")
    loopline("train", "life", *place, *policy, cwd=tmp_path)

    server = Server(tmp_path, free_port)
    server.data = tmp_path / "loopline-data"
    server.command[-1] = str(server.data)
    server.start("/readyz")
    try:
        (tmp_path / "new.csv").write_text("x\n" + "".join(f"{x % 17}\n" for x in range(60)))
        answers = loopline("predict", "life", "new.csv", cwd=tmp_path).splitlines()
        predictions = [json.loads(line) for line in answers]
        assert [each["version"] for each in predictions] == [1] * 60

        # The world has moved: what was twice as much is five times as much now.
        lines = [f"{each['id']},{each['prediction'] * 2.5}\n" for each in predictions]
        (tmp_path / "truth.csv").write_text("id,outcome\n" + "".join(reversed(lines)))
        assert told("outcome", "life", "truth.csv", cwd=tmp_path)["joined"] == 60
        job = wait_for(lambda: policy_job(tmp_path))
        loopline("jobs", job, "--follow", cwd=tmp_path)
        verdict = told("decisions", "life", cwd=tmp_path)["decisions"][-1]
        assert (verdict["verdict"], verdict["promoted"], verdict["by"]) == ("promote", True, "gate")
        assert told("score", "life", "--served", cwd=tmp_path)["versions"][0]["coverage"] == 1.0

        loopline("rollback", "life", cwd=tmp_path)
        wait_for(lambda: told("predict", "life", "x=3", cwd=tmp_path)["version"] == 1)
    finally:
        assert server.stop() == 0

    aliases = [each["aliases"] for each in told("versions", "life", cwd=tmp_path)["versions"]]
    assert aliases == [["champion"], ["previous"]]
    assert told("models", "life", cwd=tmp_path)["outcomes"] == 60
    assert told("predict", "life", "x=3", cwd=tmp_path)["prediction"] == pytest.approx(6.0)


def policy_job(folder: Path) -> str | None:
    """The job that the policy caused, once there is one."""
    jobs = told("jobs", "--model", "life", cwd=folder)["jobs"]
    return jobs[0]["job"] if len(jobs) > 1 else None


def wait_for(found: Callable[[], Any]) -> Any:
    """Ask until there is an answer."""
    deadline = time.monotonic() + 30.0
    while not (answer := found()):
        assert time.monotonic() < deadline
    return answer


def test_demo_runs_the_loop(tmp_path: Path, free_port: int) -> None:
    """A part of the stream: no failed call, a swap by the gate, every outcome accounted for."""
    summary = told("demo", "--exit", "--rows", "6500", "--port", str(free_port), cwd=tmp_path)
    assert summary["predictions"] == 6500
    assert summary["failed"] == 0, summary["failures"]
    outcomes = summary["outcomes"]
    assert sum(outcomes.values()) - outcomes["duplicate"] + summary["never"] == 6500
    assert summary["swaps"] >= 1
    assert summary["versions"][0]["coverage"] == pytest.approx(0.97, abs=0.02)
    assert (tmp_path / "loopline-demo" / "app.py").is_file()


def test_demo_stays_until_it_is_told(tmp_path: Path, free_port: int) -> None:
    """The server is left up with lines to try, and Ctrl-C ends both."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "loopline", "demo", "--stay", "--rows", "50"),
            *("--port", str(free_port)),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    curl = next(line for line in lines if "curl" in line and "/predict" in line)
    answer = subprocess.run(["sh", "-c", f"{curl} --silent"], capture_output=True, text=True)
    assert json.loads(answer.stdout)["model"] == "shuttle"
    next(line for line in lines if "/docs" in line)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    server = (tmp_path / "loopline-demo" / "server.log").read_text()
    assert server.endswith("Goodbye.\n")


def test_demo_keeps_its_hands_off_other_folders(tmp_path: Path) -> None:
    """A folder that no demo made is not emptied."""
    (tmp_path / "loopline-demo").mkdir()
    (tmp_path / "loopline-demo" / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [sys.executable, "-m", "loopline", "demo", "--exit"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.match("Error: .*--data-dir", done.stderr)
    assert (tmp_path / "loopline-demo" / "thesis.txt").exists()


def test_demo_without_river_says_how_to_get_it() -> None:
    """A missing extra is told with its pip line."""
    from loopline.demo import stream
    from loopline.errors import MissingExtra

    with pytest.raises(MissingExtra, match=r"pip install 'loopline\[demo\]'"):
        stream("river_that_is_not_there")
