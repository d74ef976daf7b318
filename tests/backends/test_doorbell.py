"""Who waits is woken: by a ring in the process, and by a commit of another one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from loopline.backends.doorbell import PollingDoorbell
from loopline.backends.memory import MemoryDoorbell
from loopline.backends.sqlite import SqliteLog
from loopline.contracts import Doorbell
from loopline.testing.log import make

LONG = 60.0


@pytest.fixture(params=["memory", "polling"])
def doorbell(request: pytest.FixtureRequest, tmp_path: Path) -> Doorbell:
    """A doorbell of either kind; the file of the polling one is not there."""
    return MemoryDoorbell() if request.param == "memory" else PollingDoorbell([tmp_path / "none"])


def test_nobody_rings(doorbell: Doorbell) -> None:
    """The wait ends at the timeout, and says so."""
    assert doorbell.wait(0.02) is False
    assert doorbell.wait(0.0) is False
    assert doorbell.wait(0.02, lambda: False) is False


def test_a_ring_wakes_all(doorbell: Doorbell) -> None:
    """Everyone who waits is woken by one ring, though it comes while some are not yet waiting."""
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(doorbell.wait(LONG))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        doorbell.ring()
        threads[0].join(0.01)
    assert woken == [True] * 4


def test_a_condition_is_looked_at_at_each_ring(doorbell: Doorbell) -> None:
    """Rings that change nothing wake nobody."""
    state = {"rings": 0}

    def enough() -> bool:
        return state["rings"] >= 3

    waiter = threading.Thread(target=lambda: state.update(ended=doorbell.wait(LONG, enough)))
    waiter.start()
    for _ in range(3):
        assert "ended" not in state
        state["rings"] += 1
        doorbell.ring()
    waiter.join()
    assert state["ended"] is True
    assert doorbell.wait(0.0, enough) is True


def test_a_condition_that_is_true_at_once(doorbell: Doorbell) -> None:
    """Nobody needs to ring for what is so already."""
    assert doorbell.wait(LONG, lambda: True) is True


@pytest.fixture
def commit(tmp_path: Path) -> Callable[[str], None]:
    """A function that commits an event from another process."""

    def run(key: str) -> None:
        code = (
            "from loopline.backends.sqlite import SqliteLog\n"
            "from loopline.records import Event\n"
            f"log = SqliteLog({str(tmp_path / 'log.db')!r})\n"
            f"log.append([Event(topic='m.a', key={key!r}, at=1.0, value=b'')])\n"
            "log.close()\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    return run


def test_another_process_rings_by_committing(tmp_path: Path, commit: Callable[[str], None]) -> None:
    """Several waiters are woken by a change of a file, also when it is made only now."""
    bell = PollingDoorbell([tmp_path / "other.db", tmp_path / "log.db"])
    for key in ("a", "b"):
        woken: list[bool] = []
        threads = [threading.Thread(target=_wait, args=(bell, woken)) for _ in range(3)]
        for thread in threads:
            thread.start()
        commit(key)
        for thread in threads:
            thread.join()
        assert woken == [True] * 3
    bell.close()


def _wait(bell: Doorbell, woken: list[bool]) -> None:
    woken.append(bell.wait(LONG))


def test_a_commit_before_the_wait_is_not_lost(tmp_path: Path) -> None:
    """What happened between looking at the tables and waiting wakes at once."""
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        bell = PollingDoorbell([tmp_path / "log.db"])
        log.append(make("m.a", ["k"]))
        assert bell.wait(LONG) is True
        assert bell.wait(0.03) is False
        bell.close()
