"""`kill -9` on either side of the log's hand-over: nothing handed over is lost or doubled."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from loopline.backends.handover import LogClient, LogInlet
from loopline.backends.sqlite import SqliteLog
from loopline.backends.sqlite_file import connect
from loopline.errors import Overloaded, Unavailable
from loopline.testing.log import make
from tests.log_writer import Writer

ROUNDS = 20
APPENDERS = 4


class Load:
    """A client whose threads append and offer without end, and what they were told."""

    def __init__(self, client: LogClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self.acknowledged: list[str] = []
        self.offered: list[str] = []
        self._threads = [
            threading.Thread(target=self._append, args=(name,)) for name in range(APPENDERS)
        ]
        self._threads.append(threading.Thread(target=self._offer))
        for thread in self._threads:
            thread.start()

    def _append(self, name: int) -> None:
        for number in count():
            if self._stop.is_set():
                return
            keys = [f"{name}-{number}-{part}" for part in "ab"]
            try:
                self._client.append(make("m.outcomes", keys))
            except Unavailable:
                continue
            with self._moved:
                self.acknowledged.extend(keys)
                self._moved.notify_all()

    def _offer(self) -> None:
        for number in count():
            if self._stop.wait(0.0005):
                return
            keys = [f"{number}-{part}" for part in range(10)]
            try:
                self._client.offer(make("m.predictions", keys, value=bytes(100)))
            except Overloaded:
                continue
            self.offered.extend(keys)

    def await_more(self, appends: int) -> None:
        """Wait until so many more appends were acknowledged."""
        with self._moved:
            goal = len(self.acknowledged) + appends
            assert self._moved.wait_for(lambda: len(self.acknowledged) >= goal, 60)

    def stop(self) -> None:
        """Stop the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_the_writer_is_killed_under_load(tmp_path: Path) -> None:
    """Every acknowledged append and every offer is there once, in order, without a gap."""
    chance = random.Random(7)
    writer = Writer(tmp_path / "log.db", str(tmp_path / "log.sock")).start()
    client = LogClient(writer.file, lambda: writer.address, patience=20.0)
    load = Load(client)
    for _ in range(ROUNDS):
        load.await_more(chance.randrange(2, 120))
        writer.kill()
        writer.start()
    load.await_more(10)
    load.stop()
    client.close()
    writer.stop()
    with closing(SqliteLog(writer.file)) as log:
        outcomes = [event.key for event in log.scan("m.outcomes")]
        predictions = [event.key for event in log.scan("m.predictions")]
        for topic, found in (("m.outcomes", outcomes), ("m.predictions", predictions)):
            positions = [row[0] for row in log.page(topic, 0, 10_000_000)]
            assert positions == list(range(1, len(found) + 1))
    assert len(load.acknowledged) > 100 and len(load.offered) > 1000
    assert len(set(outcomes)) == len(outcomes) and set(load.acknowledged) <= set(outcomes)
    assert predictions == load.offered
    for name in range(APPENDERS):
        own = [key for key in outcomes if key.startswith(f"{name}-")]
        numbers = [int(key.split("-")[1]) for key in own]
        assert numbers == sorted(numbers)
    with closing(connect(str(writer.file))) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


CLIENT = """
import sys
from loopline.backends.handover import LogClient
from loopline.records import Event
client = LogClient(sys.argv[1], sys.argv[2])
for number in range(10_000_000):
    key = f"{sys.argv[3]}-{number}"
    client.offer([Event(topic="m.predictions", key=key, at=1.0, value=bytes(300))])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_client_is_killed_under_load(tmp_path: Path, seed: int) -> None:
    """Every event whose offer had returned is in the file."""
    chance = random.Random(seed)
    stop = threading.Event()
    log = SqliteLog(tmp_path / "log.db")
    inlet = LogInlet(log, str(tmp_path / "log.sock"))

    def pump() -> None:
        while not stop.is_set():
            inlet.pump(0.005)

    pumping = threading.Thread(target=pump)
    pumping.start()
    last: dict[str, int] = {}
    for name in ("one", "two", "three"):
        command = [sys.executable, "-c", CLIENT, str(tmp_path / "log.db"), str(inlet.address), name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 3000)):
                process.stdout.readline()
            process.kill()
            lines = process.stdout.read().splitlines()
            last[name] = int(lines[-2]) if len(lines) > 1 else 0
    stop.set()
    pumping.join()
    inlet.close()
    for name, number in last.items():
        wanted = [f"{name}-{each}" for each in range(number + 1)]
        assert len(log.find("m.predictions", wanted)) == len(wanted)
    log.close()


def test_the_writer_dies_while_it_commits(tmp_path: Path) -> None:
    """A batch is there whole or not at all, wherever in the transaction the writer was killed."""
    chance = random.Random(11)
    for turn in range(6):
        writer = Writer(tmp_path / "log.db", str(tmp_path / "log.sock")).start()
        client = LogClient(writer.file, writer.address, patience=0.0)
        keys = [f"{turn}-{number}" for number in range(4000)]
        batches = [make("m.a", keys[start : start + 1000]) for start in range(0, 4000, 1000)]
        thread = threading.Thread(target=_append_all, args=(client, batches))
        thread.start()
        thread.join(chance.random() * 0.05)
        writer.kill()
        thread.join()
        client.close()
        with closing(SqliteLog(writer.file)) as log:
            there = [len(log.find("m.a", [e.key for e in batch])) for batch in batches]
            assert set(there) <= {0, 1000}


def _append_all(client: LogClient, batches: list[list[object]]) -> None:
    for batch in batches:
        try:
            client.append(batch)  # type: ignore[arg-type]
        except Unavailable:
            return
