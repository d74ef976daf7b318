"""`kill -9` of every process, at random moments, under load: nothing acknowledged is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from loopline.backends.sqlite import SqliteLog
from loopline.backends.store import SqlStore
from loopline.errors import LooplineError
from loopline.records import JobState
from tests.servers import Server

ROUNDS = 20
EVERY = 40
APP = f"""
import pandas
from loopline import Every, Loopline
from sklearn.linear_model import LinearRegression

def rows():
    xs = [float(n) for n in range(30)]
    return pandas.DataFrame({{"x": xs, "y": [2 * x for x in xs]}})

app = Loopline()
app.add("line", LinearRegression(), data=rows, target="y",
        retrain=Every(outcomes={EVERY}, mode="auto"))
"""


class Load:
    """Clients that never stop, and remember exactly what was acknowledged to them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.learned: set[float] = set()
        self.outcomes: set[str] = set()
        self.jobs: set[str] = set()
        self.answered: set[str] = set()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(act, n))
            for n, act in enumerate((self._predict, self._predict, self._learn, self._train))
        ]

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, act: Callable[[httpx.Client, int], None], n: int) -> None:
        count = 0
        with httpx.Client(base_url=self.url, timeout=10.0) as client:
            while not self._stop.is_set():
                count += 1
                try:
                    act(client, n * 10_000_000 + count)
                except httpx.TransportError:
                    time.sleep(0.02)

    def _predict(self, client: httpx.Client, n: int) -> None:
        answer = client.post("/v1/models/line/predict", json={"x": float(n)})
        if answer.status_code == 500:
            self.wrong.append(answer.text)
        if answer.status_code != 200:
            time.sleep(0.02)
            return
        id = answer.json()["id"]
        self.answered.add(id)
        told = client.post("/v1/models/line/outcomes", json={"id": id, "outcome": 2.0 * n})
        if told.status_code == 200:
            self.outcomes.add(id)

    def _learn(self, client: httpx.Client, n: int) -> None:
        rows = [{"x": n + part / 4, "y": 2.0 * n} for part in range(3)]
        answer = client.post("/v1/models/line/learn", json=rows)
        if answer.status_code == 202:
            self.learned.update(row["x"] for row in rows)

    def _train(self, client: httpx.Client, n: int) -> None:
        answer = client.post("/v1/models/line/train")
        if answer.status_code == 202:
            self.jobs.add(answer.json()["job"])
        self._stop.wait(5.0)


@pytest.fixture
def server(tmp_path: Path, free_port: int) -> Iterator[Server]:
    """A server with one model that retrains by itself."""
    (tmp_path / "app.py").write_text(APP)
    server = Server(tmp_path, free_port, "app.py")
    server.start("/readyz")
    yield server
    server.stop()


@pytest.mark.timeout(400)
def test_nothing_acknowledged_is_lost_and_no_trigger_is_lost_or_doubled(
    server: Server, record_property: Callable[[str, object], None]
) -> None:
    """Learns, outcomes and jobs that were answered are there; epochs are exactly every N."""
    chance = random.Random(20261121)
    load = Load(server.url)
    load.start()
    away: dict[str, list[float]] = {}
    try:
        for turn in range(ROUNDS):
            role = ("supervisor", "keeper-0", "worker-0", "replica-0")[turn % 4]
            time.sleep(chance.uniform(0.2, 1.2))
            server.kill(role)
            began = time.monotonic()
            if role == "supervisor":
                server.start()
            _until_learns(server)
            away.setdefault(role, []).append(time.monotonic() - began)
    finally:
        load.stop()
    for role, seconds in away.items():
        record_property(f"away_{role}", [round(s, 2) for s in sorted(seconds)])
    print("seconds until learn answered again:", away)
    _settled(server)
    assert server.stop() == 0
    assert not load.wrong
    _check_books(server, load)


def _until_learns(server: Server) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = server.client.post("/v1/models/line/learn", json={"x": -1.0, "y": -2.0})
            if answer.status_code == 202:
                return
        except httpx.TransportError:
            time.sleep(0.01)
    raise AssertionError(f"learn does not come back: {server.log()}")


def _settled(server: Server) -> None:
    """Wait until the queue is empty and the join has caught up."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        figures = server.get("/v1/jobs")["figures"]
        if not figures["queued"] and not figures["running"]:
            return
        time.sleep(0.2)
    raise AssertionError(f"jobs never end: {server.get('/v1/jobs')['figures']}")


def _check_books(server: Server, load: Load) -> None:
    store = SqlStore.open(f"sqlite:///{server.data}/store.db")
    log = SqliteLog(server.data / "log.db")
    try:
        examples = list(store.examples("line"))
        learned = {e.row[0] for e in examples if e.source == "learn"}
        joined = [e for e in examples if e.source == "outcome"]
        ids = {e.id for e in joined}
        assert len(load.learned) > 100 and len(load.outcomes) > 100 and load.jobs
        assert load.learned <= learned
        assert load.outcomes <= ids
        assert len(ids) == len(joined)
        assert len(log.find("line.predictions", sorted(load.answered))) == len(load.answered)
        assert [e.seq for e in examples] == list(range(1, len(examples) + 1))
        assert all(e.label == 2.0 * float(e.row[0] or 0) for e in joined)
        epochs = store.epochs("line")
        assert [epoch.k for epoch in epochs] == list(range(1, len(joined) // EVERY + 1))
        matched = {e.seq: e.matched for e in examples}
        assert [matched[epoch.upto] for epoch in epochs] == [e.k * EVERY for e in epochs]
        jobs = {job.id: job for job in store.jobs(most=10_000)}
        assert load.jobs <= jobs.keys()
        ends = {JobState.DONE, JobState.FAILED}
        assert all(jobs[id].state in ends for id in load.jobs)
        versions = [version.job for version in store.versions("line")]
        assert len(versions) == len(set(versions))
    except LooplineError as error:
        raise AssertionError(f"the books cannot be read: {error}") from error
    finally:
        log.close()
        store.close()
