"""The generic ZeroRPC server, spoken to by hand: values, streams, heartbeats, limits, keys."""

from __future__ import annotations

import asyncio
import logging
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import uvloop
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.auth import create_certificates, load_certificate

from loopline.adapters.zerorpc import Limits, Server
from loopline.errors import InvalidInput, Unavailable
from tests.adapters.zerorpc_raw import Err, Raw, client, served, wait_until

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Thing:
    """Methods of every kind."""

    attribute = 5

    def __init__(self) -> None:
        self.pulled = 0
        self.closed = threading.Event()
        self.cancelled = threading.Event()
        self.release = threading.Event()

    @property
    def explosive(self) -> int:
        """Must not be read."""
        raise AssertionError

    def hello(self, name: str, greeting: str = "Hello") -> str:
        """Greet somebody.

        And nobody else.
        """
        return f"{greeting}, {name}"

    def echo(self, value: Any) -> Any:
        return value

    async def aecho(self, value: Any) -> Any:
        return value

    def many(self, *values: Any, sep: Any = object) -> int:
        return len(values)

    def nothing(self) -> None:
        return None

    def count(self, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                self.pulled = i + 1
                yield i
        finally:
            self.closed.set()

    async def acount(self, n: int, fail: bool = False) -> Any:
        try:
            for i in range(n):
                self.pulled = i + 1
                yield i
            if fail:
                raise KeyError("late")
        finally:
            self.closed.set()

    def block(self, seconds: float) -> float:
        self.release.wait(seconds)
        return seconds

    async def doze(self, seconds: float) -> float:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return seconds

    def kinds(self) -> Any:
        return {
            0: "int",
            1.5: "float",
            True: "truth",
            None: [np.float32(0.5), np.arange(3), {np.int64(7): np.bool_(True)}],
            b"b": (1, 2),
        }

    def odd(self, what: str) -> Any:
        """Return or raise what no client can take."""
        if what == "exit":
            raise SystemExit(3)
        if what == "mute":
            raise Mute
        if what == "surrogates":
            raise ValueError("lone \ud800")
        if what == "loop":
            value: list[Any] = []
            value.append(value)
            return value
        return {"object": object(), "huge": 2**70, "text": "\ud800"}[what]

    def big(self, size: int) -> bytes:
        return b"x" * size

    def blobs(self, n: int, size: int) -> Iterator[bytes]:
        for i in range(n):
            yield b"%08d" % i + b"x" * size

    def _private(self) -> None:
        raise AssertionError


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.fixture(scope="module", params=LOOPS, ids=["asyncio", "uvloop"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that the tests of this module share."""
    with served(Thing(), factory=request.param, name="thing") as running:
        yield running.endpoint


@pytest.fixture
def raw(endpoint: str) -> Iterator[Raw]:
    """A client of the shared server."""
    with client(endpoint) as raw:
        yield raw


# Calls and values.


def test_plain_functions_and_coroutines_answer(raw: Raw) -> None:
    """A call has one answer, in an array of one; defaults count."""
    assert raw.ask("hello", "you") == "Hello, you"
    assert raw.ask("hello", "you", "Hi") == "Hi, you"
    assert raw.ask("aecho", [1, None]) == [1, None]
    assert raw.ask("nothing") is None
    assert raw.ask("many", 1, 2, 3) == 3


@pytest.mark.parametrize("id", [b"bytes", "text", "Ünï", 7, 2**64 - 1, -1, b"x" * 1000])
def test_response_to_is_the_very_id_in_the_very_type(raw: Raw, id: Any) -> None:
    """Python's client looks it up in a dict, where bytes and text differ."""
    raw.event({"message_id": id, "v": 3}, "echo", [1])
    event = raw.receive()
    assert event is not None and event.args == [1]
    assert event.header["response_to"] == id and type(event.header["response_to"]) is type(id)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=25, deadline=None)
@given(value=VALUES)
def test_any_value_comes_back(endpoint: str, value: Any) -> None:
    """Text stays text, bytes bytes, and numbers keep all their bits."""
    with client(endpoint) as raw:
        assert raw.ask("echo", value) == value


def test_answers_hold_only_what_clients_can_read(raw: Raw) -> None:
    """Keys are text, NumPy's values are numbers and lists."""
    assert raw.ask("kinds") == {
        "0": "int",
        "1.5": "float",
        "true": "truth",
        "None": [0.5, [0, 1, 2], {"7": True}],
        "b": [1, 2],
    }


def test_requests_may_have_keys_that_are_no_text_and_text_that_is_no_unicode(raw: Raw) -> None:
    """The original drops these, and its callers wait in vain."""
    assert raw.ask("echo", {1: 2}) == {"1": 2}
    raw.event({"message_id": "old", "v": 3}, "many", ["\xff"], use_bin_type=False)
    assert raw.answer("old") == 1
    raw.send(b"", b"\x93\x81\xaamessage_id\xa1x\xa4many\x91\xa2\xff\xfe")
    assert raw.answer("x") == 1
    with pytest.raises(Err) as error:
        raw.send(b"", b"\x93\x81\xaamessage_id\xa1y\xa4echo\x91\xa2\xff\xfe")
        raw.answer("y")
    assert error.value.name == "UnicodeEncodeError"


def test_typed_arrays_of_javascript_are_numbers(raw: Raw) -> None:
    """Extensions 0x11 to 0x1A; those unknown, and ones that are cut off, do no harm."""
    given = np.array([1.5, -2.0, 3.25], "<f4")
    assert raw.ask("echo", msgpack.ExtType(0x17, given.tobytes())) == given.tolist()
    assert raw.ask("echo", msgpack.ExtType(0x15, b"\x01\x00\x00\x00")) == [1]
    assert raw.ask("many", msgpack.ExtType(0x17, b"odd"), msgpack.ExtType(0x0D, b"?")) == 2


def test_introspection_tells_names_arguments_and_docs(raw: Raw) -> None:
    """What the command line tool asks for, without `self`."""
    assert raw.ask("_zerorpc_ping") == ["pong", "thing"]
    assert raw.ask("_zerorpc_name") == "thing"
    names = raw.ask("_zerorpc_list")
    assert "hello" in names and not {"_private", "attribute", "explosive"} & set(names)
    assert raw.ask("_zerorpc_help", "hello") == "Greet somebody.\n\nAnd nobody else."
    assert raw.ask("_zerorpc_help", "echo") is None
    assert raw.ask("_zerorpc_args", "hello") == [["name", "greeting"], None, None, ["Hello"]]
    told = raw.ask("_zerorpc_inspect")
    assert told["name"] == "thing" and sorted(told["methods"]) == names
    assert told["methods"]["hello"] == {
        "args": [{"name": "name"}, {"name": "greeting", "default": "Hello"}],
        "doc": "Greet somebody.\n\nAnd nobody else.",
        "stream": False,
    }
    assert told["methods"]["acount"]["stream"] and told["methods"]["count"]["stream"]
    assert all({"args", "doc"} <= set(entry) for entry in told["methods"].values())


@pytest.mark.parametrize(
    ("name", "args", "kind", "word"),
    [
        ("nowhere", [], "NameError", "nowhere"),
        ("_private", [], "NameError", "_private"),
        ("__class__", [], "NameError", "__class__"),
        ("attribute", [], "NameError", "attribute"),
        ("explosive", [], "NameError", "explosive"),
        ("hello", [], "TypeError", "1"),
        ("hello", [1, 2, 3], "TypeError", "2"),
        ("_zerorpc_help", ["nowhere"], "NameError", "nowhere"),
        ("_zerorpc_help", [["list"]], "TypeError", ""),
        ("odd", ["object"], "TypeError", "object"),
        ("odd", ["huge"], "OverflowError", ""),
        ("odd", ["text"], "UnicodeEncodeError", ""),
        ("odd", ["loop"], "RecursionError", ""),
        ("odd", ["exit"], "RuntimeError", "SystemExit"),
        ("odd", ["surrogates"], "ValueError", "\\ud800"),
        ("odd", ["mute"], "Mute", ""),
        ("odd", ["nothing such"], "KeyError", "nothing such"),
    ],
)
def test_every_error_has_a_name_and_a_message_at_once(
    raw: Raw, name: str, args: list[Any], kind: str, word: str
) -> None:
    """ERR has exactly three elements, and tracebacks stay at home."""
    with pytest.raises(Err) as error:
        raw.ask(name, *args)
    assert error.value.name == kind
    assert word in error.value.message


def test_tracebacks_are_shown_on_request() -> None:
    """`debug` sends them."""
    with served(Thing(), debug=True) as running, client(running.endpoint) as raw:
        raw.call("odd", "exit")
        event = raw.receive()
        assert event is not None and "SystemExit" in event.args[2]


# Whatever a peer sends, the server goes on for everybody.


@pytest.mark.parametrize(
    "to", [[], {}, [1], {"a": 1}, 1.5, True, "\x00", "x" * 5000], ids=lambda to: repr(to)[:9]
)
def test_a_response_to_that_cannot_be_looked_up_does_not_deafen(raw: Raw, to: Any) -> None:
    """One such message ended the original for all its clients."""
    raw.event({"message_id": b"i", "v": 3, "response_to": to}, "_zpc_hb", [0])
    raw.event({"message_id": to, "v": 3}, "echo", [1])
    assert raw.ask("echo", "still here") == "still here"


def test_credit_after_a_streams_end_does_not_deafen(endpoint: str) -> None:
    """Node's client sends credit when a long stream is over; a few of them ended the original."""
    with client(endpoint) as node, client(endpoint) as other:
        for _ in range(20):
            id = node.call("acount", 150)
            node.go_on(id, "_zpc_more", [149])
            done = 0
            while not done:
                event = node.receive()
                assert event is not None
                done = event.name == "STREAM_DONE"
                node.go_on(id, "_zpc_more", [100])
            for _ in range(5):
                node.go_on(id, "_zpc_more", [100])
                node.go_on(id, "_zpc_hb", [0])
        assert other.ask("echo", 1) == 1 and node.ask("echo", 2) == 2


def test_a_flood_of_messages_to_a_running_call_does_not_deafen(endpoint: str) -> None:
    """More than a hundred unread ones ended the original."""
    with client(endpoint) as raw, client(endpoint) as other:
        id = raw.call("doze", 0.5)
        for number in range(3000):
            raw.go_on(id, ("OK", "nonsense", "_zpc_more", "STREAM")[number % 4], [number])
        assert other.ask("echo", 1) == 1
        assert raw.answer(id) == 0.5


SCRAPS = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda value: msgpack.packb(value), VALUES),
    st.builds(
        lambda *event: msgpack.packb(list(event)),
        st.dictionaries(
            st.sampled_from(["message_id", "response_to", "v", ""]), VALUES, max_size=4
        ),
        st.sampled_from(["echo", "count", "_zpc_hb", "_zpc_more", "OK", "", 5, b"echo", None]),
        VALUES,
    ),
)


@settings(max_examples=10, deadline=None)
@given(messages=st.lists(st.lists(SCRAPS, min_size=1, max_size=14), min_size=5, max_size=12))
def test_rubbish_is_dropped(endpoint: str, messages: list[list[bytes]]) -> None:
    """Frames, bytes and events of any shape leave the server as it was."""
    with client(endpoint) as raw:
        for frames in messages:
            raw.send(*frames)
            raw.send(b"", *frames)
        raw.event({"message_id": b"last", "v": 3}, "echo", ["here"])
        while True:
            *_, payload = raw.socket.recv_multipart() if raw.socket.poll(10_000) else [b""]
            event = msgpack.unpackb(payload, raw=False)
            if event[0]["response_to"] == b"last":
                break
        assert event[2] == ["here"]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01",
        b"\x81" * 3000,
        b"\x93\x81\x90\x01",
        msgpack.packb([{"message_id": b"a"}, "echo"]),
        msgpack.packb([[], "echo", [1]]),
        msgpack.packb({"message_id": b"a"}),
    ],
    ids=range(9),
)
def test_a_message_without_a_proper_header_has_no_answer(raw: Raw, payload: bytes) -> None:
    """There is nobody whom an answer would reach."""
    raw.send(b"", payload)
    assert raw.ask("echo", 1) == 1


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([{"message_id": b"a"}, b"echo", [1]]),
        msgpack.packb([{"message_id": b"a"}, 5, [1]]),
        msgpack.packb([{"message_id": b"a"}, "echo", {"value": 1}]),
        msgpack.packb([{"message_id": b"a"}, "echo", "text"]),
        msgpack.packb([{"message_id": b"a"}, "echo"])[:-5].replace(b"\x92", b"\x93") + b"\xc1",
        msgpack.packb([{"message_id": b"a"}, msgpack.ExtType(0x12, b"xy"), [1]]),
    ],
    ids=range(6),
)
def test_a_proper_header_alone_is_enough_for_an_error(raw: Raw, payload: bytes) -> None:
    """Who can be answered is told what is wrong, instead of waiting in vain."""
    raw.send(b"", payload)
    with pytest.raises(Err) as error:
        raw.answer(b"a")
    assert error.value.name == "Unreadable"


def test_events_that_open_nothing_leave_nothing_behind() -> None:
    """A first event that is a heartbeat or credit, and an id that is in use."""
    with served(Thing()) as running, client(running.endpoint) as raw:
        raw.event({"message_id": b"a"}, "_zpc_hb", [0])
        raw.event({"message_id": b"b"}, "_zpc_more", [5])
        raw.event({"message_id": b"c"}, "doze", [0.2])
        raw.event({"message_id": b"c"}, "echo", [1])
        assert raw.answer(b"c") == 0.2
        assert raw.ask("echo", 2) == 2
        assert running.open_calls() == 0 and running.server._clients == {}
        assert running.server.counts["malformed"] == 3


def test_frames_follow_the_route_of_the_request(raw: Raw) -> None:
    """A peer without a delimiter, and one behind two proxies that uses another's id."""
    event = msgpack.packb([{"message_id": b"same"}, "aecho", ["direct"]])
    raw.send(event)
    assert raw.socket.recv_multipart()[:-1] == [b""]
    slow = msgpack.packb([{"message_id": b"same"}, "doze", [0.2]])
    raw.send(b"hop one", b"hop two", b"", slow)
    raw.send(b"hop one", b"hop 2", b"", event)
    assert raw.socket.recv_multipart()[:-1] == [b"hop one", b"hop 2", b""]
    assert raw.socket.recv_multipart()[:-1] == [b"hop one", b"hop two", b""]


def test_what_follows_an_event_is_ignored(raw: Raw) -> None:
    """As the original does."""
    raw.send(b"", msgpack.packb([{"message_id": b"a", "trace": [1]}, "echo", [1]]) + b"\xc1more")
    assert raw.answer(b"a") == 1


# Streams and credit.


@pytest.mark.parametrize("method", ["count", "acount"])
def test_a_stream_sends_what_it_has_credit_for(method: str) -> None:
    """One item at once, then as many as allowed; the generator runs one item ahead at most."""
    thing = Thing()
    with served(thing) as running, client(running.endpoint) as raw:
        id = raw.call(method, 6)
        assert [event.args for event in raw.collect(0.2)] == [0]
        assert thing.pulled == 2
        for bad in ([], [0], [-5], ["3"], [True], [1.5], None, {"a": 1}, [None]):
            raw.go_on(id, "_zpc_more", bad)
        assert raw.collect(0.2) == []
        raw.go_on(id, "_zpc_more", [2])
        raw.go_on(id, "_zpc_more", [1, "rest"])
        assert [event.args for event in raw.collect(0.3)] == [1, 2, 3]
        raw.go_on(id, "_zpc_more", [2])
        assert [event.args for event in raw.collect(0.2)] == [4, 5]
        raw.go_on(id, "_zpc_more", [2**62])
        (last,) = raw.collect(0.2)
        assert last.name == "STREAM_DONE"
        assert thing.closed.is_set() and running.open_calls() == 0


def test_an_empty_stream_is_done_first(raw: Raw) -> None:
    """No item, no credit needed."""
    raw.call("acount", 0)
    event = raw.receive()
    assert event is not None and event.name == "STREAM_DONE"


def test_an_error_in_a_stream_comes_after_the_items_before_it(raw: Raw) -> None:
    """And costs credit as they do."""
    id = raw.call("acount", 3, True)
    raw.go_on(id, "_zpc_more", [2])
    assert [event.name for event in raw.collect(0.3)] == ["STREAM"] * 3
    raw.go_on(id, "_zpc_more", [1])
    event = raw.receive()
    assert event is not None and (event.name, event.args[0]) == ("ERR", "KeyError")


def test_a_client_that_reads_slowly_gets_every_item() -> None:
    """What exceeds the queues of the connection waits, in order, and holds up nobody else."""

    def small(sock: Any) -> None:
        sock.rcvhwm = 1

    n, size = 3000, 10_000
    with served(Thing()) as running, client(running.endpoint, small) as raw:
        with client(running.endpoint) as other:
            id = raw.call("blobs", n, size)
            raw.go_on(id, "_zpc_more", [n + 1])
            time.sleep(0.5)
            assert other.ask("echo", 1) == 1
        found = []
        while (event := raw.receive()) is not None and event.name != "STREAM_DONE":
            if event.name == "STREAM":
                found.append(int(event.args[:8]))
        assert event is not None and found == list(range(n))


# Heartbeats.


def beats(raw: Raw, id: Any, seconds: float) -> int:
    """How many heartbeats of a channel come within that time."""
    found = [e for e in raw.collect(seconds) if e.header["response_to"] == id]
    assert all((e.name, e.args) == ("_zpc_hb", [0]) for e in found)
    return len(found)


@pytest.mark.parametrize("method", ["block", "doze"])
def test_heartbeats_go_on_while_a_method_works(method: str) -> None:
    """For every call, from its arrival to its answer, and not beyond."""
    thing = Thing()
    with served(thing, heartbeat=0.2) as running, client(running.endpoint) as raw:
        id = raw.call(method, 1.5)
        until, count = time.monotonic() + 1.0, 0
        while time.monotonic() < until:
            raw.go_on(id, "_zpc_hb", [0])
            count += beats(raw, id, 0.3)
        assert count >= 3
        assert raw.answer(id) == 1.5
        assert raw.collect(0.6) == []


def test_heartbeats_begin_while_a_call_waits_for_its_turn() -> None:
    """The most common complaint about the original."""
    thing = Thing()
    with served(thing, heartbeat=0.2, threads=1) as running, client(running.endpoint) as raw:
        first, second = raw.call("block", 5), raw.call("block", 0)
        for _ in range(3):
            raw.go_on(first, "_zpc_hb", [0])
            raw.go_on(second, "_zpc_hb", [0])
            found = {event.header["response_to"] for event in raw.collect(0.4)}
            assert found == {first, second}
        thing.release.set()
        assert raw.answer(first) == 5
        assert raw.answer(second) == 0


def test_a_received_heartbeat_is_answered_at_once_but_not_without_end(raw: Raw) -> None:
    """A client that beats quicker than the server would else give up."""
    id = raw.call("doze", 3.0)
    raw.go_on(id, "_zpc_hb", None)
    assert beats(raw, id, 0.4) == 1
    for _ in range(200):
        raw.go_on(id, "_zpc_hb", [0])
    assert 1 <= beats(raw, id, 0.3) < 10
    assert raw.answer(id) == 3.0


@pytest.mark.parametrize("method", ["doze", "count", "acount"])
def test_a_client_that_falls_silent_is_given_up(method: str) -> None:
    """What it asked for is cancelled; nothing else tells that it does not want it any more."""
    thing = Thing()
    with served(thing, heartbeat=0.1) as running, client(running.endpoint) as raw:
        id = raw.call(method, 1000)
        for _ in range(4):  # well alive, although it says something only every other interval
            time.sleep(0.2)
            raw.go_on(id, "_zpc_hb", [0])
        assert running.open_calls() == 1
        flag = thing.cancelled if method == "doze" else thing.closed
        assert not flag.is_set()
        assert flag.wait(10)
        wait_until(lambda: running.open_calls() == 0)
        assert running.server.counts["lost"] == 1
        assert {event.name for event in raw.collect(0.3)} <= {"_zpc_hb", "STREAM"}
        assert raw.collect(0.3) == []
        assert raw.ask("echo", 1) == 1


def test_work_of_a_silent_client_that_has_not_begun_never_does() -> None:
    """A computation that runs ends unheard; those behind it in the queue are dropped."""
    thing = Thing()
    with served(thing, heartbeat=0.1, threads=1) as running, client(running.endpoint) as raw:
        raw.call("block", 20)
        raw.call("count", 5)
        wait_until(lambda: running.open_calls() == 2)
        wait_until(lambda: running.open_calls() == 0)
        thing.release.set()
        assert raw.ask("echo", 1) == 1
        assert thing.pulled == 0


def test_a_client_that_hangs_up_is_noticed_at_the_next_beat() -> None:
    """Its connection is gone, which sending to it tells."""
    thing = Thing()
    with served(thing, heartbeat=0.5) as running:
        with client(running.endpoint) as raw:
            raw.call("doze", 1000)
            wait_until(lambda: running.open_calls() == 1)
        assert thing.cancelled.wait(1.2)
        assert running.open_calls() == 0


def test_a_standstill_of_the_server_is_not_held_against_its_clients() -> None:
    """What they said meanwhile is read before they are judged."""
    thing = Thing()

    async def stand_still() -> None:
        time.sleep(1.0)

    with served(thing, heartbeat=0.1) as running, client(running.endpoint) as raw:
        id = raw.call("doze", 1.2)
        wait_until(lambda: running.open_calls() == 1)
        halt = threading.Thread(target=lambda: running.run(stand_still()))
        halt.start()
        for _ in range(14):
            raw.go_on(id, "_zpc_hb", [0])
            time.sleep(0.1)
        halt.join()
        assert raw.answer(id) == 1.2


# Limits.


def test_a_client_may_have_so_many_calls_open() -> None:
    """The next is refused at once; others are not concerned."""
    thing = Thing()
    with served(thing, limits=Limits(calls=3)) as running, client(running.endpoint) as raw:
        open = [raw.call("doze", 0.6) for _ in range(3)]
        with pytest.raises(Err) as error:
            raw.ask("echo", 1)
        assert error.value.name == "Overloaded"
        raw.send(b"hop", b"", msgpack.packb([{"message_id": b"proxied"}, "echo", [1]]))
        assert msgpack.unpackb(raw.socket.recv_multipart()[-1])[1] == "ERR"
        with client(running.endpoint) as other:
            assert other.ask("echo", 1) == 1
        assert raw.answer(open[-1]) == 0.6
        assert raw.ask("echo", 1) == 1


def test_a_client_may_have_so_many_bytes_waiting() -> None:
    """The bytes of its open requests are counted, and given back when they end."""
    thing = Thing()
    limits = Limits(held=100_000)
    with served(thing, limits=limits) as running, client(running.endpoint) as raw:
        raw.event({"message_id": b"a"}, "many", [b"x" * 90_000])
        assert raw.answer(b"a") == 1
        id = raw.call("doze", 0.5, pad=b"x" * 90_000)
        with pytest.raises(Err) as error:
            raw.ask("echo", b"x" * 20_000)
        assert error.value.name == "Overloaded"
        assert raw.answer(id) == 0.5
        assert raw.ask("many", b"x" * 90_000) == 1


def test_a_request_that_is_too_large_is_told_so_and_one_far_too_large_hung_up_on() -> None:
    """Between the documented limit and ZeroMQ's there is an answer; beyond it, only silence."""
    limits = Limits(request=10_000)
    with served(Thing(), limits=limits) as running, client(running.endpoint) as raw:
        with pytest.raises(Err) as error:
            raw.ask("echo", b"x" * 20_000)
        assert error.value.name == "TooLarge" and "10,000" in error.value.message
        assert raw.ask("many", b"x" * 9_000) == 1
        with client(running.endpoint) as rude:
            rude.call("echo", b"x" * 50_000)
            assert rude.receive(0.5) is None
        assert raw.ask("echo", 1) == 1


def test_an_answer_that_no_client_could_read_is_an_error() -> None:
    """Over a hundred mebibytes Python's client says nothing and times out; less is tested here."""
    limits = Limits(answer=10_000)
    with served(Thing(), limits=limits) as running, client(running.endpoint) as raw:
        with pytest.raises(Err) as error:
            raw.ask("big", 20_000)
        assert error.value.name == "TooLarge" and "stream" in error.value.message
        id = raw.call("blobs", 1, 20_000)
        with pytest.raises(Err) as error:
            raw.answer(id)
        assert error.value.name == "TooLarge"
        assert len(raw.ask("big", 9_000)) == 9_000


def test_a_client_that_takes_no_answers_is_dropped_in_the_end() -> None:
    """The server does not keep its answers for ever."""

    def small(sock: Any) -> None:
        sock.rcvhwm = 1

    limits = Limits(held=200_000)
    with served(Thing(), limits=limits) as running, client(running.endpoint, small) as raw:
        for _ in range(1500):
            raw.call("big", 50_000)
        wait_until(lambda: running.server.counts["lost"] > 0 or running.open_calls() == 0, 20)
        with client(running.endpoint) as other:
            assert other.ask("echo", 1) == 1


# Its beginning and end.


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:4242", "tcp://*:4242", "tcp://[::]:4242"])
def test_an_endpoint_that_others_reach_needs_keys(endpoint: str) -> None:
    """Or somebody who says that it may be open."""
    with pytest.raises(InvalidInput, match="keys"):
        Server(Thing(), endpoint)
    Server(Thing(), endpoint, insecure=True)


@pytest.mark.parametrize("endpoint", ["", "4242", "http://x:1", "tcp://127.0.0.1", "tcp://x:y"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidInput, match="endpoint"):
        Server(Thing(), endpoint, insecure=True)


def test_an_address_in_use_is_told(endpoint: str) -> None:
    """By name, and nothing is left open."""
    with pytest.raises(Unavailable, match=endpoint):
        with served(Thing(), endpoint=endpoint):
            pass


def test_it_serves_on_a_local_socket_file_until_cancelled(tmp_path: Path) -> None:
    """`asyncio.run(Server(thing, ...).serve())` is all there is to it."""
    endpoint = f"ipc://{tmp_path}/socket"

    async def main() -> Any:
        serving = asyncio.create_task(Server(Thing(), endpoint).serve())
        with client(endpoint) as raw:
            found = await asyncio.to_thread(raw.ask, "echo", 5)
        serving.cancel()
        await asyncio.wait([serving])
        return found

    assert asyncio.run(main()) == 5


def test_a_stopping_server_finishes_what_was_begun_and_refuses_the_rest() -> None:
    """Within its grace; whoever cannot be waited for is told."""
    with served(Thing()) as running, client(running.endpoint) as raw:
        soon, never = raw.call("doze", 0.3), raw.call("doze", 60)
        wait_until(lambda: running.open_calls() == 2)
        running.stop(0.8)
        assert raw.answer(soon) == 0.3
        with pytest.raises(Err) as error:
            raw.answer(never)
        assert error.value.name == "Unavailable"


def test_a_missing_library_is_named() -> None:
    """With the line that installs it."""
    for library in ("zmq", "msgpack"):
        code = f"import sys; sys.modules[{library!r}] = None; import loopline.adapters.zerorpc"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "MissingExtra" in done.stderr and "loopline[zerorpc]" in done.stderr


# Keys.


def with_keys(folder: Path, server: Path) -> Callable[[Any], None]:
    """Prepares a client with the keys of a folder."""

    def prepare(sock: Any) -> None:
        sock.curve_serverkey = load_certificate(server / "server.key")[0]
        sock.curve_publickey, sock.curve_secretkey = load_certificate(folder / "me.key_secret")

    return prepare


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A client's own pair of keys."""
    folder = tmp_path / "mine"
    folder.mkdir()
    create_certificates(folder, "me")
    return folder


def test_only_clients_whose_keys_are_there_may_call(
    tmp_path: Path, mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's pair is made at first; a key that is added counts at once."""
    keys = tmp_path / "keys"
    caplog.set_level(logging.WARNING)
    with served(Thing(), keys=keys) as running:
        secret = keys / "server.key_secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        prepare = with_keys(mine, keys)
        with client(running.endpoint, prepare) as raw, client(running.endpoint) as plain:
            raw.call("echo", 1)
            plain.call("echo", 1)
            assert raw.receive(0.5) is None and plain.receive(0.5) is None
            wait_until(lambda: running.server.counts["handshake"] >= 2)
        told = " ".join(record.getMessage() for record in caplog.records)
        assert "handshake" in told
        (keys / "clients" / "me.key").write_bytes((mine / "me.key").read_bytes())
        (keys / "clients" / "damaged.key").write_text("nothing")
        with client(running.endpoint, prepare) as raw:
            assert raw.ask("echo", 1) == 1
    before = secret.read_bytes()
    with served(Thing(), keys=keys) as running:
        with client(running.endpoint, prepare) as raw:
            assert raw.ask("echo", 1) == 1
    assert secret.read_bytes() == before


def test_keys_that_cannot_be_read_stop_the_server(tmp_path: Path) -> None:
    """Rather than have it open to nobody, or to everybody."""
    (tmp_path / "server.key_secret").write_text("nothing")
    with pytest.raises(InvalidInput, match="keys"):
        Server(Thing(), "tcp://127.0.0.1:*", keys=tmp_path)


def test_a_forwarder_lets_plain_clients_through(
    tmp_path: Path, free_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """`loopline zerorpc-forward`: a plain door on this machine to a server with keys."""
    keys, mine = tmp_path / "keys", tmp_path / "mine"
    door = f"tcp://127.0.0.1:{free_port}"
    with served(Thing(), keys=keys, heartbeat=0.5) as running:
        mine.mkdir()
        (mine / "server.key").write_bytes((keys / "server.key").read_bytes())
        command = [sys.executable, "-m", "loopline", "zerorpc-forward", running.endpoint]
        forwarder = subprocess.Popen([*command, "--listen", door, "--keys", str(mine)])
        try:
            wait_until(lambda: (mine / "client.key_secret").exists(), 30)
            (keys / "clients" / "door.key").write_bytes((mine / "client.key").read_bytes())
            with client(door) as raw, client(door) as other:
                assert raw.ask("hello", "you", timeout=30) == "Hello, you"
                id = other.call("acount", 5)
                other.go_on(id, "_zpc_more", [5])
                assert [event.args for event in other.collect(0.5)][:5] == [0, 1, 2, 3, 4]
        finally:
            forwarder.terminate()
            forwarder.wait()
    assert "client.key" in capfd.readouterr().out


def test_a_forwarder_needs_the_servers_key(tmp_path: Path) -> None:
    """And is open to this machine only."""
    from loopline.adapters.zerorpc_socket import forward

    with pytest.raises(InvalidInput, match="public key"):
        forward("tcp://127.0.0.1:*", "tcp://127.0.0.1:1", tmp_path)
    with pytest.raises(InvalidInput, match="reached by others"):
        forward("tcp://0.0.0.0:*", "tcp://127.0.0.1:1", tmp_path)


assert zmq.has("curve")
