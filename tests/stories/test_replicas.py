"""Several replicas on one port: a rolling restart, a rolling swap, one sum of metrics."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from tests.servers import Server
from tests.stories.conftest import Serve

APP = """
import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

from loopline import Loopline

x = np.linspace(0.0, 1.0, 50)
app = Loopline()
app.add("line", LinearRegression(), data=pd.DataFrame({"x": x, "y": 3 * x + 1}), target="y")
"""
BODY = json.dumps({"x": 0.5})
PATIENCE = 60.0


class Crowd:
    """Clients that keep their connections and ask again and again."""

    def __init__(self, url: str) -> None:
        self.where = url.removeprefix("http://")
        self.versions: Counter[int] = Counter()
        self.failed: list[str] = []
        self.answered = 0
        self.closed = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Ask until told to stop; open a new connection only where the server said so."""
        connection = http.client.HTTPConnection(self.where, timeout=30)
        while not self._stop.is_set():
            try:
                connection.request(
                    "POST", "/v1/models/line/predict", BODY, {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                told = json.loads(answer.read())
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failed.append(repr(error))
                connection.close()
                continue
            with self._lock:
                self.closed += answer.will_close
                if answer.status == 200:
                    self.answered += 1
                    self.versions[told["version"]] += 1
                else:
                    self.failed.append(str(told))
        connection.close()

    @contextmanager
    def asking(self, clients: int = 8) -> Iterator[None]:
        """Ask while the block runs, and let what was begun end."""
        threads = [threading.Thread(target=self.run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


def replicas(server: Server) -> set[int]:
    """The process ids of the replicas there are now."""
    assert server.process is not None
    found = set()
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # ended, and perhaps not collected yet
            if "replica" in " ".join(child.cmdline()[-1:]):
                found.add(child.pid)
    return found


def until(true: Callable[[], bool], server: Server) -> None:
    """Wait for something that has to come."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


def scraped(server: Server) -> str:
    """The metrics, from whichever replica; one that is killed meanwhile is asked no more."""
    for _ in range(5):
        with suppress(httpx.TransportError):
            return httpx.get(f"{server.url}/metrics").text
    raise AssertionError(server.log())


def counted(server: Server) -> float:
    """How many predictions all processes of the server have counted together."""
    lines = [
        line
        for line in scraped(server).splitlines()
        if line.startswith("loopline_predictions_total")
    ]
    return sum(float(line.split()[-1]) for line in lines if 'code="ok"' in line)


def settled(server: Server) -> float:
    """The same once every process has published what it counted before this test."""
    seen, now = -1.0, counted(server)
    while seen != now:
        time.sleep(1.5)  # processes publish once a second
        seen, now = now, counted(server)
    return now


@pytest.fixture(scope="module")
def server(share: Serve) -> Server:
    """Two replicas of one model with two versions."""
    server = share(APP, "--processes", "2")
    until(lambda: len(replicas(server)) == 2, server)
    server.post("/v1/models/line/train", {}, wait=60)
    until(lambda: len(server.get("/v1/models/line/versions")["versions"]) == 2, server)
    return server


def test_a_rolling_restart_fails_no_call(server: Server) -> None:
    """SIGHUP gives every replica a fresh process while callers notice nothing but a goodbye."""
    before, crowd, was = replicas(server), Crowd(server.url), settled(server)
    with crowd.asking():
        until(lambda: crowd.answered > 200, server)
        os.kill(server.pid("supervisor"), signal.SIGHUP)
        until(lambda: len(replicas(server)) == 2 and not replicas(server) & before, server)
        seen = crowd.answered
        until(lambda: crowd.answered > seen + 200, server)
    assert crowd.failed == []
    assert crowd.closed >= 1
    until(lambda: counted(server) == was + crowd.answered, server)


def test_a_swap_reaches_every_replica_and_fails_no_call(server: Server) -> None:
    """Promoting back and forth changes the version everywhere, without a gap."""
    crowd = Crowd(server.url)
    with crowd.asking():
        for target in (1, 2) * 5:
            server.post("/v1/models/line/promote", {"version": target})
            seen = crowd.versions[target]
            until(lambda seen=seen, target=target: crowd.versions[target] > seen + 50, server)
    assert crowd.failed == []
    assert set(crowd.versions) == {1, 2}
    until(lambda: {answering(server) for _ in range(20)} == {2}, server)


def answering(server: Server) -> int:
    """The version that answers a caller who comes anew, at whichever replica."""
    answer = httpx.post(f"{server.url}/v1/models/line/predict", json={"x": 0.1})
    return int(answer.json()["version"])


def test_the_metrics_of_all_replicas_are_one(server: Server) -> None:
    """Any replica tells the sum, and what a killed one had told stays in it."""
    crowd, was = Crowd(server.url), settled(server)
    with crowd.asking():
        until(lambda: crowd.answered > 500, server)
    assert settled(server) == was + crowd.answered
    before = replicas(server)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(replicas(server)) == 2 and replicas(server) != before, server)
    until(lambda: "loopline_processes 2" in scraped(server), server)
    assert counted(server) >= was + crowd.answered


def test_a_replica_that_cannot_start_leaves_its_predecessor(server: Server) -> None:
    """A rolling restart that cannot work keeps the processes that serve."""
    before, told = replicas(server), server.log().count("keeps its process")
    keys = server.data / "keys.json"
    keys.rename(keys.with_suffix(".away"))
    keys.mkdir()
    try:
        os.kill(server.pid("supervisor"), signal.SIGHUP)
        until(lambda: server.log().count("keeps its process") == told + 2, server)
    finally:
        keys.rmdir()
        keys.with_suffix(".away").rename(keys)
    assert replicas(server) == before
    assert server.post("/v1/models/line/predict", {"x": 0.5})["prediction"] == pytest.approx(2.5)
