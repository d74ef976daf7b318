"""The store's suite over memory, SQLite and PostgreSQL, and what only a database can do wrong."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, text

from loopline.backends import database
from loopline.backends.memory_store import MemoryStore
from loopline.backends.store import SqlStore
from loopline.backends.tables import metadata
from loopline.contracts import Store
from loopline.errors import (
    InvalidInput,
    LooplineError,
    MissingExtra,
    Unavailable,
    WrongState,
)
from loopline.records import Aliases, Cursor, Effects, Job, JobState
from loopline.testing.store import Clock, StoreSuite, a_batch, an_example
from loopline.testing.store_jobs import a_decision, a_job, a_model, a_version, with_epochs


def _run(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python process with this program."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _output(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return said


class TestMemoryStore(StoreSuite):
    """The suite over the reference."""

    @pytest.fixture
    def store(self, clock: Clock) -> Iterator[Store]:
        """An empty one."""
        yield MemoryStore(clock=clock)


class TestSqliteStore(StoreSuite):
    """The suite over a file, with the best SQLite there is."""

    @pytest.fixture
    def store(self, clock: Clock, tmp_path: Path) -> Iterator[Store]:
        """An empty file."""
        store = SqlStore.open(f"sqlite:///{tmp_path}/store.db", clock=clock)
        yield store
        store.close()


class TestSqliteInMemory(StoreSuite):
    """The suite over SQLite without a file."""

    @pytest.fixture
    def store(self, clock: Clock) -> Iterator[Store]:
        """An empty one."""
        store = SqlStore.open("sqlite://", clock=clock)
        yield store
        store.close()


class TestStandardLibrarySqlite(StoreSuite):
    """The suite over a file, with Python's own SQLite and a rollback journal."""

    @pytest.fixture
    def store(
        self, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Store]:
        """An empty file."""
        monkeypatch.setattr(database, "sqlite_module", lambda: sqlite3)
        monkeypatch.setattr(database, "wal_is_safe", lambda version: False)
        store = SqlStore.open(f"sqlite:///{tmp_path}/store.db", clock=clock)
        yield store
        assert _journal(tmp_path / "store.db") == "delete"
        store.close()


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests do."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    # A server refuses to run as root; Debian's package comes with a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="loopline-pg-"))
    if user is not None:
        shutil.chown(home, user)
    data = home / "data"
    make = [programs / "initdb", "-D", data, "-U", "loopline", "-A", "trust", "-E", "UTF8"]
    subprocess.run(make, check=True, user=user, capture_output=True, cwd=home)
    serve = [programs / "postgres", "-D", data, "-k", home, "-c", "listen_addresses="]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(serve, user=user, stderr=log, stdout=log, cwd=home)
    ready = [programs / "pg_isready", "-h", home, "-t", "1"]
    try:
        while subprocess.run(ready, capture_output=True).returncode != 0:
            assert server.poll() is None, (home / "log").read_text()
        with psycopg.connect(f"host={home} user=loopline dbname=postgres", autocommit=True) as c:
            c.execute("CREATE DATABASE loopline")
        yield f"postgresql+psycopg://loopline@/loopline?host={home}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(home)


def _emptied(postgres: str) -> str:
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of an empty PostgreSQL database."""
    return _emptied(postgres)


class TestPostgresStore(StoreSuite):
    """The suite over a real PostgreSQL server."""

    @pytest.fixture
    def store(self, clock: Clock, postgres_url: str) -> Iterator[Store]:
        """An empty database."""
        store = SqlStore.open(postgres_url, clock=clock)
        yield store
        store.close()

    def test_server_is_the_clock(self, postgres_url: str) -> None:
        """Without a clock of its own the store asks the server for the time."""
        store = SqlStore.open(postgres_url)
        with store._engine.connect() as connection:
            before = connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))
            assert float(before) <= store.now()
        store.close()


def _journal(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    connection.close()
    return mode


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> str | None:
    """The database server of a test that runs on each; None stands for a file."""
    return str(request.getfixturevalue("postgres")) if request.param == "postgres" else None


@pytest.fixture
def url(server: str | None, tmp_path: Path) -> str:
    """The URL of an empty database that several processes can open."""
    return f"sqlite:///{tmp_path}/store.db" if server is None else _emptied(server)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a SQLite store may be made."""
    return tmp_path / "store.db"


# Moves of the random walk: a name and what it needs.
_MOVES = st.one_of(
    st.tuples(
        st.just("submit"),
        st.integers(0, 2),
        st.sampled_from([(), ("a",), ("a", "b")]),
        st.integers(1, 3),
        st.sampled_from([None, "k1", "k2"]),
    ),
    st.tuples(
        st.just("claim"),
        st.sampled_from([(), ("a",), ("b", "a")]),
        st.sampled_from([None, "r1", "r2"]),
        st.sampled_from([0.0, 5.0, 50.0]),
    ),
    st.tuples(
        st.just("beat"), st.integers(0, 5), st.integers(-1, 0), st.sampled_from([None, 1, 2])
    ),
    st.tuples(
        st.just("finish"),
        st.integers(0, 5),
        st.integers(-1, 0),
        st.sampled_from([JobState.DONE, JobState.FAILED, JobState.CANCELLED]),
        st.sampled_from([None, 0, 1]),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 6)),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("stretch"), st.sampled_from([1.0, 20.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 30.0])),
    st.tuples(st.just("epoch")),
    st.tuples(st.just("trigger")),
    st.tuples(st.just("drop")),
    st.tuples(st.just("put")),
)


class _Walker:
    """Makes the same moves on one store, and writes down what it answered."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.count = 0
        self.epochs = 0

    def move(self, name: str, *rest: Any) -> Any:
        """Make one move; the answer is what the store said, or the error it raised."""
        try:
            return getattr(self, name)(*rest)
        except LooplineError as error:
            return type(error), error.detail

    def _id(self, number: int) -> str:
        return f"j{number}"

    def _attempt(self, number: int, offset: int) -> int:
        job = self.store.job(self._id(number))
        return (job.attempt if job else 0) + offset

    def _fresh(self, kind: str, **fields: Any) -> Job:
        self.count += 1
        return a_job(kind, "toy", id=self._id(self.count % 6), **fields)

    def submit(self, priority: int, tags: tuple[str, ...], failures: int, key: str | None) -> Job:
        job = self._fresh("script", priority=priority, tags=tags, max_failures=failures)
        return self.store.submit(job, key=key)

    def claim(self, tags: tuple[str, ...], request: str | None, lease: float) -> Job | None:
        return self.store.claim("w", lease, tags, request)

    def beat(self, number: int, offset: int, step: int | None) -> Job:
        progress = None if step is None else {"step": step}
        return self.store.heartbeat(self._id(number), self._attempt(number, offset), 9.0, progress)

    def finish(self, number: int, offset: int, state: JobState, champion: int | None) -> Job:
        effects = None
        if champion is not None:
            effects = Effects(
                version=a_version(),
                decision=a_decision(candidate=0),
                promote=True,
                champion=champion or None,
            )
        attempt = self._attempt(number, offset)
        return self.store.finish(
            self._id(number), attempt, state, {"n": 1}, {"code": "timeout"}, effects
        )

    def cancel(self, number: int) -> Job:
        return self.store.cancel(self._id(number))

    def sweep(self) -> list[Job]:
        return self.store.sweep()

    def stretch(self, seconds: float) -> None:
        self.store.stretch_leases(seconds)

    def wait(self, seconds: float) -> None:
        self.clock.forward(seconds)

    def epoch(self) -> None:
        self.epochs += 1
        with_epochs(self.store, self.epochs * 10, first=self.epochs)

    def trigger(self) -> Job | None:
        return self.store.trigger("toy", self._fresh("train"))

    def drop(self) -> bool:
        return self.store.drop_model("toy")

    def put(self) -> int:
        return self.store.put_model(a_model()).revision

    def everything(self) -> Any:
        """All that can be read of the jobs and the model."""
        store = self.store
        return (
            store.jobs(),
            store.job_figures(),
            store.job_events(),
            store.epochs("toy"),
            store.versions("toy"),
            store.decisions("toy"),
            store.aliases("toy"),
            store.revision(),
        )


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(moves=st.lists(_MOVES, max_size=40))
def test_memory_and_sql_agree(moves: list[tuple[Any, ...]]) -> None:
    """Whatever is done to jobs, the SQL store answers what the reference answers."""
    walkers = []
    for kind in (MemoryStore, lambda clock: SqlStore.open("sqlite://", clock=clock)):
        clock = Clock()
        walkers.append(_Walker(kind(clock=clock), clock))
    for walker in walkers:
        walker.put()
    try:
        for move in moves:
            reference, sql = (walker.move(*move) for walker in walkers)
            assert reference == sql, move
        reference, sql = (walker.everything() for walker in walkers)
        assert reference == sql
    finally:
        walkers[1].store.close()


_CLAIM = """
    import sys
    from loopline.backends.store import SqlStore

    store = SqlStore.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    while (job := store.claim(sys.argv[2], 60.0)) is not None:
        print(job.id)
"""


def test_claims_of_processes_are_disjoint(url: str) -> None:
    """Two processes that claim 300 jobs at once get each of them once."""
    store = SqlStore.open(url)
    ids = {store.submit(a_job()).id for _ in range(300)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_CLAIM), url, name],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    got = [process.communicate("go\n", timeout=60)[0].split() for process in processes]
    assert sorted(got[0] + got[1]) == sorted(ids)
    assert {job.attempt for job in store.jobs(most=300)} == {1}
    store.close()


_BURST = """
    import sys
    from loopline.backends.store import SqlStore
    from loopline.testing.store import a_batch, an_example

    store = SqlStore.open(sys.argv[1])
    at = store.join_position("toy")
    number = int(at.token) if at else 0
    while True:
        examples = tuple(an_example(number * 20 + step) for step in range(1, 21))
        expected = str(number) if number else None
        store.commit_join(a_batch(expected, str(number + 1), examples=examples))
        number += 1
        print(number, flush=True)
"""


def test_killed_in_a_burst_of_commits(url: str) -> None:
    """After a kill -9 the position is the last committed, and the examples have no gap."""
    for commits in (3, 11, 6):
        process = _run(_BURST, url)
        assert process.stdout is not None
        for _ in range(commits):
            process.stdout.readline()
        process.kill()
        acknowledged = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        store = SqlStore.open(url)
        position = store.join_position("toy")
        assert position is not None
        if acknowledged:
            assert int(position.token) - int(acknowledged[-1]) in (0, 1)
        seqs = [example.seq for example in store.examples("toy")]
        assert seqs == list(range(1, int(position.token) * 20 + 1))
        store.close()


_OPEN = """
    import sys
    from loopline.backends.store import SqlStore
    from loopline.testing.store_jobs import a_job

    print("ready", flush=True)
    sys.stdin.readline()
    SqlStore.open(sys.argv[1]).submit(a_job())
"""


def test_four_processes_open_a_new_store(url: str) -> None:
    """A new database opened by four processes at once is made once, and serves them all."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_OPEN), url],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _output(process)
    store = SqlStore.open(url)
    assert len(store.jobs()) == 4
    store.close()


def test_open_store_does_not_need_alembic(url: str) -> None:
    """Opening a store that is up to date imports neither alembic nor NumPy."""
    SqlStore.open(url).close()
    said = _output(
        _run(
            """
            import sys
            from loopline.backends.store import SqlStore
            SqlStore.open(sys.argv[1]).jobs()
            print(sorted({"alembic", "numpy", "pandas", "sqlalchemy.orm"} & set(sys.modules)))
            """,
            url,
        )
    )
    assert said.strip() == "[]"


def test_migrations_make_the_tables(url: str) -> None:
    """The migrations lead to the tables that the code describes, and to its format."""
    store = SqlStore.open(url)
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection)
        # Indexes are named in the migrations only, and the version's table is alembic's own.
        differences = [
            difference
            for difference in compare_metadata(context, metadata)
            if isinstance(difference, list)
            or not difference[0].endswith(("_index", "_constraint", "_table"))
        ]
    assert differences == []
    store.close()
    folder = Path(database.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_heads() == [database.FORMAT]


def test_newer_store_is_refused(url: str) -> None:
    """A store that a newer release has written is refused, with the numbers."""
    store = SqlStore.open(url)
    with store._writer.begin() as connection:
        connection.execute(text("UPDATE loopline_alembic SET version_num = '0042'"))
    store.close()
    with pytest.raises(WrongState, match=r"newer release \(format 0042"):
        SqlStore.open(url)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    """A file of something else is refused and left as it is."""
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    (tmp_path / "text.db").write_text("this is no database, and long enough to be sure of it\n" * 9)
    for name in ("other.db", "text.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(WrongState, match="not a"):
            SqlStore.open(f"sqlite:///{tmp_path}/{name}")
        assert (tmp_path / name).read_bytes() == before


def test_urls_that_cannot_be_opened(tmp_path: Path) -> None:
    """An unknown URL, and a place that is no folder, are refused with their own errors."""
    with pytest.raises(InvalidInput):
        SqlStore.open("no url at all")
    with pytest.raises((InvalidInput, MissingExtra)):
        SqlStore.open("mysql://localhost/x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        SqlStore.open(f"sqlite:///{tmp_path}/file/store.db")
    with pytest.raises(Unavailable):
        SqlStore.open(f"sqlite:///{tmp_path}")


def test_postgres_away_is_unavailable(tmp_path: Path) -> None:
    """A server that is not there is unavailable, not a traceback."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(Unavailable):
        SqlStore.open(f"postgresql://x@/x?host={tmp_path}")


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 9), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
        ((4, 0, 0), True),
    ],
)
def test_wal_only_where_it_is_safe(version: tuple[int, int, int], safe: bool) -> None:
    """Only releases with the fix may keep a write-ahead log."""
    assert database.wal_is_safe(version) is safe


def test_journal_fits_the_library(path: Path) -> None:
    """A fixed SQLite keeps a write-ahead log, and every commit is flushed to the disk."""
    store = SqlStore.open(f"sqlite:///{path}")
    with store._engine.connect() as connection:
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
        safe = database.wal_is_safe(tuple(int(part) for part in version.split(".")))
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        assert mode == ("wal" if safe else "delete")
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        found = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        assert found == database.APPLICATION
    store.close()


def test_full_disk(path: Path) -> None:
    """On a full disk a write is refused whole and clearly, reads go on, and it recovers."""
    engine = database.open_engine(f"sqlite:///{path}")
    pages = {"most": 60}

    @event.listens_for(engine, "checkout")
    def limit(connection: Any, record: object, proxy: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages['most']}")

    store = SqlStore(engine)
    store.commit_join(a_batch(None, "1", examples=(an_example(1),)))
    big = tuple(an_example(seq, row=("x" * 500,)) for seq in range(2, 1000))
    with pytest.raises(Unavailable, match="disk is full"):
        store.commit_join(a_batch("1", "2", examples=big))
    assert store.join_position("toy") == Cursor(token="1")
    assert [example.seq for example in store.examples("toy")] == [1]
    pages["most"] = 100_000
    store.commit_join(a_batch("1", "2", examples=big))
    assert len(list(store.examples("toy"))) == 999
    store.close()


def test_locked_store_is_unavailable(path: Path) -> None:
    """A writer that cannot get its turn says that the store is busy; reads go on."""
    store = SqlStore.open(f"sqlite:///{path}")
    event.listen(
        store._engine, "checkout", lambda c, record, proxy: c.execute("PRAGMA busy_timeout=20")
    )
    # Two SQLite libraries in one process would not see each other's locks.
    other = database.sqlite_module().connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="busy"):
        store.submit(a_job())
    assert store.jobs() == []
    other.execute("ROLLBACK")
    other.close()
    assert store.submit(a_job()).state is JobState.QUEUED
    store.close()


def test_everything_survives_reopening(url: str) -> None:
    """What was written is there for the next opener, and the revision goes on."""
    store = SqlStore.open(url)
    store.put_model(a_model())
    store.add_version(a_version(), champion=True)
    job = store.submit(a_job(tags=("gpu",)), key="k")
    revision = store.revision()
    store.close()
    store = SqlStore.open(url)
    assert store.revision() == revision
    assert store.aliases("toy") == Aliases(champion=1, epoch=1)
    assert store.submit(a_job(), key="k") == job
    store.close()


def test_two_openers_see_each_other(url: str) -> None:
    """One opener's commit is the other's next answer."""
    one, two = SqlStore.open(url), SqlStore.open(url)
    job = one.submit(a_job())
    assert two.job(job.id) == job
    taken = two.claim("w", 60.0)
    assert taken is not None and one.job(job.id) == taken
    one.cancel(job.id)
    assert two.heartbeat(job.id, 1, 60.0).cancel_requested
    one.close()
    two.close()


def test_text_that_no_database_takes(url: str) -> None:
    """Half a character is refused as invalid input."""
    store = SqlStore.open(url)
    with pytest.raises(InvalidInput):
        store.submit(a_job(reason="\ud800"))
    assert store.jobs() == []
    store.close()


def test_memory_store_is_light() -> None:
    """The reference store brings neither NumPy nor SQLAlchemy into the process."""
    said = _output(
        _run(
            """
            import sys, loopline.backends.memory_store
            print(sorted({"numpy", "pandas", "sqlalchemy"} & set(sys.modules)))
            """
        )
    )
    assert said.strip() == "[]"
