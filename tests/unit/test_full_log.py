"""What predictions do when the log's writer is away and the buffer is full."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas
import pytest
from sklearn.linear_model import LinearRegression

from loopline import Loopline
from loopline.artifacts import Keys
from loopline.asks import Ask
from loopline.backends.handover import LogClient, LogInlet
from loopline.backends.sqlite import SqliteLog
from loopline.errors import Overloaded
from loopline.loop import Loop
from loopline.metrics import Metrics
from loopline.serving import Serving
from loopline.settings import Settings

BOUND = 4_000
ROW = {"x": 1.0}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """An installation with one fitted model."""
    app = Loopline(tmp_path_factory.mktemp("data"))
    fitted = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
    frame = pandas.DataFrame({"x": [0.0, 1.0], "y": [0.0, 2.0]})
    app.add("line", fitted, data=frame, target="y")
    with app:
        yield app.loop


class Bench:
    """A serving whose log is at the other end of a socket where nobody listens yet."""

    def __init__(self, loop: Loop, folder: Path, choice: str) -> None:
        self.metrics = Metrics()
        self.path, self.address = folder / "log.db", str(folder / "log.sock")
        self.client = LogClient(self.path, self.address, max_buffer=BOUND)
        settings = Settings(log_full=choice, max_buffer=BOUND)  # type: ignore[arg-type]
        keys = Keys(Path(loop.settings.data_dir) / "keys.json")
        args = (loop.store, self.client, loop.blobs, keys, settings, self.metrics)
        self.serving = Serving(*args)
        self.serving.refresh()
        self.answered: list[str] = []

    def predict(self, seconds: float = 30.0) -> None:
        """Ask for one prediction and keep its id."""
        ask = Ask("line", ROW, deadline=time.monotonic() + seconds)
        self.answered += [p.id for p in self.serving.predict(ask).predictions]

    def fill(self) -> None:
        """Ask until the buffer is full."""
        while self.client.buffered < BOUND - 200:
            self.predict()

    @contextmanager
    def writer(self) -> Iterator[SqliteLog]:
        """The log's writer, for as long as the block lasts."""
        log = SqliteLog(self.path)
        inlet = LogInlet(log, self.address)
        leave = threading.Event()

        def pump() -> None:
            while not leave.is_set():
                inlet.pump(0.05)

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            yield log
        finally:
            leave.set()
            thread.join()
            inlet.close()
            log.close()

    def check(self, log: SqliteLog) -> None:
        """Everything that was answered reaches the log."""
        deadline = time.monotonic() + 20
        while len(log.find("line.predictions", self.answered)) < len(self.answered):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def make(loop: Loop, tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    """Benches, closed at the end."""
    made: list[Bench] = []

    def make(choice: str) -> Bench:
        made.append(Bench(loop, tmp_path, choice))
        return made[-1]

    yield make
    for bench in made:
        bench.serving.close()
        bench.client.close()


def test_refuse(make: Callable[[str], Bench]) -> None:
    """Past the bound callers are sent away at once; nothing that was answered is lost."""
    bench = make("refuse")
    with pytest.raises(Overloaded):
        for _ in range(1000):
            bench.predict()
    assert len(bench.answered) > 5
    assert 'reason="log"' in bench.metrics.render()
    with bench.writer() as log:
        bench.check(log)
        bench.predict()
        bench.check(log)


def test_drop(make: Callable[[str], Bench]) -> None:
    """Past the bound callers are answered all the same, and the missing rows are counted."""
    bench = make("drop")
    for _ in range(300):
        bench.predict()
    with bench.writer() as log:
        deadline = time.monotonic() + 20
        while bench.client.buffered:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kept = len(log.find("line.predictions", bench.answered))
    line = f'loopline_log_dropped_total{{model="line"}} {300 - kept}'
    assert 0 < kept < 300 and line in bench.metrics.render()


def test_wait(make: Callable[[str], Bench]) -> None:
    """Past the bound callers wait for room until their deadline."""
    bench = make("wait")
    bench.fill()
    with pytest.raises(Overloaded):
        for _ in range(10):
            bench.predict(0.2)
    waiting = threading.Thread(target=lambda: [bench.predict() for _ in range(20)])
    waiting.start()
    with bench.writer() as log:
        waiting.join(20)
        assert not waiting.is_alive()
        bench.check(log)


def test_wait_on_an_event_loop(make: Callable[[str], Bench]) -> None:
    """The loop itself never waits: what has to wait does so on the thread."""
    bench = make("wait")
    bench.fill()

    async def story() -> list[str]:
        asks = [Ask("line", ROW, deadline=time.monotonic() + 20) for _ in range(40)]
        futures = [bench.serving.submit(ask) for ask in asks]
        await asyncio.sleep(0.05)  # the loop turns while they wait
        assert not any(future.done() for future in futures)
        with bench.writer() as log:
            done = await asyncio.gather(*futures)
            bench.answered += [each.predictions[0].id for each in done]
            bench.check(log)
        return bench.answered

    assert len(asyncio.run(story())) >= 40
