"""The built wheel, installed with its core dependencies only, away from the source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import loopline

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")

pytestmark = pytest.mark.timeout(600)  # The first installation downloads the scientific stack.

Run = Callable[..., subprocess.CompletedProcess[str]]


def checked(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and show what it said where it failed."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(session_dir: Path) -> Path:
    """The wheel that `make wheel` would build."""
    target = session_dir / "wheel"
    checked(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, ROOT)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, session_dir: Path) -> Run:
    """A function that runs a program of an environment with nothing but the wheel in it."""
    home = session_dir / "environment"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    checked(*PIP, "--python", programs / "python", "install", wheel)
    work = session_dir / "elsewhere"
    work.mkdir()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return checked(programs / program, *arguments, cwd=work, env=environ)

    return run


def test_wheel_holds_what_the_source_holds(wheel: Path) -> None:
    """Every module, the migrations, the queries and the typing marker are shipped."""
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "loopline").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("loopline/")}
    assert shipped == expected
    assert "loopline/py.typed" in shipped


def test_wheel_carries_the_version(wheel: Path) -> None:
    """The version has one source, and the changelog speaks of it."""
    assert wheel.name.startswith(f"loopline-{loopline.__version__}-")
    assert f"## {loopline.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_package_comes_from_the_wheel(installed: Run) -> None:
    """What is imported lies in the environment, not in the checkout."""
    answer = installed("python", "-c", "import loopline; print(loopline.__file__)")
    assert "environment" in answer.stdout
    assert str(ROOT) not in answer.stdout


@pytest.mark.parametrize("name", loopline.__all__)
def test_public_name_needs_no_extra(installed: Run, name: str) -> None:
    """Every public name can be imported with the core dependencies alone."""
    installed("python", "-c", f"from loopline import {name}")


def test_command_line_explains_itself(installed: Run) -> None:
    """The console script is there and lists its commands."""
    assert "train" in installed("loopline", "--help").stdout


def test_doctor_looks_at_the_machine(installed: Run) -> None:
    """The doctor finds nothing wrong with a fresh installation, and names the SQLite in use."""
    assert "SQLite" in installed("loopline", "doctor").stdout


def test_train_and_predict(installed: Run, shared_data: Path) -> None:
    """A model is trained from a table and asked for a prediction, on the command line alone."""
    data = shared_data / "Advertising.csv"
    place = ("--data-dir", "here")
    installed(
        "loopline", "train", "sales", data, "--target", "Sales", "--formula", "Sales ~ TV", *place
    )
    answer = installed("loopline", "predict", "sales", '{"TV": 50}', "--json", *place)
    prediction = json.loads(answer.stdout)["prediction"]
    assert prediction == pytest.approx(9.409425570778684, abs=1e-9)
