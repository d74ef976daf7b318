"""The contract suites of an event log: subclass `LogSuite` and override its `log` fixture.

A log that outlives its process subclasses `DurableLogSuite` instead, with a `reopen` fixture.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import pytest

from loopline.contracts import Consumer, EventLog
from loopline.errors import InvalidInput, WrongState
from loopline.records import Cursor, Event


def make(topic: str, keys: Sequence[object], at: float = 1.0, value: bytes = b"v") -> list[Event]:
    """Make events with these keys; each is a second later than the one before."""
    return [
        Event(topic=topic, key=str(key), at=at + step, value=value) for step, key in enumerate(keys)
    ]


def keys(events: Sequence[Event]) -> list[str]:
    """The keys of some events, in their order."""
    return [event.key for event in events]


def drain(consumer: Consumer, most: int = 500) -> list[Event]:
    """Poll until nothing is left."""
    found: list[Event] = []
    while events := consumer.poll(most).events:
        found.extend(events)
    return found


class LogSuite:
    """What holds for every `contracts.EventLog`."""

    one_partition = True
    """Whether a topic has a single partition, so that all its events have one order."""

    @pytest.fixture
    def log(self) -> Iterator[EventLog]:
        """An empty log; to be overridden."""
        raise NotImplementedError

    def same(self, found: Sequence[Event], expected: Sequence[object]) -> bool:
        """Whether events have these keys: in this order, where there is one partition."""
        wanted = [str(key) for key in expected]
        return (
            keys(found) == wanted if self.one_partition else sorted(keys(found)) == sorted(wanted)
        )

    def test_append_and_find(self, log: EventLog) -> None:
        """An event comes back by its key, as it was, with the position behind it."""
        log.append([Event(topic="m.a", key="k", at=12.5, value=b"\x00\xff")])
        found = log.find("m.a", ["k", "other"])
        assert list(found) == ["k"]
        event = found["k"]
        assert (event.topic, event.key, event.at, event.value) == ("m.a", "k", 12.5, b"\x00\xff")
        assert event.cursor is not None

    def test_the_first_event_with_a_key_stays(self, log: EventLog) -> None:
        """Later ones are dropped silently, in the same call and in another, per topic."""
        log.append([*make("m.a", ["k", "l"], value=b"1"), *make("m.a", ["k"], value=b"2")])
        log.append([*make("m.a", ["l", "n"], value=b"3"), *make("m.b", ["k"], value=b"4")])
        log.offer(make("m.a", ["k"], value=b"5"))
        log.append(make("m.a", ["last"]))
        found = log.find("m.a", ["k", "l", "n"])
        assert [found[key].value for key in "kln"] == [b"1", b"1", b"3"]
        assert log.find("m.b", ["k"])["k"].value == b"4"
        assert log.count("m.a") == 4

    def test_nothing_is_appended_of_a_bad_call(self, log: EventLog) -> None:
        """All of the events, or none."""
        for bad in (make("m.a", ["x", "\ud800"]), make("m.a", ["y", "z"], at=float("nan"))):
            with pytest.raises(InvalidInput):
                log.append(bad)
            with pytest.raises(InvalidInput):
                log.offer(bad)
        log.append(make("m.a", ["good"]))
        assert keys(list(log.scan("m.a"))) == ["good"]

    def test_empty_calls(self, log: EventLog) -> None:
        """Nothing to append is nothing to do."""
        log.append([])
        log.offer([])
        assert log.count("m.a") == 0 and log.find("m.a", []) == {}

    def test_topics_appear_on_first_use(self, log: EventLog) -> None:
        """A topic that nobody has written to is empty."""
        assert log.find("m.none", ["k"]) == {} and list(log.scan("m.none")) == []
        assert log.count("m.none") == log.trim("m.none", 1e9) == log.erase("m.none", ["k"]) == 0
        consumer = log.consumer("g", ["m.none"])
        start = log.end_positions(["m.none"])
        assert consumer.poll().events == ()
        log.append(make("m.none", ["k"]))
        assert keys(consumer.poll().events) == ["k"]
        consumer.seek(start)
        assert keys(consumer.poll().events) == ["k"]

    @pytest.mark.parametrize(
        "key", ["ключ", "鍵" * 200, "a'b\"c", "with\nline", "🙂", " ", "nul\0nul", "%s{0}"]
    )
    def test_any_text_is_a_key(self, log: EventLog, key: str) -> None:
        """Keys come back letter by letter; topics may hold any of them too."""
        topic = f"m.{key}"
        log.append(make(topic, [key, "other"]))
        assert list(log.find(topic, [key])) == [key]
        assert self.same(list(log.scan(topic)), [key, "other"])
        assert self.same(drain(log.consumer("g", [topic])), [key, "other"])
        assert log.erase(topic, [key]) == 1 and log.count(topic) == 1

    def test_any_bytes_are_a_value(self, log: EventLog) -> None:
        """Values of no bytes and of many come back whole."""
        values = [b"", bytes(range(256)), b"x" * 3_000_000]
        for number, value in enumerate(values):
            log.append(make("m.a", [number], value=value))
        found = log.find("m.a", ["0", "1", "2"])
        assert [found[key].value for key in "012"] == values

    def test_find_many(self, log: EventLog) -> None:
        """Thousands of keys can be looked up at once."""
        log.append(make("m.a", range(2500)))
        found = log.find("m.a", [str(number) for number in range(3000)])
        assert len(found) == 2500 and found["2499"].key == "2499"

    def test_offers_come_before_later_appends(self, log: EventLog) -> None:
        """When an append has returned, everything offered before it is there, and before it."""
        for turn in range(50):
            log.offer(make("m.a", [f"o{turn}"], at=turn))
            log.append(make("m.a", [f"a{turn}"], at=turn))
            assert log.find("m.a", [f"o{turn}", f"a{turn}"]).keys() == {f"o{turn}", f"a{turn}"}
        expected = [f"{letter}{turn}" for turn in range(50) for letter in "oa"]
        assert self.same(list(log.scan("m.a")), expected)

    def test_many_threads_append(self, log: EventLog) -> None:
        """Threads that append at once all succeed; each thread's events keep their order."""

        def work(name: int) -> None:
            for number in range(20):
                log.append(make("m.a", [f"{name}-{number}a", f"{name}-{number}b"]))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = keys(list(log.scan("m.a")))
        assert len(found) == len(set(found)) == 320
        own = [key for key in found if key.startswith("3-")]
        expected = [f"3-{number}{letter}" for number in range(20) for letter in "ab"]
        assert own == expected if self.one_partition else sorted(own) == sorted(expected)

    # Consumers.

    def test_poll_reads_on(self, log: EventLog) -> None:
        """Every event is polled once, in batches of at most so many."""
        log.append(make("m.a", range(25)))
        consumer = log.consumer("g", ["m.a"])
        batches = [consumer.poll(10).events for _ in range(4)]
        assert [len(events) for events in batches] == [10, 10, 5, 0]
        assert self.same([event for events in batches for event in events], range(25))
        log.append(make("m.a", ["new"]))
        assert keys(consumer.poll().events) == ["new"]

    def test_only_commit_moves_the_committed_position(self, log: EventLog) -> None:
        """A new consumer of the group starts where the last commit was."""
        log.append(make("m.a", range(30)))
        first = log.consumer("g", ["m.a"])
        done = first.poll(10)
        first.commit(done)
        first.poll(10)
        first.seek(None)
        first.close()
        rest = drain(log.consumer("g", ["m.a"]))
        assert len(rest) == 20
        assert self.same([*done.events, *rest], range(30))

    def test_groups_are_apart(self, log: EventLog) -> None:
        """Each group has its own position."""
        log.append(make("m.a", range(5)))
        one, other = log.consumer("one", ["m.a"]), log.consumer("other", ["m.a"])
        one.commit(one.poll())
        assert len(other.poll().events) == 5
        assert log.consumer("one", ["m.a"]).poll().events == ()

    def test_an_older_consumer_is_fenced_off(self, log: EventLog) -> None:
        """Its commit is refused, and neither position nor outputs are written."""
        log.append(make("m.a", range(5)))
        old = log.consumer("g", ["m.a"])
        batch = old.poll()
        new = log.consumer("g", ["m.a"])
        with pytest.raises(WrongState):
            old.commit(batch, make("m.out", ["lost"]))
        assert log.find("m.out", ["lost"]) == {}
        mine = new.poll()
        assert len(mine.events) == 5
        new.commit(mine, make("m.out", ["kept"]))
        assert list(log.find("m.out", ["kept"])) == ["kept"]

    def test_outputs_are_written_with_the_position(self, log: EventLog) -> None:
        """A commit appends its outputs, each key once, however often a batch is done again."""
        log.append(make("m.a", range(6)))
        consumer = log.consumer("g", ["m.a"])
        for _ in range(2):
            consumer.seek(None)
            batch = consumer.poll()
            consumer.commit(batch, make("m.out", sorted(keys(batch.events))))
        assert self.same(list(log.scan("m.out")), range(6))
        assert log.consumer("g", ["m.a"]).poll().events == ()
        assert len(log.consumer("reader", ["m.out"]).poll().events) == 6

    def test_several_topics(self, log: EventLog) -> None:
        """A consumer of two topics gets all of both, and neither waits for ever."""
        log.append(make("m.a", range(300)))
        log.append(make("m.b", [f"b{number}" for number in range(10)], at=2.5))
        consumer = log.consumer("g", ["m.a", "m.b"])
        early = [event for _ in range(4) for event in consumer.poll(50).events]
        assert {event.topic for event in early} == {"m.a", "m.b"}
        found = early + drain(consumer)
        assert self.same([event for event in found if event.topic == "m.a"], range(300))
        assert len(found) == 310

    def test_poll_waits_for_the_first_event(self, log: EventLog) -> None:
        """A waiting poll returns what another thread appends."""
        consumer = log.consumer("g", ["m.a"])
        assert consumer.poll(wait=0.01).events == ()
        writer = threading.Timer(0.05, log.append, [make("m.a", ["k"])])
        writer.start()
        assert keys(consumer.poll(wait=30.0).events) == ["k"]
        writer.join()

    def test_seek(self, log: EventLog) -> None:
        """A consumer goes on from a batch's position, a time, the end, or the start."""
        log.append(make("m.a", range(20), at=100.0))
        consumer = log.consumer("g", ["m.a"])
        position = consumer.poll(8).position
        rest = drain(consumer)
        consumer.seek(position)
        assert keys(drain(consumer)) == keys(rest)
        consumer.seek(112.5)
        assert self.same(drain(consumer), range(13, 20))
        consumer.seek(113.0)
        assert self.same(drain(consumer), range(13, 20))
        consumer.seek(1e9)
        assert drain(consumer) == []
        consumer.seek(log.end_positions(["m.a"]))
        assert drain(consumer) == []
        consumer.seek(None)
        assert self.same(drain(consumer), range(20))

    def test_seek_behind_an_event(self, log: EventLog) -> None:
        """The cursor of a polled event is the position behind it."""
        log.append(make("m.a", range(20)))
        consumer = log.consumer("g", ["m.a"])
        events = drain(consumer)
        consumer.seek(events[11].cursor)
        assert self.same(drain(consumer), keys(events[12:]))

    def test_a_foreign_cursor_is_refused(self, log: EventLog) -> None:
        """A cursor of something else moves nothing."""
        consumer = log.consumer("g", ["m.a"])
        with pytest.raises(InvalidInput):
            consumer.seek(Cursor(token="elsewhere"))

    # Reading without a group.

    def test_windows(self, log: EventLog) -> None:
        """`since` belongs to the window and `until` does not; `count` agrees with `scan`."""
        log.append(make("m.a", range(10), at=100.0))
        log.append(make("m.a", ["early"], at=50.0))
        windows: list[tuple[float | None, float | None, list[object]]] = [
            (None, None, [*range(10), "early"]),
            (103.0, 106.0, [3, 4, 5]),
            (105.5, None, [6, 7, 8, 9]),
            (None, 101.0, [0, "early"]),
            (106.0, 103.0, []),
            (1e9, None, []),
        ]
        for since, until, expected in windows:
            assert self.same(list(log.scan("m.a", since, until)), expected)
            assert log.count("m.a", since, until) == len(expected)

    def test_scan_in_constant_memory(self, log: EventLog) -> None:
        """Ten thousand events pass without being held together."""
        for start in range(0, 10_000, 1000):
            log.append(make("m.a", range(start, start + 1000), at=start, value=bytes(2000)))
        seen = 0
        tracemalloc.start()
        for event in log.scan("m.a"):
            seen += len(event.key) > 0
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seen == 10_000 and peak < 8_000_000

    def test_scan_while_events_come_and_go(self, log: EventLog) -> None:
        """A scan ends, and gives what was there all the time, whatever happens meanwhile."""
        log.append(make("m.a", range(3000)))
        found = []
        for number, event in enumerate(log.scan("m.a")):
            found.append(event.key)
            if number % 500 == 0:
                log.append(make("m.a", [f"new{number}"], at=1e6))
                log.trim("m.a", 500.0, most=100)
        assert len(found) == len(set(found))
        assert set(found) >= {str(number) for number in range(600, 3000)}

    # Deleting.

    def test_trim(self, log: EventLog) -> None:
        """The oldest go first, at most so many at a time, and what is young stays."""
        log.append(make("m.a", range(30)))
        assert log.trim("m.a", 21.0, most=15) == 15
        assert self.same(list(log.scan("m.a")), range(15, 30))
        assert log.trim("m.a", 21.0, most=15) == 5
        assert log.trim("m.a", 21.0) == 0
        assert self.same(list(log.scan("m.a")), range(20, 30))
        assert log.count("m.a") == 10 and log.find("m.a", ["3"]) == {}

    def test_a_consumer_behind_what_was_trimmed_goes_on(self, log: EventLog) -> None:
        """It reads what is left, from its committed position."""
        log.append(make("m.a", range(20)))
        consumer = log.consumer("g", ["m.a"])
        consumer.commit(consumer.poll(5))
        log.trim("m.a", 11.0)
        again = log.consumer("g", ["m.a"])
        assert {str(number) for number in range(10, 20)} >= set(keys(drain(again)))
        again.seek(None)
        assert self.same(drain(again), range(10, 20))

    def test_positions_are_never_used_again(self, log: EventLog) -> None:
        """After everything was deleted, new events still come behind every older position."""
        log.append(make("m.a", range(9)))
        end = log.end_positions(["m.a"])
        consumer = log.consumer("g", ["m.a"])
        drain(consumer)
        assert log.trim("m.a", 1e9) == 9
        assert log.count("m.a") == 0 and list(log.scan("m.a")) == []
        assert log.end_positions(["m.a"]) == end
        log.append(make("m.a", ["x", "y"]))
        assert self.same(drain(consumer), ["x", "y"])
        assert log.erase("m.a", ["x", "y"]) == 2
        log.append(make("m.a", ["z"]))
        assert keys(drain(consumer)) == ["z"]
        consumer.seek(end)
        assert keys(drain(consumer)) == ["z"]

    def test_erase(self, log: EventLog) -> None:
        """Erased events are gone for every way of reading; the others stay."""
        log.append(make("m.a", range(10)))
        assert log.erase("m.a", ["2", "9", "never"]) == 2
        assert log.erase("m.a", []) == 0
        left = [0, 1, 3, 4, 5, 6, 7, 8]
        assert self.same(list(log.scan("m.a")), left) and log.count("m.a") == 8
        assert log.find("m.a", ["2", "9"]) == {}
        assert self.same(drain(log.consumer("g", ["m.a"])), left)


class DurableLogSuite(LogSuite):
    """What holds for every log that outlives its process."""

    @pytest.fixture
    def reopen(self) -> Callable[[], EventLog]:
        """A function that closes the log, lets go of everything, and opens it anew."""
        raise NotImplementedError

    def test_events_survive(self, log: EventLog, reopen: Callable[[], EventLog]) -> None:
        """What was appended or offered is there after closing and opening."""
        log.append(make("m.a", range(5)))
        log.offer(make("m.b", range(3)))
        again = reopen()
        assert self.same(list(again.scan("m.a")), range(5)) and again.count("m.b") == 3
        again.append(make("m.a", [4, 5]))
        assert again.count("m.a") == 6

    def test_positions_survive(self, log: EventLog, reopen: Callable[[], EventLog]) -> None:
        """A group goes on where it committed, and cursors mean what they meant."""
        log.append(make("m.a", range(9)))
        end = log.end_positions(["m.a"])
        consumer = log.consumer("g", ["m.a"])
        batch = consumer.poll(4)
        consumer.commit(batch, make("m.out", ["o"]))
        again = reopen()
        assert again.end_positions(["m.a"]) == end
        new = again.consumer("g", ["m.a"])
        assert len(drain(new)) == 5
        assert list(again.find("m.out", ["o"])) == ["o"]
        new.seek(batch.position)
        assert len(drain(new)) == 5

    def test_deleted_positions_survive(self, log: EventLog, reopen: Callable[[], EventLog]) -> None:
        """A log that was emptied and opened again does not start counting anew."""
        log.append(make("m.a", range(9)))
        end = log.end_positions(["m.a"])
        log.trim("m.a", 1e9)
        again = reopen()
        assert again.end_positions(["m.a"]) == end
        again.append(make("m.a", ["x"]))
        consumer = again.consumer("g", ["m.a"])
        consumer.seek(end)
        assert keys(drain(consumer)) == ["x"]
