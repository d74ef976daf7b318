"""The child process: results, errors, limits, and never outliving its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from loopline.child import Child

WORK = """
import os, subprocess, sys, time
from loopline.errors import FieldError, InvalidInput

def add(arguments, progress):
    progress(1, 2, "adding")
    print("a line that must not disturb the protocol")
    return {"sum": arguments["a"] + arguments["b"]}

def refuse(arguments, progress):
    raise InvalidInput("no", fields=[FieldError("/a", "is not a number")])

def crash(arguments, progress):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)

def hang(arguments, progress):
    subprocess.Popen(["sleep", "60"])
    progress(0, 1, "started")
    time.sleep(60)

def eat(arguments, progress):
    return {"size": len(bytearray(4 << 30))}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of entries that children can import."""
    (tmp_path / "work_for_child.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def last(child: Child) -> dict[str, Any]:
    """The child's final message."""
    while True:
        message = child.poll(30.0)
        assert message is not None, "the child said nothing for 30 s"
        if "progress" not in message:
            return message


def gone(pid: int) -> bool:
    """Whether a process ended, zombies counting as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.usefixtures("work")
def test_result_and_progress_come_back_whatever_the_work_prints() -> None:
    """Prints go to the kept log; the protocol's lines arrive in order."""
    child = Child("work_for_child:add", {"a": 1, "b": 2})
    first = child.poll(30.0)
    assert first == {"progress": {"step": 1, "of": 2, "message": "adding"}}
    assert last(child) == {"result": {"sum": 3}}
    child.stop()
    assert "must not disturb" in child.log()


@pytest.mark.usefixtures("work")
def test_an_error_keeps_its_code_and_fields() -> None:
    """What the work raises reaches the parent as plain data."""
    child = Child("work_for_child:refuse", {})
    error = last(child)["error"]
    child.stop()
    assert error["code"] == "invalid-input"
    assert error["errors"] == [{"pointer": "/a", "detail": "is not a number"}]
    assert "InvalidInput" in error["traceback"]


@pytest.mark.usefixtures("work")
def test_a_killed_child_is_reported_with_its_signal_and_last_words() -> None:
    """A child that dies without a last message is an error, not a hang."""
    child = Child("work_for_child:crash", {})
    error = last(child)["error"]
    child.stop()
    assert "SIGKILL" in error["detail"]
    assert child.log() == "last words"


@pytest.mark.usefixtures("work")
def test_stop_ends_the_whole_tree() -> None:
    """Processes that the work started go with it."""
    child = Child("work_for_child:hang", {})
    assert child.poll(30.0) is not None
    tree = [child.pid, *(p.pid for p in psutil.Process(child.pid).children())]
    assert len(tree) == 2
    child.stop(grace=0.2)
    assert all(gone(pid) for pid in tree)


@pytest.mark.usefixtures("work")
def test_the_memory_cap_fails_the_work_and_nothing_else() -> None:
    """A child that asks for more than its cap gets a MemoryError of its own."""
    child = Child("work_for_child:eat", {}, memory=1 << 30)
    error = last(child)["error"]
    child.stop()
    assert error["type"] == "MemoryError"


def test_the_child_dies_with_its_parent(tmp_path: Path, work: None) -> None:
    """A parent killed with SIGKILL leaves no orphan behind."""
    script = tmp_path / "parent.py"
    script.write_text(
        "from loopline.child import Child\n"
        "child = Child('work_for_child:hang', {})\n"
        "child.poll(30.0)\n"
        "print(child.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    tree = [pid, *(p.pid for p in psutil.Process(pid).children())]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while not all(gone(p) for p in tree):
        assert time.monotonic() < deadline, "an orphan is still there"
        time.sleep(0.02)
