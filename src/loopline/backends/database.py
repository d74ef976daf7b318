"""The SQL database under the store: opening, migrating, transactions, and errors at its edge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    Executable,
    Row,
    Select,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from loopline.backends.tables import meta
from loopline.errors import InvalidInput, LooplineError, MissingExtra, Unavailable, WrongState

FORMAT = "0001"
"""The newest migration this release knows; the number of the store's format."""

APPLICATION = 0x4C4F4F50
"""SQLite's application id of our files: "LOOP"."""

CHUNK = 500
"""How many values one IN list holds at most."""

_VERSION_TABLE = "loopline_alembic"
_LOCK = 0x4C4F4F50
_PATIENCE = 10.0

_EDGE: tuple[tuple[str, type[LooplineError], str], ...] = (
    ("disk is full", Unavailable, "The store's disk is full; free some space and try again."),
    ("no space left", Unavailable, "The store's disk is full; free some space and try again."),
    ("locked", Unavailable, "The store is busy; try again shortly."),
    ("unable to open", Unavailable, "The store's file cannot be opened."),
    ("readonly", Unavailable, "The store's file or disk is read-only."),
    ("disk i/o", Unavailable, "The store's disk reports an error."),
    ("malformed", Unavailable, "The store's file is damaged; restore it from a copy."),
    ("not a database", WrongState, "The file is not a SQLite database."),
    ("nul (0x00)", InvalidInput, "A text with a NUL character cannot be stored."),
    ("constraint", WrongState, "The store already holds something else under this name."),
)


def open_engine(where: str | URL | Engine) -> Engine:
    """Connect to a store's database and bring its tables up to date.

    Args:
        where: `sqlite:///path`, `sqlite://` (in memory), a `postgresql://` URL, or an engine made
            here before. Several processes may open the same new database at once.

    Raises:
        InvalidInput: the URL cannot be understood.
        MissingExtra: the database's driver is not installed.
        WrongState: the database belongs to something else, or to a newer release.
        Unavailable: it cannot be reached.
    """
    engine = where if isinstance(where, Engine) else _connect(where)
    try:
        with translated():
            if engine.dialect.name == "sqlite":
                _check_application(engine)
                _set_journal(engine)
            _migrate(engine)
    except LooplineError:
        engine.dispose()
        raise
    return engine


def _connect(where: str | URL) -> Engine:
    try:
        url = make_url(where)
        if url.get_backend_name() == "sqlite":
            return _sqlite(url)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
            return create_engine(url, pool_pre_ping=True, pool_size=8, max_overflow=24)
    except ArgumentError as error:
        raise InvalidInput(f"the store's URL cannot be understood: {error}") from error
    except ImportError as error:
        raise MissingExtra(
            "PostgreSQL needs an optional dependency: pip install 'loopline[postgres]'"
        ) from error
    raise InvalidInput(f"a store is sqlite: or postgresql:, not {url.get_backend_name()}:")


def sqlite_module() -> Any:
    """The SQLite driver, the same for the log and the store of a process."""
    from loopline.backends.sqlite import driver

    return driver


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Tell whether this SQLite may keep a write-ahead log that several processes write."""
    # Before these releases a commit that races another process's checkpoint can corrupt the log.
    branches = {(3, 44): 6, (3, 50): 7, (3, 51): 3}
    patch = branches.get(version[:2])
    return version >= (3, 52, 0) or (patch is not None and version[2] >= patch)


def _sqlite(url: URL) -> Engine:
    in_memory = url.database in (None, "", ":memory:")
    if not in_memory:
        try:
            Path(str(url.database)).expanduser().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"The store's folder cannot be made: {error}") from error
    # The database in memory lives and dies with its one connection, which callers take in turn.
    engine = create_engine(
        url,
        module=sqlite_module(),
        poolclass=QueuePool,
        pool_size=1 if in_memory else 8,
        max_overflow=0 if in_memory else 24,
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, record: object) -> None:
    connection.isolation_level = None  # The driver must not begin transactions of its own.
    for pragma in ("busy_timeout=5000", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("loopline_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def _bare(engine: Engine) -> Iterator[Any]:
    """A driver connection outside of any transaction, for the pragmas that need that."""
    try:
        connection = engine.raw_connection()
        try:
            yield connection
        finally:
            connection.close()
    except engine.dialect.loaded_dbapi.Error as error:
        raise OperationalError("PRAGMA", None, error) from error


def _pragma(connection: Any, name: str) -> Any:
    return connection.cursor().execute(f"PRAGMA {name}").fetchone()[0]


def _check_application(engine: Engine) -> None:
    with _bare(engine) as connection:
        application = _pragma(connection, "application_id")
        if application == APPLICATION:
            return
        count = "SELECT count(*) FROM sqlite_master"
        if application or connection.cursor().execute(count).fetchone()[0]:
            # Another process may be making this very file, so look again at the finished one.
            if _pragma(connection, "application_id") != APPLICATION:
                raise WrongState(f"{engine.url.database} is not a store of Loopline.")


def _set_journal(engine: Engine) -> None:
    with _bare(engine) as connection:
        version = engine.dialect.loaded_dbapi.sqlite_version_info
        wanted = "wal" if wal_is_safe(version) else "delete"
        deadline = time.monotonic() + _PATIENCE
        while _pragma(connection, "journal_mode") not in (wanted, "memory"):
            try:
                _pragma(connection, f"journal_mode={wanted}")
                return  # On file systems that have no WAL the answer is another mode: keep that.
            except engine.dialect.loaded_dbapi.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        if _format(connection) == FORMAT:
            return
    with engine.execution_options(loopline_write=True).begin() as connection:
        lock(connection)
        if _format(connection) != FORMAT:
            _upgrade(connection)


def _format(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    found = connection.scalar(text(f"SELECT version_num FROM {_VERSION_TABLE}"))
    if found is not None and str(found) > FORMAT:
        raise WrongState(
            f"The store was written by a newer release (format {found}; this release reads up to "
            f"{FORMAT}): upgrade Loopline."
        )
    return None if found is None else str(found)


def _upgrade(connection: Connection) -> None:
    # Alembic costs a fifth of a second to import, which only a first start should pay.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("path_separator", "os")
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _VERSION_TABLE
    command.upgrade(config, FORMAT)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION}")


@contextmanager
def translated() -> Iterator[None]:
    """Turn the database's errors into ours, by one table."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("The store has too many callers at once; try again shortly.") from error
    except StatementError as error:
        raise _translation(error) from error
    except (UnicodeEncodeError, OverflowError) as error:
        raise InvalidInput(f"this cannot be kept in the store: {error}") from error


def _translation(error: StatementError) -> LooplineError:
    if isinstance(error.orig, LooplineError):
        return error.orig
    said = str(error.orig)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Unavailable(f"The store's database is away: {said}")
    for words, kind, sentence in _EDGE:
        if words in said.lower():
            return kind(f"{sentence} ({said})")
    return Unavailable(f"The store's database refused: {said}")


def lock(connection: Connection) -> None:
    """Wait until this transaction is the store's only writer, until it ends."""
    # SQLite has done so in BEGIN IMMEDIATE. One writer at a time is all that the invariants need,
    # and it lets both databases run the same statements without a second look at each of them.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def insertion(dialect: Dialect, table: Table, keep: bool = False) -> Any:
    """An INSERT of all columns that replaces the row with the same primary key, or keeps it."""
    statement = import_module(f"sqlalchemy.dialects.{dialect.name}").insert(table)
    key = [column.name for column in table.primary_key]
    others = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in key}
    if keep:
        return statement.on_conflict_do_nothing(index_elements=key)
    return statement.on_conflict_do_update(index_elements=key, set_=others)


@cache
def _compiled(dialect: Dialect, table: Table, keep: bool) -> tuple[str, Sequence[str] | None]:
    """The text of an INSERT, and the order of its values where they have no names."""
    compiled = insertion(dialect, table, keep).compile(dialect=dialect)
    return str(compiled), compiled.positiontup


def put(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keep: bool = False
) -> None:
    """Insert rows by primary key: replacing those that are there, or keeping them."""
    if rows:
        connection.execute(insertion(connection.dialect, table, keep), rows)


def put_plain(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keep: bool = False
) -> None:
    """As `put`, for many rows of texts, numbers and bytes that need no conversion."""
    # SQLAlchemy's own executemany converts value by value, which is half the cost of a batch.
    if rows:
        statement, order = _compiled(connection.dialect, table, keep)
        values = [tuple(map(row.__getitem__, order)) for row in rows] if order else list(rows)
        connection.exec_driver_sql(statement, values)


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut a sequence into pieces that fit one IN list."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


class Database:
    """An open database with short read transactions and one writer at a time.

    Args:
        where: a URL or an engine, as for `open_engine`.
        clock: seconds since the epoch; default: this machine's for SQLite, the server's for
            PostgreSQL.
    """

    def __init__(
        self, where: str | URL | Engine, *, clock: Callable[[], float] | None = None
    ) -> None:
        self._engine = open_engine(where)
        self._writer = self._engine.execution_options(loopline_write=True)
        alone = self._engine.dialect.name == "sqlite"
        self._turn = threading.Lock() if alone else nullcontext()
        self._clock = clock or (time.time if alone else None)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with translated(), self._turn, self._writer.begin() as connection:
            lock(connection)
            yield connection

    def _rows(self, query: Executable) -> Sequence[Row[Any]]:
        with self._read() as connection:
            return connection.execute(query).all()

    def _any(self, query: Select[Any]) -> bool:
        """Tell whether a query finds something, without taking the writer's turn."""
        with self._read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def _now(self, connection: Connection) -> float:
        if self._clock is not None:
            return self._clock()
        moment = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")
        return float(connection.scalar(moment) or 0.0)

    def _bump(self, connection: Connection) -> int:
        """Move the revision on, in the transaction of the change it stands for."""
        row = meta.c.name == "revision"
        connection.execute(update(meta).where(row).values(value=meta.c.value + 1))
        return int(connection.scalar(select(meta.c.value).where(row)) or 0)

    def now(self) -> float:
        if self._clock is not None:
            return self._clock()
        with self._read() as connection:
            return self._now(connection)

    def revision(self) -> int:
        with self._read() as connection:
            row = meta.c.name == "revision"
            return int(connection.scalar(select(meta.c.value).where(row)) or 0)

    def close(self) -> None:
        self._engine.dispose()
