"""The log's suite over memory, SQLite, and a writer process; and what only a file can do."""

from __future__ import annotations

import itertools
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from loopline.backends.handover import LogClient
from loopline.backends.memory import MemoryLog
from loopline.backends.sqlite import SqliteLog
from loopline.backends.sqlite_file import LogFile, connect
from loopline.contracts import EventLog
from loopline.errors import Overloaded, Unavailable, WrongState
from loopline.records import Event
from loopline.testing.log import DurableLogSuite, LogSuite, drain, keys, make
from tests.log_writer import Writer


class TestMemoryLog(LogSuite):
    """The reference, with three partitions."""

    one_partition = False

    @pytest.fixture
    def log(self) -> Iterator[EventLog]:
        """A log in memory."""
        yield MemoryLog()

    def test_order_within_a_partition(self, log: EventLog) -> None:
        """Each partition is read in the order of its events, whatever comes between."""
        log.append(make("m.a", range(300)))
        events = drain(log.consumer("g", ["m.a"]), 40)
        again = drain(log.consumer("h", ["m.a"]), 300)
        assert sorted(keys(events)) == sorted(keys(again))
        times = [event.at for event in again]
        breaks = sum(later < earlier for earlier, later in itertools.pairwise(times))
        assert breaks == 2


class TestSqliteLog(DurableLogSuite):
    """The writer itself."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Callable[[], SqliteLog]]:
        """A function that opens the file, closing whoever had it before."""
        held: list[SqliteLog] = []

        def open_it() -> SqliteLog:
            while held:
                held.pop().close()
            held.append(SqliteLog(tmp_path / "deep" / "log.db"))
            return held[0]

        yield open_it
        held.pop().close()

    @pytest.fixture
    def log(self, opened: Callable[[], SqliteLog]) -> Iterator[EventLog]:
        """A log in a fresh file."""
        yield opened()

    @pytest.fixture
    def reopen(self, opened: Callable[[], SqliteLog]) -> Callable[[], EventLog]:
        """Close and open the file."""
        return opened


class TestLogClient(DurableLogSuite):
    """Another process writes the file."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Callable[[], LogClient]]:
        """A function that starts writer and client, ending those from before."""
        held: list[tuple[LogClient, Writer]] = []

        def end() -> None:
            client, writer = held.pop()
            client.close()
            writer.stop()

        def open_it() -> LogClient:
            if held:
                end()
            writer = Writer(tmp_path / "log.db", str(tmp_path / "log.sock")).start()
            held.append((LogClient(writer.file, writer.address), writer))
            return held[0][0]

        yield open_it
        end()

    @pytest.fixture
    def log(self, opened: Callable[[], LogClient]) -> Iterator[EventLog]:
        """A client of a fresh writer."""
        yield opened()

    @pytest.fixture
    def reopen(self, opened: Callable[[], LogClient]) -> Callable[[], EventLog]:
        """End both processes' parts and start them again."""
        return opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a log can be."""
    return tmp_path / "log.db"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow past `size` bytes, as a disk without room would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check(file: Path) -> None:
    """The file is whole."""
    with closing(connect(str(file))) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_full_disk(file: Path) -> None:
    """Appends fail with a clear error, reads go on, and it recovers when there is room."""
    with closing(SqliteLog(file)) as log:
        log.append(make("m.a", range(10)))
        with largest_file(200_000):
            with pytest.raises(Unavailable, match="disk"):
                log.append(make("m.a", range(10, 1000), value=bytes(1000)))
            log.offer(make("m.b", range(1000), value=bytes(1000)))
            assert keys(list(log.scan("m.a"))) == [str(number) for number in range(10)]
            with pytest.raises(Unavailable, match="disk"):
                log.append(make("m.a", ["refused"]))
        log.append(make("m.a", ["later"]))
        assert log.count("m.a") == 11 and log.count("m.b") == 1000
        assert log.find("m.a", ["refused", "10"]) == {}
    check(file)


def test_offers_are_bounded_while_the_disk_is_full(file: Path) -> None:
    """Past the bound an offer is refused; what was taken arrives when there is room."""
    with closing(SqliteLog(file, max_buffer=50_000)) as log:
        log.append(make("m.a", ["first"]))
        with largest_file(100_000):
            with pytest.raises(Overloaded):
                for number in range(1000):
                    log.offer(make("m.b", [number], value=bytes(10_000)))
        taken = number
        log.append(make("m.a", ["last"]))
        assert keys(list(log.scan("m.b"))) == [str(each) for each in range(taken)]


def test_offers_outlive_a_killed_process(file: Path) -> None:
    """What a process offered to its own log is there after it was killed."""
    code = f"""
import os, signal
from loopline.backends.sqlite import SqliteLog
from loopline.testing.log import make
log = SqliteLog({str(file)!r})
for number in range(100):
    log.offer(make("m.a", [number]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    with closing(SqliteLog(file)) as log:
        assert log.count("m.a") == 100


@pytest.mark.parametrize("seed", range(3))
def test_a_torn_write_ahead_log(file: Path, tmp_path: Path, seed: int) -> None:
    """Whatever a power cut leaves of the last writes, the file opens to whole batches."""
    chance = random.Random(seed)
    with closing(SqliteLog(file)) as log:
        for batch in range(60):
            log.append(make("m.a", [f"{batch}-{number}" for number in range(7)], value=bytes(300)))
        whole = Path(f"{file}-wal").read_bytes()
        for turn in range(15):
            copy = tmp_path / f"copy{turn}.db"
            shutil.copy(file, copy)
            Path(f"{copy}-wal").write_bytes(_torn(whole, chance))
            _check_prefix(copy)


def _torn(wal: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(32, len(wal))
    damage = chance.choice(["cut", "flip", "zero"])
    if damage == "cut":
        return wal[:place]
    filler = bytes([wal[place] ^ 0x55]) if damage == "flip" else bytes(4096)
    return wal[:place] + filler + wal[place + len(filler) :]


def _check_prefix(copy: Path) -> None:
    try:
        log = SqliteLog(copy)
    except WrongState:
        raise AssertionError("a torn log is still a log") from None
    with closing(log):
        found = keys(list(log.scan("m.a")))
        assert len(found) % 7 == 0
        expected = [f"{batch}-{number}" for batch in range(60) for number in range(7)]
        assert found == expected[: len(found)]
        log.append(make("m.a", ["next"]))
        assert log.count("m.a") == len(found) + 1


def test_a_damaged_file_is_refused(file: Path) -> None:
    """After a stop without closing, the file is checked before anything is written to it."""
    log = SqliteLog(file)
    log.append(make("m.a", range(3000), value=bytes(200)))
    log.close()
    with closing(connect(str(file))) as db:
        db.execute("UPDATE state SET value = 0 WHERE name = 'clean'")
    data = bytearray(file.read_bytes())
    for place in range(8 * 4096, 60 * 4096, 4096):
        data[place : place + 200] = b"\x5a" * 200
    file.write_bytes(data)
    with pytest.raises(Unavailable, match="damaged"):
        SqliteLog(file)


def test_what_is_not_a_log_is_refused(file: Path, tmp_path: Path) -> None:
    """Another program's file, no database at all, and a newer release's log are left alone."""
    with closing(connect(str(file))) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(WrongState):
        SqliteLog(file)
    text = tmp_path / "text.db"
    text.write_text("not a database" * 1000)
    with pytest.raises(WrongState):
        SqliteLog(text)
    newer = tmp_path / "newer.db"
    SqliteLog(newer).close()
    with closing(connect(str(newer))) as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(WrongState, match="newer"):
        SqliteLog(newer)


def test_the_file_is_as_promised(file: Path) -> None:
    """Write-ahead log, every commit synced, room given back, one number for the format."""
    with closing(SqliteLog(file)) as log:
        log.append(make("m.a", ["k"]))
        with closing(connect(f"file:{file}?mode=ro", uri=True)) as db:
            names = ("journal_mode", "auto_vacuum", "user_version", "application_id", "page_size")
            found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        assert found == ["wal", 2, 1, 0x4C4C4F47, 4096]


def test_trimming_gives_room_back(file: Path) -> None:
    """The file shrinks again after most of it was deleted."""
    with closing(SqliteLog(file)) as log:
        log.append(make("m.a", range(5000), value=bytes(1000)))
        while log.trim("m.a", 1e9):
            pass
    assert file.stat().st_size < 1_000_000


def test_erased_bytes_are_overwritten(file: Path) -> None:
    """A person's data cannot be read from the closed file after erasing."""
    with closing(SqliteLog(file)) as log:
        log.append(make("m.a", range(100), value=b"harmless"))
        log.append([Event(topic="m.a", key="person", at=1.0, value=b"secret-" * 2000)])
        log.append([Event(topic="m.a", key="jane", at=1.0, value=b"secret")])
        assert log.erase("m.a", ["person", "jane"]) == 2
    assert b"secret" not in file.read_bytes() and b"jane" not in file.read_bytes()


def test_a_reader_before_the_writer(file: Path) -> None:
    """A file that is not there yet is an empty log, and is seen as soon as it is."""
    with closing(LogFile(file)) as reader:
        assert reader.count("m.a") == 0 and reader.find("m.a", ["k"]) == {}
        assert not file.exists()
        with closing(SqliteLog(file)) as log:
            assert reader.count("m.a") == 0
            log.append(make("m.a", ["k"]))
            assert keys(list(reader.scan("m.a"))) == ["k"]
        assert list(reader.find("m.a", ["k"])) == ["k"]


def test_readers_hold_nothing_up(file: Path) -> None:
    """A scan that somebody began and forgot keeps the write-ahead log no longer than others."""
    with closing(SqliteLog(file)) as log:
        log.append(make("m.a", range(3000), value=bytes(500)))
        forgotten = log.scan("m.a")
        next(forgotten)
        for start in range(3000, 40_000, 1000):
            log.append(make("m.a", range(start, start + 1000), value=bytes(500)))
        assert Path(f"{file}-wal").stat().st_size < 12_000_000


def test_reading_while_writing(file: Path) -> None:
    """A reader sees whole batches in order, at any moment."""
    with ExitStack() as stack:
        log = stack.enter_context(closing(SqliteLog(file)))
        reader = stack.enter_context(closing(LogFile(file)))
        done = threading.Event()

        def write() -> None:
            for batch in range(200):
                log.append(make("m.a", range(batch * 5, batch * 5 + 5)))
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        while not done.is_set():
            found = keys(list(reader.scan("m.a")))
            assert found == [str(number) for number in range(len(found))]
            assert len(found) % 5 == 0
        thread.join()
        assert reader.count("m.a") == 1000
