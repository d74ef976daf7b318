"""Between a client and the writer: order, bounds, deaths on either side, and strangers."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from loopline.backends.handover import LogClient, LogInlet
from loopline.backends.sqlite import SqliteLog
from loopline.errors import InvalidInput, Overloaded, Unavailable
from loopline.testing.log import drain, keys, make
from tests.log_writer import Writer


class Site:
    """A log's file, its inlet in this process, and clients of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.file = folder / "log.db"
        self.stack = stack
        self.log = SqliteLog(self.file)
        self.inlet: LogInlet
        self.address: Any = str(folder / "log.sock")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        stack.callback(self.end)

    def listen(self, address: Any = None) -> None:
        """Listen, but take nothing yet."""
        self.inlet = LogInlet(self.log, self.address if address is None else address)
        self.address = self.inlet.address

    def start(self) -> None:
        """Take what comes, in a thread."""
        if not hasattr(self, "inlet"):
            self.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.inlet.pump(0.005)

    def end(self) -> None:
        """Stop taking, let go of everything."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if hasattr(self, "inlet"):
            self.inlet.close()
        self.log.close()

    def client(self, **options: Any) -> LogClient:
        """A client that is closed before the writer ends."""
        client = LogClient(self.file, lambda: self.address, **options)
        self.stack.callback(client.close)
        return client

    def pump_until(self, done: Callable[[], bool]) -> None:
        """Pump in this thread until something is so."""
        for _ in range(2000):
            if done():
                return
            self.inlet.pump(0.005)
        raise AssertionError("it never was so")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fresh file; nobody listens yet."""
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def test_an_outcome_is_never_ahead_of_its_prediction(site: Site) -> None:
    """When one client's append is in the file, so is what another had offered before."""
    site.start()
    replica, other = site.client(), site.client()
    for turn in range(200):
        replica.offer(make("m.predictions", [turn]))
        other.append(make("m.outcomes", [turn]))
        assert list(other.find("m.predictions", [str(turn)])) == [str(turn)]


def test_frames_keep_their_order(site: Site) -> None:
    """However large the backlog, everything arrives once, in the order it was handed over."""
    site.listen()
    client = site.client()
    for number in range(400):
        client.offer(make("m.a", range(number * 3, number * 3 + 3), value=bytes(20_000)))
    answers: list[str] = []

    def append() -> None:
        client.append(make("m.a", ["end"]))
        answers.append("done")

    appender = threading.Thread(target=append)
    appender.start()
    site.pump_until(lambda: bool(answers))
    appender.join()
    assert keys(list(client.scan("m.a"))) == [*map(str, range(1200)), "end"]
    positions = [row[0] for row in client.page("m.a", 0, 2000)]
    assert positions == list(range(1, 1202))


def test_past_the_bound_an_offer_is_refused(site: Site) -> None:
    """Nothing of a refused offer is taken, everything of the others arrives later."""
    client = site.client(max_buffer=100_000)
    with pytest.raises(Overloaded) as caught:
        for number in range(1000):
            client.offer(make("m.a", [number], value=bytes(3000)))
    assert caught.value.retry_after
    assert 25 < number < 40
    site.start()
    client.append(make("m.a", ["end"]))
    assert keys(list(client.scan("m.a"))) == [*map(str, range(number)), "end"]
    client.offer(make("m.a", ["again"]))


def test_an_append_without_a_writer_is_refused(site: Site) -> None:
    """It says so after a short wait, and does not come back later by itself."""
    client = site.client(patience=0.2)
    with pytest.raises(Unavailable):
        client.append(make("m.a", ["refused"]))
    site.start()
    client.offer(make("m.a", ["next"]))
    client.append(make("m.a", ["last"]))
    assert keys(list(client.scan("m.a"))) == ["next", "last"]


def test_an_append_waits_a_moment_for_the_writer(site: Site) -> None:
    """A writer that comes within the patience gets it."""
    client = site.client(patience=30.0)
    late = threading.Timer(0.1, site.start)
    late.start()
    client.append(make("m.a", ["k"]))
    late.join()
    assert client.count("m.a") == 1


def test_an_unknown_address_is_asked_for_again(site: Site) -> None:
    """A client goes on asking where the writer is until somebody knows."""
    known: list[Any] = []

    def address() -> Any:
        if not known:
            raise Unavailable("nobody knows")
        return known[0]

    client = LogClient(site.file, address, patience=30.0)
    site.stack.callback(client.close)
    client.offer(make("m.a", ["early"]))
    site.start()
    known.append(site.address)
    client.append(make("m.a", ["k"]))
    assert keys(list(client.scan("m.a"))) == ["early", "k"]


def test_a_killed_client_has_handed_over(site: Site) -> None:
    """All it had offered is in the file, though the writer looked only after its death."""
    site.listen()
    code = f"""
import os, signal
from loopline.backends.handover import LogClient
from loopline.testing.log import make
client = LogClient({str(site.file)!r}, {site.address!r})
for number in range(500):
    client.offer(make("m.a", [number], value=bytes(200)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    site.pump_until(lambda: site.log.count("m.a") == 500)
    assert keys(list(site.log.scan("m.a"))) == [str(number) for number in range(500)]


def test_closing_the_inlet_takes_what_was_handed_over(tmp_path: Path) -> None:
    """What lies in the sockets when the writer ends is committed first."""
    log = SqliteLog(tmp_path / "log.db")
    inlet = LogInlet(log, str(tmp_path / "log.sock"))
    client = LogClient(tmp_path / "log.db", str(inlet.address))
    client.offer(make("m.a", range(2000), value=bytes(500)))
    inlet.pump(0.0)
    client.offer(make("m.a", ["last"]))
    inlet.close()
    assert log.count("m.a") == 2001
    client.close()
    log.close()
    assert not (tmp_path / "log.sock").exists()


def test_closing_a_client_waits_for_the_writer(site: Site) -> None:
    """What was offered just before is committed when `close` returns."""
    site.start()
    client = LogClient(site.file, site.address)
    client.offer(make("m.a", range(3000), value=bytes(2000)))
    client.close()
    assert site.log.count("m.a") == 3000
    with pytest.raises(Unavailable):
        client.offer(make("m.a", ["late"]))


def test_closing_without_a_writer_says_what_is_lost(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that finds no writer gives up, and logs it."""
    client = LogClient(site.file, site.address, patience=0.05)
    client.offer(make("m.a", ["k"]))
    client.close()
    assert "lost" in caplog.text


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\xff" * 100,
        b"\x01\x00\x00\x00" + bytes(8) + b"\x01\x90",  # an offer without a greeting
        b"\x01\x00\x00\x00" + bytes(8) + b"\x00\xc1",  # a greeting that is no MessagePack
        b"\x04\x00\x00\x00" + bytes(8) + b"\x00\x92\x01\xa1x",  # a wrong key
        b"\x03\x00\x00\x00" + bytes(8) + b"\x00\x92\x63\xa0",  # another protocol
    ],
)
def test_garbage_ends_only_its_own_connection(
    site: Site, bytes_sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever sends nonsense is sent away with a log line, and everybody else goes on."""
    site.listen()
    client = site.client()
    client.offer(make("m.a", ["before"]))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(site.address)
        stranger.sendall(bytes_sent)
        site.pump_until(lambda: "sent away" in caplog.text)
        stranger.settimeout(5.0)
        assert stranger.recv(1) == b""
    site.start()
    client.append(make("m.a", ["after"]))
    assert keys(list(client.scan("m.a"))) == ["before", "after"]


def test_a_broken_frame_after_good_ones(site: Site) -> None:
    """What a client had sent before its nonsense is kept, and a half frame is not waited for."""
    site.listen()
    rows = b"\x81\xa3m.a\x91\x93\xa1k\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00\xc4\x00"
    hello = b"\x03\x00\x00\x00" + bytes(8) + b"\x00\x92\x01\xa0"
    offer = len(rows).to_bytes(4, "little") + (1).to_bytes(8, "little") + b"\x01" + rows
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(site.address)
        stranger.sendall(hello + offer + offer[:-1] + b"\xff" * 40)
        site.pump_until(lambda: site.log.count("m.a") == 1)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(site.address)
        stranger.sendall(hello + offer.replace(b"\xa1k", b"\xa1l") + offer[:10])
    site.pump_until(lambda: site.log.count("m.a") == 2)
    assert keys(list(site.log.scan("m.a"))) == ["k", "l"]


def test_only_the_owner_may_connect(site: Site) -> None:
    """The socket's mode says so."""
    site.listen()
    assert stat.S_IMODE(os.stat(site.address).st_mode) == 0o600


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    """A killed writer's socket file is in nobody's way, and a plain file is not deleted."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "log.sock"))
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        LogInlet(log, str(tmp_path / "log.sock")).close()
        (tmp_path / "file").write_text("precious")
        with pytest.raises(OSError):
            LogInlet(log, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_long_path_gets_a_short_one(site: Site, tmp_path: Path) -> None:
    """Where the path does not fit a Unix socket, another is made, which goes with the inlet."""
    site.listen(str(tmp_path / ("deep" * 30) / "log.sock"))
    assert len(site.address) < 100 and os.path.exists(site.address)
    site.start()
    client = site.client()
    client.append(make("m.a", ["k"]))
    site.end()
    assert not os.path.exists(os.path.dirname(site.address))


def test_tcp_asks_for_the_key(site: Site) -> None:
    """Where there are no Unix sockets: the loopback address, and a key that has to be known."""
    site.listen(("127.0.0.1", 0))
    host, port, key = site.address
    assert host == "127.0.0.1" and len(key) == 64
    site.start()
    client = site.client()
    client.offer(make("m.a", ["o"]))
    client.append(make("m.a", ["k"]))
    assert keys(list(client.scan("m.a"))) == ["o", "k"]
    stranger = LogClient(site.file, (host, port, "0" * 64), patience=0.3)
    with pytest.raises(Unavailable):
        stranger.append(make("m.a", ["no"]))
    stranger.close()
    assert client.count("m.a") == 2


def test_a_full_disk(site: Site) -> None:
    """Appends hear of it, offers are kept and arrive when there is room, reads go on."""
    site.start()
    client = site.client()
    client.append(make("m.a", range(10)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        client.offer(make("m.b", range(500), value=bytes(2000)))
        with pytest.raises(Unavailable, match="disk"):
            client.append(make("m.a", ["refused"]))
        client.offer(make("m.b", ["more"]))
        assert client.count("m.a") == 10
        with pytest.raises(Unavailable, match="disk"):
            client.append(make("m.a", ["refused too"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    client.append(make("m.a", ["later"]))
    assert keys(list(client.scan("m.b"))) == [*map(str, range(500)), "more"]
    assert client.count("m.a") == 11


def test_a_disk_full_for_long_stops_the_stream(site: Site) -> None:
    """Past what the writer keeps, it stops reading; the client's bound holds; all arrives later."""
    site.start()
    client = site.client(max_buffer=40_000_000)
    client.append(make("m.a", ["first"]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(Overloaded):
            for number in range(1000):
                client.offer(make("m.b", [number], value=bytes(200_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    client.append(make("m.a", ["last"]))
    assert keys(list(client.scan("m.b"))) == [str(each) for each in range(number)]


def test_a_stuffed_writer_still_says_why(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks behind more offers than the writer reads on a full disk hears of the disk too."""
    monkeypatch.setattr("loopline.backends.handover.HELD", 100_000)
    site.start()
    client = site.client()
    client.append(make("m.a", ["first"]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for number in range(40):
            client.offer(make("m.b", [number], value=bytes(500_000)))
        with pytest.raises(Unavailable, match="disk"):
            client.append(make("m.a", ["refused"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    client.append(make("m.a", ["last"]))
    assert client.count("m.b") == 40
    assert keys(list(client.scan("m.a"))) == ["first", "last"]


def test_the_writer_is_killed_and_started_elsewhere(tmp_path: Path) -> None:
    """A client sends to the next writer what the dead one had not committed."""
    first = Writer(tmp_path / "log.db", str(tmp_path / "one.sock")).start()
    second = Writer(tmp_path / "log.db", ("127.0.0.1", 0))
    current = [first]
    client = LogClient(tmp_path / "log.db", lambda: current[0].address, patience=30.0)
    client.append(make("m.a", ["a"]))
    client.offer(make("m.a", ["b"]))
    first.kill()
    client.offer(make("m.a", ["c"]))
    current[0] = second.start()
    client.append(make("m.a", ["d"]))
    assert keys(list(client.scan("m.a"))) == ["a", "b", "c", "d"]
    client.close()
    second.stop()


def test_many_requests_share_commits(site: Site) -> None:
    """Threads of several clients that append at once need fewer commits than appends."""
    site.start()
    clients = [site.client() for _ in range(2)]

    def work(name: int) -> None:
        for number in range(25):
            clients[name % 2].append(make("m.a", [f"{name}-{number}"]))

    before = site.log.news()
    threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.log.count("m.a") == 400
    assert site.log.news() - before < 390


def test_a_frame_too_large_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client says so itself, and its stream goes on."""
    monkeypatch.setattr("loopline.backends.handover_client.MAX_FRAME", 10_000)
    site.start()
    client = site.client()
    with pytest.raises(InvalidInput):
        client.append(make("m.a", ["k"], value=bytes(20_000)))
    client.append(make("m.a", ["l"]))
    assert keys(drain(client.consumer("g", ["m.a"]))) == ["l"]
