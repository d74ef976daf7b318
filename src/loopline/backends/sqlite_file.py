"""Reading the event log's SQLite file, from any process: lookups, scans and consumers.

Everybody reads through read-only connections with short statements, because a reader that stays
in a transaction keeps the write-ahead log from being emptied.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from loopline.contracts import Batch
from loopline.errors import InvalidInput, Unavailable, WrongState
from loopline.records import Cursor, Event

try:
    from pysqlite3 import dbapi2 as sqlite3
except ImportError:
    import sqlite3

driver: Any = sqlite3
"""The SQLite driver: one per process, as two libraries would break each other's file locks."""
SqlError: type[Exception] = driver.Error
Row = tuple[str, float, bytes]
"""An event within its topic: key, time, value."""
Rows = dict[str, list[Row]]
"""Events by topic, in their order."""
PAGE = 1000
"""How many events one statement of a scan reads at most."""
CHUNK = 500
"""How many keys one statement names at most."""

_IDLE = 4
_POSITIONS = msgspec.json.Decoder(dict[str, int])
_EDGE = (
    ("full", Unavailable, "The log's disk is full; free some space and try again."),
    ("locked", Unavailable, "The log is busy; try again shortly."),
    ("disk i/o", Unavailable, "The log's disk reports an error or is full."),
    ("malformed", Unavailable, "The log's file is damaged; restore it from a copy."),
    ("not a database", WrongState, "The log's file is not a SQLite database."),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLite's errors into ours, by one table."""
    try:
        yield
    except SqlError as error:
        said = str(error)
        for words, kind, sentence in _EDGE:
            if words in said.lower():
                raise kind(f"{sentence} ({said})") from error
        raise Unavailable(f"The log's file cannot be used: {said}") from error


def connect(where: str, uri: bool = False) -> Any:
    """Connect to a file; transactions begin and end only by statements."""
    return driver.connect(
        where, uri=uri, timeout=5.0, isolation_level=None, check_same_thread=False
    )


def open_readonly(path: Path) -> Any:
    """Connect to a file that another connection writes; None where there is no such file."""
    return connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) if path.exists() else None


def rows_of(events: Sequence[Event]) -> Rows:
    """Sort events by topic, as rows in their order.

    Raises:
        InvalidInput: a text is not valid Unicode, or a time is not a number.
    """
    rows: Rows = {}
    topic, total = None, 0.0
    for event in events:
        if event.topic != topic:
            topic = event.topic
            add = rows.setdefault(topic, []).append
        add((event.key, event.at, event.value))
        total += event.at
    try:
        "".join([*rows, *[event.key for event in events]]).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a key cannot be kept in the log: {error}") from error
    if not math.isfinite(total):
        raise InvalidInput("an event needs a finite time")
    return rows


def read_positions(cursor: Cursor) -> dict[str, int]:
    """The positions by topic that a cursor of this log stands for.

    Raises:
        InvalidInput: another log made it.
    """
    try:
        return _POSITIONS.decode(cursor.token)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"this cursor is not one of this log: {error}") from error


def _cursor(positions: Mapping[str, int]) -> Cursor:
    return Cursor(token=json.dumps(positions))


def _events(topic: str, rows: Iterable[Any]) -> Iterator[Event]:
    start = f"{{{json.dumps(topic)}: "
    for seq, key, at, value in rows:
        yield Event(
            topic=topic, key=key, at=at, value=value, cursor=Cursor(token=f"{start}{seq}}}")
        )


def _window(since: float | None, until: float | None) -> tuple[str, tuple[float, ...]]:
    bounds = [("at >= ?", since), ("at < ?", until)]
    parts = [text for text, bound in bounds if bound is not None]
    values = tuple(bound for _, bound in bounds if bound is not None)
    return " AND ".join(parts) or "at IS NOT NULL", values


class LogFile:
    """The reading half of the log, for any process; a file that is not there yet is empty.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._topics: dict[str, int] = {}
        self._idle: list[Any] = []

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        with translated():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = open_readonly(self.path)
            try:
                yield connection
            finally:
                if connection is not None and len(self._idle) < _IDLE:
                    self._idle.append(connection)
                elif connection is not None:
                    connection.close()

    def _rows(self, topic: str, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one statement over the table of a topic; nothing where there is no such topic."""
        with self._connection() as connection:
            if connection is None:
                return []
            try:
                if topic not in self._topics:
                    named = connection.execute("SELECT id, name FROM topic").fetchall()
                    self._topics.update((name, id) for id, name in named)
                if topic not in self._topics:
                    return []
                text = statement.format(table=f"t{self._topics[topic]}")
                return list(connection.execute(text, values).fetchall())
            except driver.OperationalError as error:
                # The writer makes all tables in its first transaction, which may be yet to come.
                if "no such table" in str(error):
                    return []
                raise

    def page(self, topic: str, after: int, most: int) -> list[Any]:
        """Up to `most` rows (position, key, time, value) behind the position `after`."""
        statement = (
            "SELECT seq, key, at, value FROM {table}"
            " WHERE seq > ? AND key IS NOT NULL ORDER BY seq LIMIT ?"
        )
        return self._rows(topic, statement, (after, most))

    def first_since(self, topic: str, at: float) -> int:
        """The position just before the first event at or after a time; the end if there is none."""
        # The plus keeps SQLite from walking the table for the least position instead of the index.
        ((seq,),) = self._rows(topic, "SELECT min(+seq) FROM {table} WHERE at >= ?", (at,)) or [
            (None,)
        ]
        return self._end(topic) if seq is None else int(seq) - 1

    def _end(self, topic: str) -> int:
        rows = self._rows(topic, "SELECT max(seq) FROM {table}")
        return int(rows[0][0] or 0) if rows else 0

    def behind(self, topic: str, position: int) -> bool:
        """Whether there may be events behind a position; a cheap look before a real one."""
        return True

    def news(self) -> int:
        """A number that grows with every commit known of."""
        return 0

    def await_news(self, seen: int, timeout: float) -> None:
        """Wait for a commit after the one numbered `seen`, but no longer than the timeout."""
        time.sleep(min(0.005, timeout))

    def open_group(self, group: str) -> tuple[int, dict[str, int]]:
        """Make a new generation of a group's consumer; also returns its committed positions."""
        raise NotImplementedError

    def commit_group(
        self, group: str, generation: int, positions: dict[str, int], outputs: Sequence[Event]
    ) -> None:
        """Move a group's positions and append outputs, if the generation is the newest."""
        raise NotImplementedError

    def consumer(self, group: str, topics: Sequence[str]) -> FileConsumer:
        return FileConsumer(self, group, topics)

    def end_positions(self, topics: Sequence[str]) -> Cursor:
        return _cursor({topic: self._end(topic) for topic in topics})

    def find(self, topic: str, keys: Sequence[str]) -> dict[str, Event]:
        found: dict[str, Event] = {}
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            marks = ",".join("?" * len(chunk))
            statement = f"SELECT seq, key, at, value FROM {{table}} WHERE key IN ({marks})"
            rows = self._rows(topic, statement, chunk)
            found.update((event.key, event) for event in _events(topic, rows))
        return found

    def scan(
        self, topic: str, since: float | None = None, until: float | None = None
    ) -> Iterator[Event]:
        window, values = _window(since, until)
        # SQLite finds one extreme by a look, but two of them in one query by reading everything.
        ends = "(SELECT min(seq) FROM {table}), (SELECT max(seq) FROM {table})"
        if values:
            ends = f"min(seq), max(seq) FROM {{table}} WHERE {window}"
        ((first, last),) = self._rows(topic, f"SELECT {ends}", values) or [(None, None)]
        if first is None:
            return
        position = first - 1
        # The plus keeps SQLite from sorting by time first: the pages go along the positions.
        statement = (
            "SELECT seq, key, at, value FROM {table} WHERE seq > ? AND seq <= ?"
            f" AND {window.replace('at', '+at')} ORDER BY seq LIMIT {PAGE}"
        )
        while rows := self._rows(topic, statement, (position, last, *values)):
            yield from _events(topic, rows)
            position = rows[-1][0]

    def count(self, topic: str, since: float | None = None, until: float | None = None) -> int:
        window, values = _window(since, until)
        rows = self._rows(topic, f"SELECT count(*) FROM {{table}} WHERE {window}", values)
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class FileConsumer:
    """One reader of some topics; merges them by time, keeping the order within each topic."""

    def __init__(self, file: LogFile, group: str, topics: Sequence[str]) -> None:
        self._file = file
        self._group = group
        self._generation, committed = file.open_group(group)
        self._closed = False
        self._go_to({topic: committed.get(topic, 0) for topic in topics})

    def _go_to(self, positions: dict[str, int]) -> None:
        self._positions = positions
        self._cursor = _cursor(positions)

    def poll(self, most: int = 500, wait: float = 0.0) -> Batch:
        deadline = time.monotonic() + wait
        while True:
            seen = self._file.news()
            events = self._read(most)
            left = deadline - time.monotonic()
            if events or left <= 0 or self._closed:
                return Batch(events=tuple(events), position=self._cursor)
            self._file.await_news(seen, left)

    def _read(self, most: int) -> list[Event]:
        pages = {
            topic: self._file.page(topic, position, most)
            for topic, position in self._positions.items()
            if self._file.behind(topic, position)
        }
        events: list[Event] = []
        positions = dict(self._positions)
        for topic, row in _merged(pages, most):
            events.extend(_events(topic, (row,)))
            positions[topic] = row[0]
        if events:
            self._go_to(positions)
        return events

    def commit(self, batch: Batch, outputs: Sequence[Event] = ()) -> None:
        positions = read_positions(batch.position)
        self._file.commit_group(self._group, self._generation, positions, outputs)

    def seek(self, position: Cursor | float | None) -> None:
        if isinstance(position, Cursor):
            known = read_positions(position)
            self._go_to({topic: known.get(topic, 0) for topic in self._positions})
        elif position is None:
            self._go_to(dict.fromkeys(self._positions, 0))
        else:
            at = float(position)
            self._go_to({t: self._file.first_since(t, at) for t in self._positions})

    def close(self) -> None:
        self._closed = True


def _merged(pages: Mapping[str, list[Any]], most: int) -> Iterator[tuple[str, Any]]:
    """Merge pages by time, never changing the order within one of them."""

    def timed(topic: str, rows: list[Any]) -> Iterator[tuple[float, str, Any]]:
        latest = -math.inf
        for row in rows:
            latest = max(latest, row[2])
            yield latest, topic, row

    streams = [timed(topic, rows) for topic, rows in pages.items()]
    merged = heapq.merge(*streams, key=lambda item: item[0])
    return ((topic, row) for _, topic, row in islice(merged, most))
