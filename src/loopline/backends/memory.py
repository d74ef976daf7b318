"""The reference implementations, in memory: the event log, the doorbell, and the pull deliverer."""

from __future__ import annotations

import heapq
import json
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from loopline.contracts import Batch
from loopline.errors import InvalidInput, WrongState
from loopline.records import Cursor, Event

PARTITIONS = 3
Positions = dict[str, list[int]]

_POSITIONS = msgspec.json.Decoder(dict[str, list[int]])
_AGAIN = 0.05


def _read(cursor: Cursor) -> Positions:
    try:
        return _POSITIONS.decode(cursor.token)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"this cursor is not one of this log: {error}") from error


def _cursor(positions: Positions) -> Cursor:
    return Cursor(token=json.dumps(positions))


def _within(event: Event, since: float | None, until: float | None) -> bool:
    return (since is None or event.at >= since) and (until is None or event.at < until)


class _Topic:
    """A topic's events by partition; what was deleted leaves None behind, so positions stay."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._written = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._partitions: list[list[tuple[int, Event] | None]] = [[] for _ in range(PARTITIONS)]

    def ends(self) -> list[int]:
        return [len(entries) for entries in self._partitions]

    def add(self, event: Event) -> None:
        if event.key in self._places:
            return
        partition = zlib.crc32(event.key.encode()) % PARTITIONS
        ends = self.ends()
        self._places[event.key] = (partition, ends[partition])
        ends[partition] += 1
        kept = msgspec.structs.replace(event, cursor=_cursor({self._name: ends}))
        self._written += 1
        self._partitions[partition].append((self._written, kept))

    def get(self, key: str) -> Event | None:
        place = self._places.get(key)
        entry = self._partitions[place[0]][place[1]] if place else None
        return entry[1] if entry else None

    def drop(self, key: str) -> bool:
        place = self._places.pop(key, None)
        if place:
            self._partitions[place[0]][place[1]] = None
        return place is not None

    def events(self) -> list[Event]:
        """All events in the order they were committed."""
        lists = [[entry for entry in entries if entry] for entries in self._partitions]
        return [event for _, event in heapq.merge(*lists, key=lambda entry: entry[0])]

    def since(self, at: float) -> list[int]:
        """The positions just before the first event of each partition at or after a time."""
        return [
            next((n for n, e in enumerate(entries) if e and e[1].at >= at), len(entries))
            for entries in self._partitions
        ]

    def read(self, position: list[int], most: int, first: int) -> list[Event]:
        """Events behind `position`, which moves along, one partition after the other."""
        found: list[Event] = []
        for partition in (*range(first, PARTITIONS), *range(first)):
            for entry in self._partitions[partition][position[partition] :]:
                if len(found) == most:
                    break
                position[partition] += 1
                if entry:
                    cursor = _cursor({self._name: list(position)})
                    found.append(msgspec.structs.replace(entry[1], cursor=cursor))
        return found


class MemoryLog:
    """An event log that ends with its process. Each topic has three partitions, by key.

    That there are three keeps everybody from relying on an order that only some logs have.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._topics: dict[str, _Topic] = {}
        self._generations: dict[str, int] = {}
        self._committed: dict[str, Positions] = {}

    def _topic(self, name: str) -> _Topic:
        return self._topics.setdefault(name, _Topic(name))

    @property
    def buffered(self) -> int:
        return 0

    def append(self, events: Sequence[Event]) -> None:
        try:
            "".join(event.topic + event.key for event in events).encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"a key cannot be kept in the log: {error}") from error
        if not math.isfinite(sum(event.at for event in events)):
            raise InvalidInput("an event needs a finite time")
        with self._changed:
            for event in events:
                self._topic(event.topic).add(event)
            self._changed.notify_all()

    def offer(self, events: Sequence[Event]) -> None:
        self.append(events)

    def consumer(self, group: str, topics: Sequence[str]) -> MemoryConsumer:
        with self._changed:
            self._generations[group] = self._generations.get(group, 0) + 1
            return MemoryConsumer(self, group, self._generations[group], topics)

    def committed(self, group: str) -> Positions:
        """The committed positions of a group, by topic."""
        return self._committed.get(group, {})

    def commit(
        self, group: str, generation: int, positions: Positions, outputs: Sequence[Event]
    ) -> None:
        """Move a group's positions and append outputs, if the generation is the newest.

        Raises:
            WrongState: it is not; nothing was written.
        """
        with self._changed:
            if self._generations[group] != generation:
                raise WrongState(f"a newer consumer of {group} has taken over")
            self._committed[group] = self.committed(group) | positions
            self.append(outputs)

    def read(self, positions: Positions, most: int, first: int, wait: float) -> list[Event]:
        """Read up to `most` events behind `positions`, which move along.

        Args:
            positions: three numbers per topic.
            most: the largest number of events.
            first: the partition to begin with.
            wait: seconds to wait for the first event.
        """
        found: list[Event] = []

        def look() -> bool:
            for name, position in positions.items():
                found.extend(self._topic(name).read(position, most - len(found), first))
            return bool(found)

        with self._changed:
            self._changed.wait_for(look, wait)
        return found

    def start_at(self, topics: Sequence[str], at: float) -> Positions:
        """The positions just before the first events at or after a time."""
        with self._changed:
            return {name: self._topic(name).since(at) for name in topics}

    def end_positions(self, topics: Sequence[str]) -> Cursor:
        with self._changed:
            return _cursor({name: self._topic(name).ends() for name in topics})

    def find(self, topic: str, keys: Sequence[str]) -> dict[str, Event]:
        with self._changed:
            found = {key: self._topic(topic).get(key) for key in keys}
        return {key: event for key, event in found.items() if event}

    def _window(self, topic: str, since: float | None, until: float | None) -> list[Event]:
        with self._changed:
            events = self._topic(topic).events()
        return [event for event in events if _within(event, since, until)]

    def scan(
        self, topic: str, since: float | None = None, until: float | None = None
    ) -> Iterator[Event]:
        yield from self._window(topic, since, until)

    def count(self, topic: str, since: float | None = None, until: float | None = None) -> int:
        return len(self._window(topic, since, until))

    def trim(self, topic: str, before: float, most: int = 1000) -> int:
        with self._changed:
            old = sorted(self._window(topic, None, before), key=lambda event: event.at)
            return self.erase(topic, [event.key for event in old[:most]])

    def erase(self, topic: str, keys: Sequence[str]) -> int:
        with self._changed:
            return sum(self._topic(topic).drop(key) for key in keys)

    def close(self) -> None:
        pass


class MemoryConsumer:
    """One reader of some topics of a log in memory."""

    def __init__(self, log: MemoryLog, group: str, generation: int, topics: Sequence[str]) -> None:
        self._log = log
        self._group = group
        self._generation = generation
        self._turn = 0
        self._positions: Positions = {name: [0] * PARTITIONS for name in topics}
        self._go_to(log.committed(group))

    def _go_to(self, known: Positions) -> None:
        self._positions = {name: list(known.get(name, [0] * 3)) for name in self._positions}

    def poll(self, most: int = 500, wait: float = 0.0) -> Batch:
        names = list(self._positions)
        # Begin elsewhere each time, so that neither a topic nor a partition can starve another.
        turn = self._turn % len(names) if names else 0
        positions = {name: self._positions[name] for name in names[turn:] + names[:turn]}
        events = self._log.read(positions, most, self._turn % PARTITIONS, wait)
        self._turn += 1
        return Batch(events=tuple(events), position=_cursor(self._positions))

    def commit(self, batch: Batch, outputs: Sequence[Event] = ()) -> None:
        self._log.commit(self._group, self._generation, _read(batch.position), outputs)

    def seek(self, position: Cursor | float | None) -> None:
        if isinstance(position, Cursor):
            self._go_to(_read(position))
        elif position is None:
            self._go_to({})
        else:
            self._positions = self._log.start_at(list(self._positions), float(position))

    def close(self) -> None:
        pass


class MemoryDoorbell:
    """Wakes the threads of this process; looks again now and then for what others changed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0

    def ring(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, timeout: float, until: Callable[[], bool] | None = None) -> bool:
        deadline = time.monotonic() + timeout
        first = self._rings
        while True:
            seen = self._rings
            if until() if until else seen != first:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._sleep(seen, min(left, _AGAIN) if until else left)

    def _sleep(self, seen: int, timeout: float) -> None:
        """Return at the first ring after the one numbered `seen`, or when the time is up."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings != seen, timeout)
