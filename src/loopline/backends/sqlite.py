"""Writing the event log's SQLite file: one writer, whose connection alone commits and checkpoints.

Each topic has a table whose row numbers are the positions. Threads that write at once share a
transaction: whoever gets the connection commits what all of them have queued.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from loopline.backends.sqlite_file import (
    CHUNK,
    LogFile,
    Row,
    Rows,
    SqlError,
    connect,
    driver,
    open_readonly,
    rows_of,
    translated,
)
from loopline.errors import LooplineError, Overloaded, Unavailable, WrongState
from loopline.records import Event

__all__ = ["LogFile", "Rows", "SqlError", "SqliteLog", "Work", "driver", "open_readonly", "rows_of"]

logger = logging.getLogger("loopline.log")

FORMAT = 1
"""The number of the file's format, kept as SQLite's user version."""
APPLICATION = 0x4C4C4F47
"""SQLite's application id of our logs: "LLOG"."""
CHECKED = 256 * 2**20
"""A file of more bytes is not checked after an unclean stop: that would take seconds."""

AT_ONCE = 25
"""How many rows one statement inserts: a statement each would cost a third more."""

_MORE = ", (?, ?, ?)" * (AT_ONCE - 1)
_TABLES = (
    "CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE consumer (grp TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE position (grp TEXT, topic TEXT, seq INTEGER NOT NULL,"
    " PRIMARY KEY (grp, topic)) WITHOUT ROWID",
    "CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO state VALUES ('clean', 1)",
    f"PRAGMA application_id={APPLICATION}",
    f"PRAGMA user_version={FORMAT}",
)


class Turn:
    """One write transaction in the making: what actions may do, and events on their way in."""

    def __init__(self, db: Any, topics: Mapping[str, int]) -> None:
        self._db = db
        self._known = topics
        self._rows: Rows = {}
        self.fresh: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.inserted = 0

    def add(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Take in events by topic."""
        for topic, some in rows.items():
            self._rows.setdefault(topic, []).extend(some)

    def flush(self) -> None:
        """Write the events that were taken in."""
        for topic, rows in self._rows.items():
            table = self._table(topic) or self._make(topic)
            before = self._db.total_changes
            insert = f"INSERT OR IGNORE INTO {table}(key, at, value) VALUES (?, ?, ?)"
            many = insert + _MORE
            whole = len(rows) - len(rows) % AT_ONCE
            for start in range(0, whole, AT_ONCE):
                values = tuple(chain.from_iterable(rows[start : start + AT_ONCE]))
                self._db.execute(many, values)
            self._db.executemany(insert, rows[whole:])
            self.inserted += self._db.total_changes - before
            self.ends[topic] = self._end(table)
        self._rows = {}

    def _end(self, table: str) -> int:
        return int(self._db.execute(f"SELECT max(seq) FROM {table}").fetchone()[0] or 0)

    def _table(self, topic: str) -> str | None:
        id = self._known.get(topic) or self.fresh.get(topic)
        return None if id is None else f"t{id}"

    def _make(self, topic: str) -> str:
        id = self._db.execute("INSERT INTO topic(name) VALUES (?)", (topic,)).lastrowid
        self.fresh[topic] = id
        self._db.execute(
            f"CREATE TABLE t{id} (seq INTEGER PRIMARY KEY, key TEXT UNIQUE, at REAL, value BLOB)"
        )
        self._db.execute(f"CREATE INDEX t{id}_at ON t{id}(at)")
        return f"t{id}"

    def open_group(self, group: str) -> tuple[int, dict[str, int]]:
        """Begin a group's next generation; returns its number and the committed positions."""
        self._db.execute(
            "INSERT INTO consumer VALUES (?, 1)"
            " ON CONFLICT(grp) DO UPDATE SET generation = generation + 1",
            (group,),
        )
        rows = self._db.execute("SELECT topic, seq FROM position WHERE grp = ?", (group,))
        return self._generation(group), dict(rows.fetchall())

    def _generation(self, group: str) -> int:
        row = self._db.execute("SELECT generation FROM consumer WHERE grp = ?", (group,)).fetchone()
        return int(row[0]) if row else 0

    def move_group(self, group: str, generation: int, positions: Mapping[str, int]) -> None:
        """Commit a group's positions.

        Raises:
            WrongState: the group has a newer generation.
        """
        if self._generation(group) != generation:
            raise WrongState(f"a newer consumer of {group} has taken over")
        self._db.executemany(
            "INSERT INTO position VALUES (?, ?, ?)"
            " ON CONFLICT(grp, topic) DO UPDATE SET seq = excluded.seq",
            [(group, topic, seq) for topic, seq in positions.items()],
        )

    def trim(self, topic: str, before: float, most: int) -> int:
        """Delete up to `most` events older than a time, and give the file's free space back."""
        gone = self._delete(topic, "at < ? ORDER BY at LIMIT ?", (before, most))
        free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        if gone and free > self._db.execute("PRAGMA page_count").fetchone()[0] // 4:
            self._db.execute("PRAGMA incremental_vacuum(2000)").fetchall()
        return gone

    def erase(self, topic: str, keys: Sequence[str]) -> int:
        """Delete events by key, overwriting what they held."""
        self._db.execute("PRAGMA secure_delete=ON").fetchall()
        gone = 0
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            gone += self._delete(topic, f"key IN ({','.join('?' * len(chunk))})", chunk)
        self._db.execute("PRAGMA secure_delete=FAST").fetchall()
        return gone

    def _delete(self, topic: str, which: str, values: Sequence[Any]) -> int:
        table = self._table(topic)
        if table is None:
            return 0
        last = self._end(table)
        which = f"seq IN (SELECT seq FROM {table} WHERE {which})"
        gone = int(self._db.execute(f"DELETE FROM {table} WHERE {which}", values).rowcount)
        # SQLite numbers on from the largest row there is: an empty one keeps the last number, so
        # that no later event can get a position that consumers have passed.
        if gone and self._end(table) < last:
            self._db.execute(f"INSERT INTO {table}(seq) VALUES (?)", (last,))
        self._db.execute(f"DELETE FROM {table} WHERE key IS NULL AND seq < ?", (last,))
        return gone


class Work(msgspec.Struct):
    """One caller's part of a transaction: an action, and events to append after it.

    Args:
        rows: events by topic; not appended when the action refuses.
        action: does something to the transaction; what it returns becomes `result`, and an error
            of ours that it raises becomes `error`.
        durable: False for events that were only offered.
        size: bytes of the events, where somebody bounds them.
    """

    rows: Rows = {}
    action: Callable[[Turn], Any] | None = None
    durable: bool = True
    size: int = 0
    result: Any = None
    error: LooplineError | None = None
    done: bool = False

    def apply(self, turn: Turn) -> None:
        """Do this part."""
        if self.action is not None:
            turn.flush()
            try:
                self.result = self.action(turn)
            except LooplineError as error:
                self.error = error
                return
        turn.add(self.rows)


class SqliteLog(LogFile):
    """The writer of a log file; make one per file, in one process, or threads share this one.

    Threads that append at once share a transaction. `offer` commits without waiting for the disk
    to sync, so what was offered outlives this process, though perhaps not a power cut.

    Args:
        path: the file; made if it is not there.
        max_buffer: bytes of offered events that may wait while the disk is slow or full.

    Raises:
        WrongState: the file is something else, or was written by a newer release.
        Unavailable: it cannot be opened, or is damaged.
    """

    def __init__(self, path: str | Path, max_buffer: int = 64 * 2**20) -> None:
        super().__init__(path)
        self._max_buffer = max_buffer
        self._lock = threading.Lock()
        self._gate = threading.Lock()
        self._queue: deque[Work] = deque()
        self._waiting = 0
        self._news = threading.Condition()
        self._commits = 0
        self._ends: dict[str, int] = {}
        with translated():
            self._db = _open_writer(self.path)
            for id, name in self._db.execute("SELECT id, name FROM topic").fetchall():
                self._topics[name] = id
                self._ends[name] = self._end(name)
        self._full = True
        self._marked = False

    def together(self, works: Sequence[Work]) -> int:
        """Apply works in one transaction and wait until it is durable.

        Returns:
            How many events were new.

        Raises:
            Unavailable: the disk is full or failing; nothing was applied.
        """
        with self._lock:
            inserted = self._transact(works)
        self._catch_up()
        return inserted

    def _transact(self, works: Sequence[Work]) -> int:
        with translated():
            self._synchronous(any(work.durable for work in works))
            turn = Turn(self._db, self._topics)
            try:
                self._db.execute("BEGIN IMMEDIATE")
                if not self._marked:
                    self._db.execute("UPDATE state SET value = 0 WHERE name = 'clean'")
                for work in works:
                    work.apply(turn)
                turn.flush()
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(SqlError):
                    self._db.rollback()
                raise
        self._marked = True
        self._topics.update(turn.fresh)
        self._ends.update(turn.ends)
        with self._news:
            self._commits += 1
            self._news.notify_all()
        return turn.inserted

    def _synchronous(self, full: bool) -> None:
        if full != self._full:
            self._db.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._full = full

    def _enqueue(self, work: Work) -> None:
        with self._gate:
            if not work.durable and self._waiting + work.size > self._max_buffer:
                raise Overloaded("The log's buffer is full; try again shortly.", retry_after=1.0)
            self._queue.append(work)
            self._waiting += work.size

    def _do(self, work: Work) -> Any:
        self._enqueue(work)
        with self._lock:
            if not work.done:
                self._run()
        self._catch_up()
        if work.error is not None:
            raise work.error
        return work.result

    def _catch_up(self) -> None:
        """Commit what others left in the queue while the connection was taken."""
        going = True
        while going and self._queue and self._lock.acquire(blocking=False):
            try:
                going = self._run()
            finally:
                self._lock.release()

    def _run(self) -> bool:
        """Commit what is queued; after a failure, offers stay queued and appends hear of it."""
        with self._gate:
            works, self._queue, self._waiting = list(self._queue), deque(), 0
        failure: LooplineError | None = Unavailable("The commit was interrupted.")
        try:
            self._transact(works)
            failure = None
        except LooplineError as error:
            failure = error
        finally:
            self._settle(works, failure)
        return failure is None

    def _settle(self, works: list[Work], failure: LooplineError | None) -> None:
        for work in works:
            if work.durable:
                work.error = work.error or failure
                work.done = True
        offers = [work for work in works if not work.durable]
        if failure is not None and offers:
            with self._gate:
                self._queue.extendleft(reversed(offers))
                self._waiting += sum(work.size for work in offers)

    @property
    def buffered(self) -> int:
        return self._waiting

    def append(self, events: Sequence[Event]) -> None:
        if events:
            self._do(Work(rows_of(events)))

    def offer(self, events: Sequence[Event]) -> None:
        if events:
            size = sum(len(event.key) + len(event.value) for event in events)
            self._enqueue(Work(rows_of(events), durable=False, size=size))
            self._catch_up()

    def trim(self, topic: str, before: float, most: int = 1000) -> int:
        return int(self._do(Work(action=lambda turn: turn.trim(topic, before, most))))

    def erase(self, topic: str, keys: Sequence[str]) -> int:
        return int(self._do(Work(action=lambda turn: turn.erase(topic, keys))))

    def open_group(self, group: str) -> tuple[int, dict[str, int]]:
        generation, positions = self._do(Work(action=lambda turn: turn.open_group(group)))
        return generation, positions

    def commit_group(
        self, group: str, generation: int, positions: dict[str, int], outputs: Sequence[Event]
    ) -> None:
        action = lambda turn: turn.move_group(group, generation, positions)  # noqa: E731
        self._do(Work(rows_of(outputs), action))

    def behind(self, topic: str, position: int) -> bool:
        return self._ends.get(topic, 0) > position

    def news(self) -> int:
        return self._commits

    def await_news(self, seen: int, timeout: float) -> None:
        with self._news:
            self._news.wait_for(lambda: self._commits != seen, timeout)

    def close(self) -> None:
        self._catch_up()
        if self._queue:
            logger.error("%s: %d offers could not be written", self.path, len(self._queue))
        # The last to leave empties the write-ahead log, which readers cannot.
        super().close()
        with self._lock:
            # Where the disk is full the mark is missing, and the next to open the file checks it.
            with suppress(SqlError):
                self._db.execute("UPDATE state SET value = 1 WHERE name = 'clean'")
            self._db.close()


def _open_writer(path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"The log's folder cannot be made: {error}") from error
    db = connect(str(path))
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _pragma(db: Any, name: str) -> Any:
    return db.execute(f"PRAGMA {name}").fetchone()[0]


def _prepare(db: Any, path: Path) -> None:
    """Set the connection up. An existing file is not written to: its disk may be full."""
    made = _check_kind(db, path)
    if not made:
        for pragma in ("page_size=4096", "auto_vacuum=INCREMENTAL"):
            db.execute(f"PRAGMA {pragma}")
    if _pragma(db, "journal_mode=WAL") != "wal":
        raise Unavailable(f"The file system of {path} cannot hold a write-ahead log.")
    for pragma in (
        "synchronous=FULL",
        "fullfsync=1",
        "mmap_size=0",
        "journal_size_limit=67108864",
        "secure_delete=FAST",
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    if not made:
        db.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            db.execute(statement)
        db.execute("COMMIT")
    _check_health(db, path)


def _check_kind(db: Any, path: Path) -> bool:
    """Refuse what is not ours; tell whether the tables are there."""
    application = _pragma(db, "application_id")
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and (application or tables):
        raise WrongState(f"{path} is not an event log of Loopline.")
    found = _pragma(db, "user_version")
    if found > FORMAT:
        raise WrongState(
            f"{path} was written by a newer release (format {found}; this release reads up to"
            f" {FORMAT}): upgrade Loopline."
        )
    return bool(application)


def _check_health(db: Any, path: Path) -> None:
    clean = db.execute("SELECT value FROM state WHERE name = 'clean'").fetchone()[0]
    if not clean and path.stat().st_size <= CHECKED:
        logger.info("%s was not closed; checking it", path)
        answer = _pragma(db, "quick_check(1)")
        if answer != "ok":
            raise Unavailable(f"The log {path} is damaged; restore it from a copy. ({answer})")
