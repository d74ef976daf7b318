"""The demo: a real data stream through the whole loop, over HTTP, with nothing staged.

The stream is the Statlog Shuttle data set that ships inside River: 49,097 sensor readings of a
space shuttle, 7 % of them anomalies. A model fitted on its first rows serves all others as live
traffic. Outcomes come later, out of order, some twice, some never. Every so many of them a
candidate is trained in the background, and the gate says whether it takes over.
"""

from __future__ import annotations

import heapq
import importlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from loopline import codecs
from loopline.client import Client
from loopline.errors import InvalidInput, LooplineError, MissingExtra, Unavailable
from loopline.opening import LOCK_FILE, running

MODEL = "shuttle"
TARGET = "anomaly"
FIRST = 60
"""Rows that the first model is fitted on."""
RATE = 750.0
"""Predictions in a second."""
FEWEST, LONGEST = 20_000, 70.0
"""On a slow machine the stream ends early: after so many rows and seconds."""
SENDERS = 4
NEVER = 0.03
TWICE = 0.01
DELAY = 2.0
"""Seconds by which an outcome is late, in the mean."""

APP = f'''\
from sklearn.ensemble import GradientBoostingClassifier

from loopline import Every, Loopline

app = Loopline()
app.add(
    "{MODEL}",
    GradientBoostingClassifier(n_estimators=20, min_samples_leaf=20),
    data="first.csv",
    target="{TARGET}",
    retrain=Every(outcomes=4000, mode="auto"),
)
'''


Row = tuple[dict[str, Any], Any]


def run(console: Any, root: Path, port: int, stay: bool, most: int | None = None) -> None:
    """Run the demo.

    Args:
        console: of the command line, with a screen for what changes.
        root: a folder of the demo's own, emptied first.
        port: of its server.
        stay: leave the server up at the end, until Ctrl-C.
        most: rows to send; all of them where it is None.

    Raises:
        MissingExtra: River is not installed.
        Unavailable: the port or the folder is in use, or the server does not come up.
    """
    rows = stream()
    prepare(root, rows[:FIRST])
    with served(root, port) as (server, url):
        console.line(f"{len(rows):,} real rows, a server at {url}, a model fitted on {FIRST} rows")
        traffic = Traffic(url, rows[FIRST:][:most])
        with console.screen() as screen:
            traffic.run(screen, server)
        summary = traffic.summary()
        if console.json:
            console.value(summary)
        else:
            tell(console, summary)
        if stay:
            console.line(farewell(url, traffic, rows[-1]))
            wait(server)


def stream(river: str = "river.datasets") -> list[Row]:
    """The rows of the data set with their labels, in its order."""
    try:
        datasets = importlib.import_module(river)
    except ImportError as error:
        raise MissingExtra("the demo needs River: pip install 'loopline[demo]'") from error
    return [(dict(x), y) for x, y in datasets.Shuttle()]


def prepare(root: Path, first: list[Row]) -> None:
    """Make a fresh folder with the application and the rows it starts from."""
    data = root / "data"
    if data.is_dir() and running(data) is not None:
        raise Unavailable(f"a demo runs already in {root}")
    if root.exists():
        if any(root.iterdir()) and not (data / LOCK_FILE).exists():
            raise InvalidInput(f"{root} is no folder of an earlier demo; name another: --data-dir")
        shutil.rmtree(root)
    root.mkdir(parents=True)
    table = [{**x, TARGET: y} for x, y in first]
    (root / "first.csv").write_bytes(codecs.write(table, codecs.CSV))
    (root / "app.py").write_text(APP, "utf-8")


@contextmanager
def served(root: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `loopline serve app.py` in the folder, as anybody would."""
    # The server must not outlive the demo, not even where a shell had SIGINT ignored.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "loopline", "serve", "app.py"]
    log = root / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--data-dir", "data", "--port", str(port)],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield server, came_up(server, root, log)
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        server.wait(30)


def came_up(server: subprocess.Popen[bytes], root: Path, log: Path) -> str:
    """Wait until the server answers and its first model is trained; returns its URL."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline and server.poll() is None:
        found = running(root / "data")
        if found is not None and found.url:
            try:
                with Client(found.url) as client:
                    ready = client.ready()
                    if ready["ready"] and client.models():
                        return found.url
            except LooplineError:
                pass
        time.sleep(0.1)
    said = log.read_text("utf-8", "replace").strip().splitlines()
    raise Unavailable(f"the demo's server did not come up: {said[-1] if said else 'it is silent'}")


class Traffic:
    """Predictions at a steady rate, their outcomes later, and what is seen of both.

    Args:
        url: of the server.
        rows: the stream.
    """

    def __init__(self, url: str, rows: list[Row]) -> None:
        self.url = url
        self.rows = rows
        self.chance = random.Random(7)
        self.latencies: list[float] = []
        self.recent: deque[tuple[float, float]] = deque(maxlen=4000)
        self.failures: list[str] = []
        self.versions: Counter[int] = Counter()
        self.version = 0
        self.last_id = ""
        self.never = 0
        self.statuses: Counter[str] = Counter()
        self.decisions: list[dict[str, Any]] = []
        self.scores: dict[str, Any] = {"versions": []}
        self._due: list[tuple[float, int, str, Any]] = []
        self._lock = threading.Lock()
        self._next = 0
        self._sent_all = threading.Event()
        self._began = 0.0
        self._scored = 0.0
        self.seconds = 0.0

    def run(self, screen: Any, server: subprocess.Popen[bytes]) -> None:
        """Send everything, and show how it goes."""
        self._began = time.monotonic()
        senders = [threading.Thread(target=self._send, daemon=True) for _ in range(SENDERS)]
        teller = threading.Thread(target=self._tell, daemon=True)
        for thread in (*senders, teller):
            thread.start()
        with Client(self.url) as client:
            while teller.is_alive():
                if server.poll() is not None:
                    raise Unavailable("the demo's server is gone")
                self._look(client, screen)
                if not any(thread.is_alive() for thread in senders):
                    self.seconds = self.seconds or time.monotonic() - self._began
                    self._sent_all.set()
                teller.join(0.25)
            self._settle(client)
            self._look(client, screen, fully=True)

    def _send(self) -> None:
        """Predict one row after the other, each at its time."""
        with Client(self.url) as client:
            while True:
                with self._lock:
                    index, self._next = self._next, self._next + 1
                late = index >= FEWEST and time.monotonic() - self._began > LONGEST
                if index >= len(self.rows) or late:
                    return
                time.sleep(max(0.0, self._began + index / RATE - time.monotonic()))
                self._predict(client, index)

    def _predict(self, client: Client, index: int) -> None:
        row, label = self.rows[index]
        began = time.perf_counter()
        try:
            answer = client.predict(MODEL, row)
        except LooplineError as error:
            self.failures.append(f"predict: {error.code}: {error.detail}")
            return
        now = time.perf_counter()
        with self._lock:
            self.latencies.append(now - began)
            self.recent.append((now, now - began))
            self.versions[answer.version] += 1
            self.version = max(self.version, answer.version)
            self.last_id = answer.id
            self._plan(index, answer.id, label)

    def _plan(self, index: int, id: str, label: Any) -> None:
        """Decide when, and whether, the truth about a prediction will be known."""
        if self.chance.random() < NEVER:
            self.never += 1
            return
        times = 2 if self.chance.random() < TWICE else 1
        for _ in range(times):
            due = time.monotonic() + self.chance.expovariate(1.0 / DELAY)
            heapq.heappush(self._due, (due, index, id, label))

    def _tell(self) -> None:
        """Send the outcomes that are due, until there are no more to come."""
        with Client(self.url) as client:
            while not self._sent_all.is_set() or self._due:
                with self._lock:
                    now = time.monotonic()
                    items: list[dict[str, Any]] = []
                    while self._due and self._due[0][0] <= now and len(items) < 500:
                        _, _, id, label = heapq.heappop(self._due)
                        items.append({"id": id, "outcome": label})
                if items:
                    self._outcomes(client, items)
                time.sleep(0.1)

    def _outcomes(self, client: Client, items: list[dict[str, Any]]) -> None:
        try:
            told = client.outcome(MODEL, items)
        except LooplineError as error:
            self.failures.append(f"outcome: {error.code}: {error.detail}")
            return
        told.pop("results")
        self.statuses.update(told)

    def _settle(self, client: Client) -> None:
        """Let the last training end."""
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            figures = [client.jobs(model=MODEL, state=s)["jobs"] for s in ("queued", "running")]
            if not any(figures):
                return
            time.sleep(0.2)

    def _look(self, client: Client, screen: Any, fully: bool = False) -> None:
        """Ask the server what it has decided, and show the state of things."""
        known = len(self.decisions)
        self.decisions = client.decisions(MODEL)
        for decision in self.decisions[known:]:
            screen.event(f"  {_verdict(decision)}")
        if fully or known != len(self.decisions) or time.monotonic() > self._scored + 10.0:
            self.scores, self._scored = client.scores(MODEL), time.monotonic()
        screen.update(self._lines())

    def _lines(self) -> list[str]:
        with self._lock:
            latest = [seconds for at, seconds in self.recent if at > time.perf_counter() - 5.0]
            made = len(self.latencies)
        known = sum(self.statuses.values())
        speed = len(latest) / min(5.0, max(0.001, time.monotonic() - self._began))
        rate = (
            f"{made:>6,} predictions  {speed:5.0f}/s  p50 {_ms(latest, 0.5)}  "
            f"p99 {_ms(latest, 0.99)}"
        )
        state = f"version {self.version}  {known:>6,} outcomes  failed calls {len(self.failures)}"
        scores = [
            f"  version {each['version']}: {_score(each)}" for each in self.scores["versions"]
        ]
        return [rate, state, *scores]

    def summary(self) -> dict[str, Any]:
        """What happened."""
        served = sum(self.versions.values())
        swaps = [each for each in self.decisions if each["promoted"] and each["by"] == "gate"]
        return {
            "predictions": served,
            "seconds": round(self.seconds, 1),
            "per_second": round(served / max(0.001, self.seconds), 1),
            "p50_ms": round(1000 * _quantile(self.latencies, 0.5), 2),
            "p99_ms": round(1000 * _quantile(self.latencies, 0.99), 2),
            "max_ms": round(1000 * max(self.latencies, default=0.0), 2),
            "failed": len(self.failures),
            "failures": self.failures[:5],
            "outcomes": {name: count for name, count in self.statuses.items() if count},
            "never": self.never,
            "swaps": len(swaps),
            "decisions": self.decisions,
            "versions": self.scores["versions"],
        }


def tell(console: Any, summary: dict[str, Any]) -> None:
    """Write the summary for a person."""
    told = ", ".join(f"{count:,} {status}" for status, count in summary["outcomes"].items())
    console.line("")
    console.line(
        f"{summary['predictions']:,} predictions in {summary['seconds']:.0f} s "
        f"({summary['per_second']:.0f}/s), p50 {summary['p50_ms']:.1f} ms, "
        f"p99 {summary['p99_ms']:.1f} ms, failed calls: {summary['failed']}"
    )
    console.line(f"outcomes: {told}; {summary['never']:,} never came")
    for decision in summary["decisions"]:
        console.line(f"  {_verdict(decision)}")
    for each in summary["versions"]:
        console.line(f"  version {each['version']}: {_score(each)}")
    for failure in summary["failures"]:
        console.line(f"  {failure}")


def farewell(url: str, traffic: Traffic, row: Row) -> str:
    """What can be tried by hand now."""
    body = msgspec.json.encode(row[0]).decode()
    where = f"{url}/v1/models/{MODEL}"
    outcome = msgspec.json.encode({"id": traffic.last_id, "outcome": row[1]}).decode()
    return "\n".join(
        (
            "",
            "The server stays up until Ctrl-C. Try it:",
            f"  curl {where}/predict --json '{body}'",
            f"  curl {where}/outcomes --json '{outcome}'",
            f"  curl {where}/decisions",
            f"  curl {where}/scores",
            f"  curl -X POST {where}/rollback",
            f"and see {url}/docs",
        )
    )


def wait(server: subprocess.Popen[bytes]) -> None:
    """Leave the server up until Ctrl-C."""
    try:
        server.wait()
    except KeyboardInterrupt:
        return


def _verdict(decision: dict[str, Any]) -> str:
    return f"{decision['verdict']}: {decision['reason']}"


def _score(entry: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in entry["metrics"].items())
    return f"{figures or 'no outcomes yet'} (coverage {entry['coverage'] or 0:.1%})"


def _ms(seconds: list[float], share: float) -> str:
    return f"{1000 * _quantile(seconds, share):.1f} ms"


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
