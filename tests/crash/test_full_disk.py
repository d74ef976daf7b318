"""A full disk: a clear error, reads and predictions go on, and it recovers by itself.

The disk is a small file system in memory, in a mount namespace that only the processes of a test
have, so that nothing outlives them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loopline.backends.sqlite import SqliteLog
from loopline.backends.store import SqlStore
from tests.servers import Server

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
MOUNT = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo mounted && exec cat'
ALONE = ("--mount",) if os.geteuid() == 0 else ("--user", "--map-root-user", "--mount")
INTO = ("--mount",) if os.geteuid() == 0 else ("--user", "--preserve-credentials", "--mount")


class Disk:
    """A small file system that only the processes started by `command` have.

    Args:
        folder: where it is mounted, as `disk`, for those processes.
        size: such as "24m".
    """

    def __init__(self, folder: Path, size: str) -> None:
        self.inside = folder / "disk"
        self.inside.mkdir()
        self._folder = folder
        script = ("sh", "-c", MOUNT, "sh", str(self.inside), size)
        self._holder = subprocess.Popen(
            ["unshare", *ALONE, *script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self.mounted = self._holder.stdout.readline() == b"mounted\n"
        root = f"/proc/{self._holder.pid}/root" if self.mounted else ""
        self._handle = os.open(f"{root}{self.inside}", os.O_DIRECTORY)
        self.path = Path(f"/proc/self/fd/{self._handle}")

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs another one where this disk is."""
        return [
            *("nsenter", f"--target={self._holder.pid}", *INTO, f"--wd={self._folder}"),
            *arguments,
        ]

    def fill(self) -> None:
        """Take all the room there is."""
        for size in (2**20, 4096):
            with open(self.path / "filler", "ab", buffering=0) as file:
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Give the room back."""
        (self.path / "filler").unlink()

    def close(self) -> None:
        """Let go of it, which is its end once its last process is gone."""
        os.close(self._handle)
        self._holder.communicate(timeout=20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """24 MB of disk."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("mount namespaces are a thing of Linux")
    disk = Disk(tmp_path, "24m")
    try:
        if not disk.mounted:
            pytest.skip("no mount namespace is allowed here")
        yield disk
    finally:
        disk.close()


class Traffic:
    """Clients that never stop, and remember what each verb was told."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Condition()
        self.taken: dict[str, list[Any]] = defaultdict(list)
        self.refused: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(act,))
            for act in (self._predict, self._learn, self._train)
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

    def _run(self, act: Callable[[httpx.Client, int], None]) -> None:
        with httpx.Client(base_url=f"{self._url}/v1/models/line", timeout=30.0) as client:
            number = 0
            while not self._stop.wait(0.002):
                number += 1
                act(client, number)

    def _tell(self, verb: str, answer: httpx.Response, value: Any) -> bool:
        body = answer.json()
        with self._lock:
            if answer.is_success:
                self.taken[verb].append(value(body))
            elif answer.status_code == 503:
                self.refused[verb].append(body)
            else:
                self.wrong.append(f"{verb}: {answer.status_code} {answer.text}")
            self._lock.notify_all()
        return answer.is_success

    def _predict(self, client: httpx.Client, number: int) -> None:
        answer = client.post("/predict", json={"x": float(number)})
        if self._tell("predict", answer, lambda body: body["id"]):
            id = answer.json()["id"]
            told = client.post("/outcomes", json={"id": id, "outcome": 2.0 * number})
            self._tell("outcome", told, lambda body: id)

    def _learn(self, client: httpx.Client, number: int) -> None:
        rows = [{"x": number + part / 4, "y": 2.0 * number} for part in (1, 2, 3)]
        told = client.post("/learn", json=rows)
        self._tell("learn", told, lambda body: [row["x"] for row in rows])

    def _train(self, client: httpx.Client, number: int) -> None:
        self._tell("train", client.post("/train"), lambda body: body["job"])
        self._stop.wait(1.0)

    def await_more(self, what: dict[str, list[Any]], more: int, *verbs: str) -> None:
        """Wait until so many more of each verb were taken or refused."""
        with self._lock:
            goals = {verb: len(what[verb]) + more for verb in verbs}

            def reached() -> bool:
                return all(len(what[verb]) >= goal for verb, goal in goals.items())

            counts = f"{[(verb, len(what[verb])) for verb in verbs]} of {goals}"
            assert self._lock.wait_for(reached, 60), f"{counts}; {self.wrong[:3]}"


@contextmanager
def _serving(disk: Disk, folder: Path, port: int, data: Path | None = None) -> Iterator[Server]:
    """A server with one model; its data directory is the disk's, or another."""
    (folder / "app.py").write_text(APP)
    server = Server(folder, port, "app.py")
    where = str(data or disk.inside / "data")
    server.command = disk.command(*server.command[:-1], where)
    server.data = data or disk.path / "data"
    try:
        server.start("/readyz")
        yield server
    finally:
        server.stop()


def _until(done: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def _reads(server: Server) -> None:
    for path in ("/livez", "/v1/models", "/v1/models/line", "/v1/models/line/versions", "/v1/jobs"):
        assert server.client.get(path).status_code == 200, path


def _named(traffic: Traffic, verbs: set[str]) -> None:
    """Only these verbs were refused, and each of them says that it is the disk."""
    assert {verb for verb, said in traffic.refused.items() if said} - {"predict"} <= verbs
    for verb in verbs:
        assert {body["code"] for body in traffic.refused[verb]} == {"unavailable"}
        assert any("disk is full" in body["detail"] for body in traffic.refused[verb])


def _copy(file: Path, folder: Path) -> Path:
    """A database of a stopped server on an ordinary disk."""
    copied = folder / f"copied-{file.name}"
    for ending in ("", "-wal"):
        source = file.with_name(file.name + ending)
        if source.exists():
            shutil.copy(source, copied.with_name(copied.name + ending))
    return copied


def _books(folder: Path, traffic: Traffic, log: Path, store: Path) -> None:
    """Everything that was acknowledged is there, and every answered prediction."""
    with (
        closing(SqliteLog(_copy(log, folder))) as events,
        closing(SqlStore.open(f"sqlite:///{_copy(store, folder)}")) as books,
    ):
        answered = traffic.taken["predict"]
        assert events.find("line.predictions", answered).keys() == set(answered)
        examples = list(books.examples("line"))
        learned = {example.row[0] for example in examples if example.source == "learn"}
        joined = [example.id for example in examples if example.source == "outcome"]
        assert {x for rows in traffic.taken["learn"] for x in rows} <= learned
        assert set(traffic.taken["outcome"]) <= set(joined) and len(set(joined)) == len(joined)
        assert set(traffic.taken["train"]) <= {job.id for job in books.jobs(most=100_000)}


def _settled(server: Server, traffic: Traffic) -> None:
    """Wait until the join has passed the last learned row."""
    server.post("/v1/models/line/learn", {"x": -1.0, "y": -2.0})
    said = server.post("/v1/models/line/learn", {"x": -2.0, "y": -4.0})
    _until(
        lambda: server.post("/v1/models/line/learn", {"x": -3.0, "y": -6.0}).get("summary"),
        lambda: f"the join does not catch up: {said}",
    )


@pytest.mark.timeout(300)
def test_everything_on_one_full_disk(disk: Disk, tmp_path: Path, free_port: int) -> None:
    """Predictions and reads go on, the rest says why not, and it all works again by itself.

    Meanwhile the keeper is killed and has to start again on the full disk.
    """
    with _serving(disk, tmp_path, free_port) as server:
        replica, supervisor = server.pid("replica-0"), server.pid("supervisor")
        traffic = Traffic(server.url)
        traffic.start()
        try:
            traffic.await_more(traffic.taken, 3, "predict", "outcome", "learn", "train")
            disk.fill()
            traffic.await_more(traffic.refused, 3, "outcome", "learn", "train")
            traffic.await_more(traffic.taken, 10, "predict")
            _reads(server)
            server.kill("keeper-0")
            traffic.await_more(traffic.taken, 10, "predict")
            _named(traffic, {"outcome", "learn", "train"})
            for said in traffic.refused.values():
                said.clear()
            _until(lambda: _has_disk(traffic.refused["learn"]), lambda: server.log())
            _reads(server)
            disk.free()
            traffic.await_more(traffic.taken, 5, "predict", "outcome", "learn", "train")
            assert (replica, supervisor) == (server.pid("replica-0"), server.pid("supervisor"))
        finally:
            traffic.stop()
        _settled(server, traffic)
        assert server.stop() == 0
        assert not traffic.wrong
        _books(tmp_path, traffic, server.data / "log.db", server.data / "store.db")


def _has_disk(said: list[dict[str, Any]]) -> bool:
    return any("disk is full" in body["detail"] for body in said)


def test_started_again_on_a_full_disk(disk: Disk, tmp_path: Path, free_port: int) -> None:
    """After `kill -9` of the whole server it serves again, though nothing can be written."""
    with _serving(disk, tmp_path, free_port) as server:
        server.post("/v1/models/line/learn", {"x": 0.5, "y": 1.0})
        disk.fill()
        server.kill("supervisor")
        server.command.remove("app.py")  # What the data directory holds; registering would write.
        server.start("/readyz")
        answer = server.post("/v1/models/line/predict", {"x": 1.0})
        refused = server.client.post("/v1/models/line/learn", json={"x": 1.5, "y": 3.0})
        assert refused.status_code == 503 and "disk" in refused.json()["detail"]
        disk.free()
        told = {"id": answer["id"], "outcome": 2.0}
        _until(
            lambda: server.client.post("/v1/models/line/outcomes", json=told).is_success, server.log
        )
        assert server.stop() == 0
        with closing(SqliteLog(_copy(server.data / "log.db", tmp_path))) as log:
            assert log.count("line.examples") == 1
            assert answer["id"] in log.find("line.predictions", [answer["id"]])


PARTS = {
    "log": ("LOOPLINE_LOG", "sqlite:///{}/log.db", {"outcome", "learn"}),
    "store": ("LOOPLINE_STORE", "sqlite:///{}/store.db", {"train"}),
    "blobs": ("LOOPLINE_BLOBS", "file://{}/blobs", set[str]()),
}


@pytest.mark.parametrize("part", PARTS)
def test_one_part_on_a_full_disk(
    disk: Disk, tmp_path: Path, free_port: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what needs the full disk is refused; what was acknowledged meanwhile is kept."""
    variable, url, verbs = PARTS[part]
    monkeypatch.setenv(variable, url.format(disk.inside))
    with _serving(disk, tmp_path, free_port, tmp_path / "data") as server:
        traffic = Traffic(server.url)
        traffic.start()
        others = {"predict", "outcome", "learn", "train"} - verbs
        try:
            traffic.await_more(traffic.taken, 2, "predict", "outcome", "learn", "train")
            disk.fill()
            traffic.await_more(traffic.refused, 2, *verbs)
            traffic.await_more(traffic.taken, 3, *others)
            if part == "blobs":
                _until(lambda: "disk" in _failure(server), lambda: str(server.get("/v1/jobs")))
            _reads(server)
            disk.free()
            traffic.await_more(traffic.taken, 3, "predict", "outcome", "learn", "train")
        finally:
            traffic.stop()
        _settled(server, traffic)
        if part == "blobs":
            *earlier, last = traffic.taken["train"]
            for id in earlier:
                server.post(f"/v1/jobs/{id}/cancel")
            state = lambda: server.get(f"/v1/jobs/{last}")["state"]  # noqa: E731
            _until(lambda: state() == "done", state)
            names = [path.name for path in (disk.path / "blobs").glob("??/*")]
            assert names and {len(name) for name in names} == {62}
        assert server.stop() == 0
        assert not traffic.wrong
        _named(traffic, verbs)
        places = {"log": server.data, "store": server.data} | {part: disk.path}
        _books(tmp_path, traffic, places["log"] / "log.db", places["store"] / "store.db")


def _failure(server: Server) -> str:
    """What the last failed job says."""
    failed = server.get("/v1/jobs", state="failed")["jobs"]
    return str(failed[0]["error"]) if failed else ""


SCRIPTS = {
    "log": """
from loopline.backends.sqlite import SqliteLog
log = SqliteLog(root / "log.db")
log.append(make("m.a", range(10)))
fill()
refused(lambda: log.append(make("m.a", range(10, 2000), value=bytes(1000))))
log.offer(make("m.b", range(1000), value=bytes(1000)))
assert log.buffered and log.count("m.a") == 10
second = SqliteLog(root / "log.db")
refused(lambda: second.append(make("m.a", range(10, 2000), value=bytes(1000))))
assert second.count("m.a") == 10
second.close()
free()
log.append(make("m.a", ["later"]))
assert log.count("m.a") == 11 and log.count("m.b") == 1000
fill()
log.close()
free()
log = SqliteLog(root / "log.db")
assert log.count("m.a") == 11 and log.count("m.b") == 1000
log.close()
""",
    "store": """
from loopline.backends.store import SqlStore
from loopline.records import Job
store = SqlStore.open(f"sqlite:///{root}/store.db")
first = store.submit(Job(id="first", kind="train", model="m", payload={}))
fill()
big = {"text": "x" * 1_000_000}
refused(lambda: store.submit(Job(id="second", kind="train", model="m", payload=big)))
assert store.job("first") == first and store.job("second") is None
second = SqlStore.open(f"sqlite:///{root}/store.db")
assert second.job("first") == first
second.close()
free()
store.submit(Job(id="second", kind="train", model="m", payload=big))
assert [job.id for job in store.jobs()] == ["second", "first"]
store.close()
""",
    "blobs": """
from loopline.backends.files import FileBlobs
blobs = FileBlobs(root / "blobs")
first = blobs.put(b"one")
fill()
refused(lambda: blobs.put(bytes(1_000_000)))
assert list(blobs.digests()) == [first] and blobs.get(first) == b"one"
assert [path for path in (root / "blobs").glob("*/*") if len(path.name) != 62] == []
free()
assert blobs.get(blobs.put(bytes(1_000_000))) == bytes(1_000_000)
""",
}
BEGINNING = """
import sys
from pathlib import Path
from loopline.errors import Unavailable
from loopline.testing.log import make
root = Path(sys.argv[1])
def fill():
    for size in (2**20, 4096):
        with open(root / "filler", "ab", buffering=0) as file:
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
def free():
    (root / "filler").unlink()
def refused(act):
    try:
        act()
    except Unavailable as error:
        assert "disk" in str(error) and "full" in str(error), error
    else:
        raise AssertionError("it was not refused")
"""


@pytest.mark.parametrize("part", SCRIPTS)
def test_a_backend_on_a_full_disk(disk: Disk, part: str) -> None:
    """Writing says that the disk is full, nothing is half there, and it works later."""
    script = BEGINNING + SCRIPTS[part]
    command = disk.command(sys.executable, "-c", script, str(disk.inside))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
