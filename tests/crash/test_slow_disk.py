"""A slow disk: who waits for it shares commits, who does not wait goes on, nothing is lost.

A library that is loaded before the C library makes every sync of a file take longer, notes it,
and holds those of the log while a gate is shut.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from loopline.backends.handover import LogClient
from loopline.backends.sqlite import SqliteLog
from loopline.backends.store import SqlStore
from loopline.errors import Overloaded
from loopline.testing.log import keys, make
from tests.log_writer import Writer
from tests.servers import Server

LIBRARY = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(const char *name, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("SLOW_DISK"), name);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dprintf(file, "%s\n", text);
    close(file);
}

static void wait_for_disk(int file) {
    char link[64], path[4096] = "", gate[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    readlink(link, path, sizeof path - 1);
    snprintf(gate, sizeof gate, "%s/gate", getenv("SLOW_DISK"));
    note("syncs", path);
    if (strstr(path, "log.db-wal") && access(gate, F_OK) == 0) {
        note("held", path);
        while (access(gate, F_OK) == 0) usleep(1000);
    }
    usleep(30000);
}

int fsync(int file) { wait_for_disk(file); return syscall(SYS_fsync, file); }
int fdatasync(int file) { wait_for_disk(file); return syscall(SYS_fdatasync, file); }
"""
THREADS = 32
APP = """
import pandas
from loopline import Loopline
from sklearn.linear_model import LinearRegression

def rows():
    xs = [float(n) for n in range(30)]
    return pandas.DataFrame({"x": xs, "y": [2 * x for x in xs]})

app = Loopline()
app.add("line", LinearRegression(), data=rows, target="y")
"""


class SlowDisk:
    """What the library has noted in its folder, and its gate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def syncs(self, name: str) -> int:
        """How many syncs of files of that name were begun so far."""
        noted = self._folder / "syncs"
        lines = noted.read_text().splitlines() if noted.exists() else []
        return Counter(line.rpartition("/")[2] for line in lines)[name]

    def shut(self) -> None:
        """Let no more sync of the log end."""
        (self._folder / "gate").touch()

    def await_held(self) -> None:
        """Wait until a sync of the log is held at the gate."""
        _until((self._folder / "held").exists, "no sync came to the gate")

    def open(self) -> None:
        """Let all of them end."""
        (self._folder / "gate").unlink(missing_ok=True)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    """Every process that is started from now on has a slow disk."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not os.path.isdir("/proc/self/fd") or compiler is None:
        pytest.skip("needs a C compiler, and Linux")
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "slow.c").write_text(LIBRARY)
    library = str(folder / "slow.so")
    command = [compiler, "-shared", "-fPIC", "-o", library, str(folder / "slow.c")]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SLOW_DISK", str(folder))
    monkeypatch.setenv("LD_PRELOAD", library)
    disk = SlowDisk(folder)
    yield disk
    disk.open()


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture
def writer(slow: SlowDisk, tmp_path: Path) -> Iterator[Writer]:
    """A log's writer with a slow disk; this process, which reads, has a quick one."""
    writer = Writer(tmp_path / "log.db", str(tmp_path / "log.sock")).start()
    yield writer
    slow.open()
    writer.stop()


def test_appends_share_the_syncs(slow: SlowDisk, writer: Writer) -> None:
    """Threads that wait for the disk at once need far fewer syncs than appends."""
    with closing(LogClient(writer.file, writer.address, patience=30.0)) as client:

        def work(name: int) -> None:
            for number in range(10):
                client.append(make("m.a", [f"{name}-{number}"]))

        client.append(make("m.a", ["first"]))
        before = slow.syncs("log.db-wal")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
        assert 0 < slow.syncs("log.db-wal") - before < THREADS * 10 / 4
        found = keys(list(client.scan("m.a")))
        assert len(found) == len(set(found)) == THREADS * 10 + 1
        for name in range(THREADS):
            own = [key for key in found if key.startswith(f"{name}-")]
            assert own == [f"{name}-{number}" for number in range(10)]


def test_offers_go_on_while_the_disk_syncs(slow: SlowDisk, writer: Writer) -> None:
    """Offers are taken up to the bound while a sync is under way, and arrive in their order."""
    client = LogClient(writer.file, writer.address, max_buffer=1_000_000, patience=30.0)
    with closing(client):
        client.append(make("m.a", ["first"]))
        slow.shut()
        client.offer(make("m.b", [0], value=bytes(1000)))
        slow.await_held()
        with pytest.raises(Overloaded):
            for number in range(1, 2000):
                client.offer(make("m.b", [number], value=bytes(1000)))
        assert 500 < number < 1000
        assert client.count("m.b") == 0
        assert 900_000 < client.buffered <= 1_000_000
        slow.open()
        client.append(make("m.a", ["last"]))
        assert keys(list(client.scan("m.b"))) == [str(each) for each in range(number)]
        _until(lambda: client.buffered == 0, "the buffer is not let go")


def test_a_server_with_a_slow_disk(slow: SlowDisk, tmp_path: Path, free_port: int) -> None:
    """Predictions do not wait for a sync, learns share them, and both are there afterwards."""
    (tmp_path / "app.py").write_text(APP)
    server = Server(tmp_path, free_port, "app.py")
    try:
        server.start("/readyz")
        learned = _learn_at_once(server, slow)
        answered = _predict_behind_the_gate(server, slow)
    finally:
        slow.open()
        server.stop()
    with closing(SqliteLog(server.data / "log.db")) as log:
        assert log.find("line.predictions", answered).keys() == set(answered)
    with closing(SqlStore.open(f"sqlite:///{server.data}/store.db")) as store:
        assert set(learned) <= {example.row[0] for example in store.examples("line")}


def _learn_at_once(server: Server, slow: SlowDisk) -> list[float]:
    """Learn from many threads; returns what was acknowledged, which is everything."""
    before = slow.syncs("log.db-wal")

    def work(name: int) -> list[float]:
        values = [name + part / 8 for part in range(5)]
        with httpx.Client(base_url=server.url, timeout=60.0) as client:
            for x in values:
                answer = client.post("/v1/models/line/learn", json={"x": x, "y": 2 * x})
                assert answer.status_code == 202, answer.text
        return values

    with ThreadPoolExecutor(THREADS) as pool:
        learned = [x for values in pool.map(work, range(THREADS)) for x in values]
    assert 0 < slow.syncs("log.db-wal") - before < len(learned) / 2
    return learned


def _predict_behind_the_gate(server: Server, slow: SlowDisk) -> list[str]:
    """Predict while a learn waits for a sync that does not end."""
    taken: list[Any] = []

    def learn() -> None:
        answer = server.client.post("/v1/models/line/learn", json={"x": 0.5, "y": 1.0})
        taken.append(answer.status_code)

    slow.shut()
    waiting = threading.Thread(target=learn)
    waiting.start()
    slow.await_held()
    with httpx.Client(base_url=server.url, timeout=60.0) as client:
        answers = [
            client.post("/v1/models/line/predict", json={"x": float(number)})
            for number in range(50)
        ]
    assert {answer.status_code for answer in answers} == {200}
    assert 202 not in taken
    slow.open()
    waiting.join()
    return [answer.json()["id"] for answer in answers]
