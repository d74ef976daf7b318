from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from loopline import codecs
from loopline.adapters.http_socket import IN_FLIGHT, Misread, read
from loopline.loop import Loop
from loopline.registry import Definition
from tests.adapters.sockets import PREDICT, Served, post, served, until
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA, iris, running
from tests.servers import Server

APP = """
from loopline import Loopline

def double(row: dict) -> float:
    return row["x"] * 2.0

app = Loopline()
app.add("double", double)
"""


@pytest.fixture(scope="module")
def shared(loop: Loop) -> Iterator[Served]:
    """A server of the shared loop."""
    with served(loop) as server:
        yield server


@pytest.fixture
def server(shared: Served) -> Iterator[Served]:
    """The same, of which every test has to leave nothing open."""
    yield shared
    shared.at_rest()


@pytest.fixture
def nap(tmp_path: Path) -> Iterator[Path]:
    """A file that a sleeping model waits for; it appears at the end of the test at the latest."""
    file = tmp_path / "w"
    yield file
    file.touch()


def dial(server: Served, model: str = "iris", **options: Any) -> ClientConnection:
    """Open a connection as a user of the `websockets` library does."""
    host, port = server.address
    return connect(f"ws://{host}:{port}/v1/models/{model}/socket", compression=None, **options)


def say(line: ClientConnection, **message: Any) -> None:
    """Send one request."""
    line.send(json.dumps(message))


def hear(line: ClientConnection) -> dict[str, Any]:
    """Receive one answer."""
    told: dict[str, Any] = json.loads(line.recv(timeout=20))
    return told


def ask(line: ClientConnection, **message: Any) -> dict[str, Any]:
    """Send one request, alone, and receive its answer."""
    say(line, **message)
    return hear(line)


def farewell(line: ClientConnection) -> tuple[int, str]:
    """Read to the end; returns the code and the reason that the server closed with."""
    try:
        while True:
            line.recv(timeout=20)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, closed.rcvd.reason


def test_many_requests_are_in_flight_on_one_connection(server: Served) -> None:
    """Each is answered once, under its own id, with the row's own answer."""
    with dial(server) as line:
        for number in range(1000):
            say(line, id=number, inputs=VIRGINICA if number % 2 else SETOSA)
        told = {each["id"]: each["answer"] for each in (hear(line) for _ in range(1000))}
    assert sorted(told) == list(range(1000))
    expected = ("setosa", "virginica")
    assert all(told[n]["prediction"] == expected[n % 2] for n in told)
    assert len({each["id"] for each in told.values()}) == 1000


def test_an_answer_is_that_of_the_http_route(server: Served, loop: Loop) -> None:
    """One row, many, columns, an id, a version, probabilities, and the row in the log."""
    with dial(server) as line:
        for extra, body, query in [
            ({}, SETOSA, ""),
            ({"version": 1}, [SETOSA, VIRGINICA], "?version=1"),
            ({"alias": "champion"}, [list(SETOSA.values())], "?alias=champion"),
            ({"probabilities": True}, SETOSA, "?probabilities=true"),
            ({}, {name: [value] for name, value in SETOSA.items()}, ""),
        ]:
            there = server.ask(post(body, PREDICT + query)).json()
            here = ask(line, id="a", inputs=body, **extra)["answer"]
            for told in (there, here):
                for each in told.get("predictions", [told]):
                    assert len(each.pop("id")) == 36
            assert here == there
        named = ask(line, id=1, inputs=[SETOSA], ids=["by-socket"])["answer"]["predictions"][0]
        again = ask(line, id=2, inputs=[VIRGINICA], ids=["by-socket"])["answer"]["predictions"][0]
    assert named["id"] == "by-socket" and again["prediction"] == named["prediction"] == "setosa"
    until(lambda: loop.prediction("iris", "by-socket"), "the prediction is in the log")


def test_a_request_without_an_id_gets_one(server: Served) -> None:
    """Which is enough for one request after the other."""
    with dial(server) as line:
        assert len(ask(line, inputs=SETOSA)["id"]) == 36
        assert ask(line, id="ü" * 200, inputs=SETOSA)["id"] == "ü" * 200


def test_a_binary_message_is_messagepack(server: Served) -> None:
    """And so is its answer, or its error; texts and binaries mix on a connection."""
    with dial(server) as line:
        line.send(msgspec.msgpack.encode({"id": 1, "inputs": SETOSA}))
        told = msgspec.msgpack.decode(line.recv())
        assert told["answer"]["prediction"] == "setosa"
        line.send(msgspec.msgpack.encode({"id": 2, "inputs": {**SETOSA, "petal_width": "abc"}}))
        told = msgspec.msgpack.decode(line.recv())
        assert told["error"]["errors"][0]["pointer"] == "/inputs/petal_width"
        assert ask(line, id=3, inputs=SETOSA)["answer"]["prediction"] == "setosa"


@pytest.mark.parametrize(
    ("message", "code", "pointers"),
    [
        ({"inputs": {**SETOSA, "petal_width": "abc"}}, "invalid-input", ["/inputs/petal_width"]),
        ({"inputs": [SETOSA, {}]}, "invalid-input", [f"/inputs/1/{name}" for name in FEATURES]),
        ({"inputs": {**SETOSA, "petal_width": float("nan")}}, "invalid-input", None),
        ({"inputs": SETOSA, "ids": ["a", "b"]}, "invalid-input", ["/ids"]),
        ({"inputs": [SETOSA] * 2, "ids": ["a", ""]}, "invalid-input", ["/ids/1"]),
        ({"inputs": []}, "invalid-input", ["/inputs"]),
        ({}, "invalid-input", [""]),
        ({"inputs": SETOSA, "version": "x"}, "invalid-input", ["/version"]),
        ({"inputs": SETOSA, "version": 0}, "invalid-input", ["/version"]),
        ({"inputs": SETOSA, "alias": "best"}, "invalid-input", ["/alias"]),
        ({"inputs": SETOSA, "alias": "champion", "version": 1}, "invalid-input", ["/alias"]),
        ({"inputs": SETOSA, "timeout": 0}, "invalid-input", ["/timeout"]),
        ({"inputs": SETOSA, "verb": "train"}, "invalid-input", ["/verb"]),
        ({"inputs": SETOSA, "colour": "red"}, "invalid-input", [""]),
        ({"inputs": SETOSA, "version": 7}, "unknown-version", None),
        ({"inputs": SETOSA, "alias": "previous"}, "unknown-version", None),
        ({"inputs": 2**70, "id": 5}, "invalid-input", ["/inputs"]),
    ],
)
def test_an_error_answers_its_message_alone(
    server: Served, message: dict[str, Any], code: str, pointers: list[str] | None
) -> None:
    """With the request's id and a problem whose pointers are into the message; others go on."""
    with dial(server) as line:
        say(line, id=1, inputs=SETOSA)
        say(line, **{"id": 2, **message})
        say(line, id=3, inputs=SETOSA)
        told = {each["id"]: each for each in (hear(line) for _ in range(3))}
    assert "answer" in told[1] and "answer" in told[3]
    error = told[message.get("id", 2)]["error"]
    assert error["code"] == code and error["status"] >= 400
    assert error["title"] and error["detail"] and error["instance"]
    if pointers is not None:
        assert [each["pointer"] for each in error["errors"]] == pointers


def test_a_model_that_raises_or_is_not_fitted_says_so(server: Served, loop: Loop) -> None:
    """The others of the same turn are answered, and no traceback leaves the server."""
    loop.registry.register(Definition(name="unfitted", model=DummyClassifier(), target="y"))
    loop.serving.refresh()
    with dial(server, "moody") as line:
        say(line, id=1, inputs={"raise": True})
        say(line, id=2, inputs={"say": "fine"})
        told = {each["id"]: each for each in (hear(line), hear(line))}
        assert told[1]["error"]["code"] == "model-failed"
        assert "Traceback" not in told[1]["error"]["detail"]
        assert told[2]["answer"]["prediction"] == "fine"
    with dial(server, "unfitted") as line:
        error = ask(line, id=1, inputs={"x": 1.0})["error"]
        assert error["code"] == "not-ready" and "train" in error["detail"]


def test_outcomes_and_examples_come_over_the_same_connection(server: Served) -> None:
    """With the answers of their HTTP routes, all-or-nothing as there."""
    with dial(server) as line:
        id = ask(line, inputs=SETOSA)["answer"]["id"]
        told = ask(line, id=1, verb="outcome", inputs={"id": id, "outcome": "setosa"})
        assert told["answer"]["results"][0] == {"id": id, "status": "joined"}
        again = ask(line, id=2, verb="outcome", inputs=[{"id": id, "outcome": "setosa"}])
        assert again["answer"]["results"][0]["status"] == "duplicate"
        wrong = ask(line, id=3, verb="outcome", inputs=[{"id": id}])
        assert wrong["error"]["errors"][0]["pointer"].startswith("/inputs/0")
        told = ask(line, id=4, verb="learn", inputs={**SETOSA, "species": "setosa"})
        assert told["answer"]["accepted"] == 1
        bad = ask(line, id=5, verb="learn", inputs=[{**SETOSA, "petal_width": "abc"}])
        assert bad["error"]["code"] == "invalid-input"


def test_answers_come_as_they_are_ready(server: Served, nap: Path) -> None:
    """A request that takes long is overtaken by one that does not."""
    with dial(server, "moody") as line:
        say(line, id="slow", inputs={"sleep": str(nap), "say": "woken"})
        until(lambda: server.loop.serving.service("moody").running, "the model sleeps")
        told = ask(line, id="wrong", verb="learn", inputs={"x": 1})
        assert told["id"] == "wrong" and "error" in told
        nap.touch()
        told = hear(line)
        assert told["id"] == "slow" and told["answer"]["prediction"] == "woken"


def test_a_deadline_answers_with_timeout(server: Served, nap: Path) -> None:
    """The request's own deadline, while the model has not come back."""
    with dial(server, "moody") as line:
        told = ask(line, id=1, inputs={"sleep": str(nap)}, timeout=0.05)
        assert told["error"]["code"] == "timeout"
        nap.touch()
    until(lambda: not server.loop.serving.service("moody").running, "the model is awake")


@pytest.mark.parametrize("data", ["", "{", "{}x", "\ufeff{}", "[" * 100_000, b"", b"\xc1"])
def test_garbage_ends_the_connection_after_what_went_before(
    server: Served, data: str | bytes
) -> None:
    """Earlier requests are answered; then it is said what is wrong, and the connection closes."""
    with dial(server) as line:
        say(line, id=1, inputs=SETOSA)
        line.send(data)
        found = [json.loads(line.recv()) for _ in range(2)]
        assert sorted("answer" in each for each in found) == [False, True]
        wrong = next(each for each in found if "error" in each)
        assert wrong["id"] is None and wrong["error"]["code"] == "unreadable"
        assert farewell(line) == (1007, "unreadable")


@pytest.mark.parametrize("data", ["[]", "5", "null", '"text"', "{}", '{"id": {}}', '{"id": 1.5}'])
def test_what_is_no_request_is_answered_without_an_id(server: Served, data: str) -> None:
    """It can be read, so the connection goes on."""
    with dial(server) as line:
        line.send(data)
        told = hear(line)
        assert told["id"] is None and told["error"]["code"] == "invalid-input"
        assert "answer" in ask(line, id=1, inputs=SETOSA)


def test_frames_of_any_cut(server: Served) -> None:
    """A message in many fragments, with a ping between them, is one message."""
    body = json.dumps({"id": 1, "inputs": SETOSA})
    with dial(server) as line:
        line.send(body[at : at + 7] for at in range(0, len(body), 7))
        assert hear(line)["answer"]["prediction"] == "setosa"
        first = Frame(Opcode.TEXT, body[:9].encode(), fin=False).serialize(mask=True)
        ping = Frame(Opcode.PING, b"between").serialize(mask=True)
        last = Frame(Opcode.CONT, body[9:].encode()).serialize(mask=True)
        for part in (first, ping, last[:5], last[5:]):
            line.socket.sendall(part)
        assert hear(line)["answer"]["prediction"] == "setosa"


def test_pings_are_answered(server: Served) -> None:
    """As a client that keeps its connection alive expects."""
    with dial(server) as line:
        assert line.ping().wait(20)
        assert "answer" in ask(line, id=1, inputs=SETOSA)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Frame(Opcode.TEXT, b'{"id": "\xff"}').serialize(mask=True), 1007),
        (Frame(Opcode.TEXT, b"{}").serialize(mask=False), 1002),
        (b"\x83\x80abcd", 1002),
        (b"\xc1\x80abcd", 1002),
        (Frame(Opcode.CONT, b"{}").serialize(mask=True), 1002),
        (b"\x81\xff\x00\x00\x00\x00\x7f\xff\xff\xffabcd", 1009),
    ],
    ids=["utf-8", "unmasked", "opcode", "reserved", "continuation", "too large"],
)
def test_frames_that_break_the_protocol(server: Served, frame: bytes, code: int) -> None:
    """They end the connection with the protocol's own code, and nothing is logged as ours."""
    with dial(server) as line:
        line.socket.sendall(frame)
        assert farewell(line)[0] == code


def test_a_message_over_the_limit_ends_the_connection(tmp_path: Path) -> None:
    """Whether it comes whole or in fragments."""
    with running(tmp_path) as loop, served(loop, max_message=300) as server:
        for message in ("x" * 301, ["x" * 200, "x" * 200]):
            with dial(server) as line:
                line.send(message)
                assert farewell(line)[0] == 1009
        server.at_rest()


def test_a_client_that_does_not_read_is_not_read_either(tmp_path: Path) -> None:
    """Beyond what the kernel and one chunk hold, nothing is taken in; then all is answered."""
    plain = socket.socket()
    with running(tmp_path) as loop, served(loop, buffer=1 << 15) as server, plain:
        for side in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            plain.setsockopt(socket.SOL_SOCKET, side, 1 << 15)
        plain.connect(server.address)
        taken = 0
        with dial(server, "moody", sock=plain, max_queue=1, ping_interval=None) as line:
            text = json.dumps({"id": 1, "inputs": {"say": "x" * 5000}}).encode()
            frame = Frame(Opcode.TEXT, text).serialize(mask=True)
            count = 2000
            # Beside the library, whose `send` and `recv` wait for each other.
            sender = threading.Thread(target=lambda: plain.sendall(frame * count))
            sender.start()
            until(lambda: server.tally.in_flight >= IN_FLIGHT, "the bound is reached")
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                assert server.tally.in_flight <= IN_FLIGHT
                time.sleep(0.01)
            assert sender.is_alive()
            while taken < count:
                assert hear(line)["answer"]["prediction"] == "x" * 5000
                taken += 1
            sender.join(20)
        server.at_rest()


@pytest.mark.parametrize("asleep", [False, True])
def test_a_client_that_vanishes_leaves_nothing_behind(
    server: Served, nap: Path, asleep: bool
) -> None:
    """In the middle of a message or while a model computes for it."""
    with dial(server, "moody") as line:
        if asleep:
            say(line, id=1, inputs={"sleep": str(nap)})
            until(lambda: server.loop.serving.service("moody").running, "the model sleeps")
        line.socket.sendall(Frame(Opcode.TEXT, b"x" * 90, fin=False).serialize(mask=True)[:50])
        line.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: not server.connections, "the connection is gone")
        until(lambda: not server.tally.in_flight, "nothing is in flight")
        nap.touch()
        with pytest.raises(ConnectionClosedError):
            line.recv()
    until(lambda: not server.loop.serving.service("moody").running, "the model is awake")


def test_a_breach_while_a_model_computes_leaves_nothing_behind(server: Served, nap: Path) -> None:
    """The connection is closed at once, and the answer that comes later has nowhere to go."""
    with dial(server, "moody") as line:
        say(line, id=1, inputs={"sleep": str(nap)})
        until(lambda: server.loop.serving.service("moody").running, "the model sleeps")
        for _ in range(3 * IN_FLIGHT):
            say(line, id=2, inputs={"say": "later"})
        line.socket.sendall(b"\x83\x80abcd")
        until(lambda: server.tally.in_flight >= IN_FLIGHT, "the bound is reached")
        nap.touch()
        farewell(line)


def test_large_messages_count_for_many(tmp_path: Path, nap: Path) -> None:
    """A connection holds no more of them than the size of the largest, and one more."""
    with running(tmp_path) as loop, served(loop) as server, dial(server, "moody") as line:
        say(line, id=0, inputs={"sleep": str(nap), "say": "woken"})
        until(lambda: loop.serving.service("moody").running, "the model sleeps")
        text = json.dumps({"id": 1, "inputs": {"x": ["y" * 1000] * 4000}}).encode()
        frame = Frame(Opcode.TEXT, text).serialize(mask=True)
        sender = threading.Thread(target=lambda: line.socket.sendall(frame * 10))
        sender.start()
        until(lambda: server.tally.in_flight >= IN_FLIGHT, "the bound is reached")
        time.sleep(0.3)
        assert len(loop.serving.service("moody").queue) <= 5
        nap.touch()
        assert [hear(line)["id"] for _ in range(11)] == [0] + [1] * 10
        sender.join(20)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(None, None), (["loopline.v1"], "loopline.v1"), (["other", "loopline.v1"], "loopline.v1")],
)
def test_the_sub_protocol_is_negotiated(
    server: Served, offered: list[str] | None, chosen: str | None
) -> None:
    """Ours is chosen where it is offered."""
    with dial(server, subprotocols=offered) as line:
        assert line.subprotocol == chosen


def test_tokens_are_asked_for(tmp_path: Path) -> None:
    """In the header, or where a browser can put one; scopes and revocation hold as on HTTP."""
    with running(tmp_path, token_required=True) as loop, served(loop) as server:
        token = loop.access.issue("caller", ["predict"])
        header = {"additional_headers": {"authorization": f"Bearer {token}"}}
        word = {"subprotocols": ["loopline.v1", f"bearer.{token}"]}
        for options in (header, word):
            with dial(server, **options) as line:
                assert ask(line, id=1, inputs=SETOSA)["answer"]["prediction"] == "setosa"
                refused = ask(line, id=2, verb="outcome", inputs={"id": "x", "outcome": "setosa"})
                assert refused["error"]["code"] == "forbidden"
                assert line.subprotocol == (None if options is header else "loopline.v1")
        for options in ({}, {"subprotocols": ["loopline.v1", "bearer.ll_wrong"]}):
            with dial(server, **options) as line:
                assert hear(line)["error"]["code"] == "unauthorized"
                assert farewell(line) == (1008, "unauthorized")
        with dial(server, **header) as line:
            assert "answer" in ask(line, id=1, inputs=SETOSA)
            loop.access.revoke("caller")
            say(line, id=2, inputs=SETOSA)
            say(line, id=3, inputs=SETOSA)
            assert farewell(line) == (1008, "unauthorized")
        server.at_rest()


def test_a_page_of_another_site_is_refused(server: Served) -> None:
    """As on HTTP, where no token is asked for; our own pages may come."""
    host, port = server.address
    with dial(server, origin="http://evil.example") as line:
        assert hear(line)["error"]["code"] == "forbidden"
        assert farewell(line) == (1008, "forbidden")
    with dial(server, origin=f"http://{host}:{port}") as line:
        assert "answer" in ask(line, id=1, inputs=SETOSA)


def test_an_unknown_model_is_named_with_those_that_are_there(server: Served) -> None:
    """And the connection closes, because nothing can be asked on it."""
    with dial(server, "iriss") as line:
        error = hear(line)["error"]
        assert error["code"] == "unknown-model" and "iris" in error["detail"]
        assert farewell(line) == (1008, "unknown-model")


def test_a_path_that_takes_no_sockets_refuses_the_upgrade(server: Served) -> None:
    """Before there is a connection."""
    host, port = server.address
    with pytest.raises(InvalidStatus, match="403"):
        with connect(f"ws://{host}:{port}/v1/models/iris/predict"):
            pass


def test_overload_is_an_answer_too(tmp_path: Path, nap: Path) -> None:
    """One connection waits for itself; where others fill the queue, a request is refused."""
    with running(tmp_path, max_queue=3) as loop, served(loop) as server, ExitStack() as stack:
        lines = [stack.enter_context(dial(server, "moody")) for _ in range(5)]
        service = loop.serving.service("moody")
        say(lines[0], id="slow", inputs={"sleep": str(nap)})
        until(lambda: service.running, "the model sleeps")
        for number in range(8):
            say(lines[0], id=number, inputs={})
        for line in lines[1:4]:
            say(line, id="next", inputs={})
        until(lambda: len(service.queue) == 3, "the queue is full")
        error = ask(lines[4], id="late", inputs={})["error"]
        assert error["code"] == "overloaded" and error["retry_after"] == 1
        nap.touch()
        assert all("answer" in hear(line) for line in lines[1:4])
        assert all("answer" in hear(lines[0]) for _ in range(9))
        stack.close()
        server.at_rest()


@pytest.mark.parametrize(("kindly", "code"), [(False, 1001), (True, 1012)])
def test_a_stopping_server_answers_what_it_has_taken(
    tmp_path: Path, nap: Path, kindly: bool, code: int
) -> None:
    """Then it closes, saying whether another process goes on; idle connections close at once."""
    with running(tmp_path) as loop, served(loop) as server:
        with dial(server, "moody") as line, dial(server) as idle:
            say(line, id=1, inputs={"sleep": str(nap), "say": "woken"})
            until(lambda: loop.serving.service("moody").running, "the model sleeps")
            server.leave(kindly)
            assert farewell(idle)[0] == code
            nap.touch()
            assert hear(line)["answer"]["prediction"] == "woken"
            assert farewell(line)[0] == code
            server.join()


def test_a_swap_in_the_middle_fails_nothing(tmp_path: Path) -> None:
    """Answers come from one version and then from the other, and none is an error."""
    with running(tmp_path) as loop, served(loop) as server, dial(server) as line:
        data = iris()
        model = DummyClassifier(strategy="constant", constant="virginica")
        model.fit(data[FEATURES], data["species"])
        seen = []
        for turn in range(40):
            for number in range(20):
                say(line, id=number, inputs=SETOSA)
            if turn == 20:
                swapped = Definition(name="iris", model=model, data=data, target="species")
                loop.registry.register(swapped)
            answers = [hear(line)["answer"] for _ in range(20)]
            seen += [(each["version"], each["prediction"]) for each in answers]
        assert sorted(seen) == seen
        assert set(seen) == {(1, "setosa"), (2, "virginica")}


def test_a_real_server_answers(tmp_path: Path, free_port: int) -> None:
    """`loopline serve`, one connection, then a stop while it is open."""
    (tmp_path / "app.py").write_text(APP)
    server = Server(tmp_path, free_port, "app.py", "--workers", "0")
    try:
        server.start(ready="/readyz")
        url = f"ws://127.0.0.1:{free_port}/v1/models/double/socket"
        with connect(url) as line:
            assert ask(line, id=1, inputs={"x": 21.0})["answer"]["prediction"] == 42.0
            assert server.process is not None
            server.process.terminate()
            assert farewell(line)[0] == 1001
    finally:
        assert server.stop() == 0


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(["id", "inputs", "verb", "ids", "x"])
JSON_VALUES: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        SCALARS
        | st.lists(JSON_VALUES, max_size=3)
        | st.dictionaries(NAMES, JSON_VALUES, max_size=4)
    )
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_request_or_a_reasoned_refusal(data: bytes) -> None:
    """Of either kind; what is read is about what the message says."""
    for kind in (codecs.JSON, codecs.MSGPACK):
        try:
            message, body, read_as = read(data, kind)
        except Misread as wrong:
            assert wrong.error.code in ("unreadable", "invalid-input") and wrong.error.detail
            assert wrong.id is None or type(wrong.id) in (str, int)
        else:
            assert message.verb in ("predict", "outcome", "learn")
            assert body and read_as in (codecs.JSON, codecs.MSGPACK)


def test_the_documented_program_works(server: Served) -> None:
    """As it stands on the page."""
    page = (Path(__file__).parents[2] / "docs/how-to/stream-predictions.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    host, port = server.address
    rows = [VIRGINICA if number % 2 else SETOSA for number in range(250)]
    rows[7] = {**SETOSA, "petal_width": "abc"}
    told = dict(names["predict"](f"ws://{host}:{port}/v1/models/iris/socket", rows))
    assert len(told) == 250 and told[7]["code"] == "invalid-input"
    assert told[8]["prediction"] == "setosa" and told[249]["prediction"] == "virginica"
