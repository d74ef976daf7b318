from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression

from loopline.adapters import lane as lanes
from loopline.adapters.lane import Lane, Request
from loopline.asks import Answer, Ask
from loopline.errors import LooplineError
from loopline.loop import Loop
from loopline.registry import Definition
from tests.adapters.sockets import PING, PREDICT, Headers, Line, Served, masked, post, served, until
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA, running, sales

MOODY = "/v1/models/moody/predict"
SALES = "/v1/models/sales/predict"
CLOSE = [("connection", "close")]


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


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A loop with narrow bounds."""
    folder = tmp_path_factory.mktemp("tight")
    with running(folder, max_body=400, max_queue=3) as loop:
        yield loop


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A loop that requires tokens."""
    with running(tmp_path_factory.mktemp("guarded"), token_required=True) as loop:
        yield loop


class Nap:
    """A call of the moody model, on the thread, that lasts until it is woken."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def request(self, query: str = "") -> bytes:
        """What has the model fall asleep."""
        return post({"say": "woken", "sleep": str(self._file)}, MOODY + query)

    def wake(self) -> None:
        """Let the call end."""
        self._file.touch()


@pytest.fixture
def nap(tmp_path: Path) -> Iterator[Nap]:
    """A nap that ends with the test."""
    nap = Nap(tmp_path / "w")
    yield nap
    nap.wake()


def say(text: Any, query: str = "", headers: Headers = ()) -> bytes:
    """A request that the moody model answers at once, if it is awake."""
    return post({"say": text}, MOODY + query, headers)


def asleep(loop: Loop) -> None:
    """Wait until the moody model sleeps."""
    until(lambda: loop.serving.service("moody").running, "the model is asleep")


def queued(loop: Loop, count: int) -> None:
    """Wait until so many requests wait for the moody model."""
    until(lambda: len(loop.serving.service("moody").queue) == count, f"{count} are in the queue")


def said(line: Line) -> Any:
    """What the moody model answers next on a connection."""
    answer = line.answer()
    assert answer.status == 200, answer
    return answer.json()["prediction"]


def only(server: Served) -> Lane:
    """The one connection that is open."""
    until(lambda: len(server.connections) == 1, "one connection is open")
    (connection,) = server.connections
    assert isinstance(connection, Lane)
    return connection


def in_lane(connection: Lane) -> bool:
    """Whether the lane took the last request of a connection."""
    return isinstance(connection.cycle, Request)


# One connection, one request after the other.


@pytest.mark.parametrize(
    ("version", "header", "stays"),
    [
        ("1.1", None, True),
        ("1.1", "keep-alive", True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", False),
        ("1.0", "close", False),
    ],
)
def test_a_connection_stays_open_as_agreed(
    server: Served, version: str, header: str | None, stays: bool
) -> None:
    """By default in HTTP/1.1 and never in 1.0, as without the lane."""
    headers = [("connection", header)] if header else []
    with server.line() as line:
        answer = line.ask(post(SETOSA, headers=headers, version=version))
        assert answer.json()["prediction"] == "setosa"
        assert in_lane(only(server)) if stays else True
        assert answer.headers.get("connection") == (None if stays else "close")
        if stays:
            assert line.ask(post(VIRGINICA)).json()["prediction"] == "virginica"
        else:
            assert line.rest() == b""


def test_answers_say_when_they_were_given(server: Served) -> None:
    """With the headers that the application's answers have too."""
    with server.line() as line:
        answer = line.ask(post(SETOSA))
        assert list(answer.headers) == ["date", "content-type", "content-length"]
        assert list(line.ask(post(b"5")).headers) == list(answer.headers)


@pytest.mark.parametrize("places", [[], [1], [10, 20, 21], range(200)])
def test_a_body_may_come_in_chunks(server: Served, places: Any) -> None:
    """As many as the client likes."""
    with server.line() as line:
        for _ in range(2):
            answer = line.ask(post(SETOSA, chunks=places))
            assert answer.json()["prediction"] == "setosa"
            assert in_lane(only(server))


def test_a_body_may_come_in_very_many_chunks(server: Served) -> None:
    """The time that takes does not grow faster than their number."""
    body = b"[%b]" % b",".join([b"[5.1,3.5,1.4,0.2]"] * 20) + b" " * 300_000
    with server.line() as line:
        sending = threading.Thread(target=line.send, args=(post(body, chunks=range(len(body))),))
        sending.start()
        assert len(line.answer().json()["predictions"]) == 20
        sending.join()


def test_what_follows_a_chunked_body_is_no_header(server: Served) -> None:
    """Trailers neither name the prediction nor stay for the next request that has such a header."""
    head, _, rest = post(SETOSA, chunks=[]).partition(b"\r\n\r\n")
    trailed = head + b"\r\n\r\n" + rest.removesuffix(b"\r\n") + b"prediction-id: trailed\r\n\r\n"
    named = head + b"\r\nprediction-id: trailed\r\n\r\n" + rest
    with server.line() as line:
        assert line.ask(trailed).json()["id"] != "trailed"
        assert line.ask(named).json()["id"] == "trailed"


def test_a_client_may_wait_for_leave_to_send_its_body(server: Served) -> None:
    """`Expect: 100-continue` gets it, and the connection serves on."""
    head, _, body = post(SETOSA, headers=[("expect", "100-continue")]).partition(b"\r\n\r\n")
    with server.line() as line:
        assert line.ask(head + b"\r\n\r\n").status == 100
        assert line.ask(body).json()["prediction"] == "setosa"
        assert line.ask(post(VIRGINICA)).json()["prediction"] == "virginica"


def test_requests_may_come_byte_by_byte(server: Served) -> None:
    """A head and a body that trickle in are put together."""
    data = post(SETOSA) + post(VIRGINICA, chunks=[5]) + PING
    with server.line() as line:
        line.send(data, range(len(data)))
        assert line.answer().json()["prediction"] == "setosa"
        assert line.answer().json()["prediction"] == "virginica"
        assert line.answer().body == b"pong"


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("chunks", [None, [100, 200, 450, 460]])
@pytest.mark.parametrize("whole", [True, False])
def test_a_body_over_the_limit_is_refused(
    tight: Loop, lane: bool, chunks: list[int] | None, whole: bool
) -> None:
    """Before its end; what still comes of it is passed over, and the connection serves on."""
    data = post(b" " * 500, chunks=chunks)
    with served(tight, lane) as server, server.line() as line:
        line.send(data if whole else data[:-40])
        answer = line.answer()
        assert (answer.status, answer.json()["code"]) == (413, "too-large")
        line.send(b"" if whole else data[-40:])
        assert line.ask(post(SETOSA)).json()["prediction"] == "setosa"
        assert line.ask(post(SETOSA, headers=CLOSE)).headers["connection"] == "close"
        assert line.rest() == b""


def test_an_oversized_body_waits_for_its_turn(tight: Loop, nap: Nap) -> None:
    """Its refusal never overtakes the answer to an earlier request."""
    with served(tight) as server, server.line() as line:
        line.send(nap.request() + post(b" " * 500, chunks=[450]) + say("last"))
        asleep(tight)
        nap.wake()
        assert said(line) == "woken"
        assert line.answer().status == 413
        assert said(line) == "last"


@pytest.mark.parametrize("root", ["/ml", "/ml/"])
def test_the_lane_lies_behind_a_proxy_too(tmp_path: Path, root: str) -> None:
    """Whether or not the proxy cuts the prefix off, as in the application."""
    paths = [prefix + PREDICT for prefix in ("", "/ml", "/ml/ml", "/m", "/mlx")]
    requests = [post(SETOSA, path, [("x-request-id", "a")]) for path in paths]
    with running(tmp_path, root_path=root) as loop, ExitStack() as stack:
        streams = []
        for lane in (True, False):
            server = stack.enter_context(served(loop, lane, root_path=root.rstrip("/")))
            line = stack.enter_context(server.line())
            assert line.ask(requests[1]).status == 200
            assert in_lane(only(server)) is lane
            line.send(b"".join(requests) + PING)
            streams.append(masked(line.rest()))
        assert streams[0] == streams[1]
        assert streams[0].startswith(b"HTTP/1.1 200 OK")


# Several requests at once on one connection.


def test_pipelined_answers_come_in_order(server: Served, loop: Loop, nap: Nap) -> None:
    """A slow model's answer first, if it was asked first, whoever answers the others."""
    with server.line() as line:
        line.send(nap.request() + post(SETOSA) + PING.replace(b"close", b"keep-alive"))
        line.send(say("again") + post(VIRGINICA))
        asleep(loop)
        assert server.ask(post(SETOSA)).status == 200
        nap.wake()
        assert said(line) == "woken"
        assert line.answer().json()["prediction"] == "setosa"
        assert line.answer().body == b"pong"
        assert said(line) == "again"
        assert line.answer().json()["prediction"] == "virginica"


def test_the_time_of_a_pipelined_request_begins_with_its_turn(
    server: Served, loop: Loop, nap: Nap
) -> None:
    """As without the lane: what an earlier one took is not counted against it."""
    with server.line() as line, server.line() as other:
        line.send(nap.request() + post(SETOSA, f"{PREDICT}?timeout=0.1"))
        asleep(loop)
        assert other.ask(say("now?", "?timeout=0.3")).status == 504
        nap.wake()
        assert said(line) == "woken"
        assert line.answer().status == 200


def test_what_is_refused_at_once_does_not_pile_up(tight: Loop, nap: Nap) -> None:
    """Hundreds of pipelined requests that no batch takes are answered one by one."""
    with served(tight) as server, ExitStack() as stack:
        line, *others = (stack.enter_context(server.line()) for _ in range(4))
        line.send(nap.request() + say("shed") * 400)
        asleep(tight)
        for number, other in enumerate(others, start=1):
            other.send(say(number))
            queued(tight, number)
        nap.wake()
        assert said(line) == "woken"
        assert {line.answer().status for _ in range(400)} <= {200, 503}
        assert [said(other) for other in others] == [1, 2, 3]


def test_what_is_too_long_does_not_pile_up(tight: Loop, nap: Nap) -> None:
    """Nor do hundreds of bodies over the limit."""
    with served(tight) as server, server.line() as line:
        line.send(nap.request() + post(b" " * 401, chunks=[]) * 300)
        asleep(tight)
        nap.wake()
        assert said(line) == "woken"
        assert [line.answer().status for _ in range(300)] == [413] * 300


def test_a_client_cannot_have_the_server_keep_all_that_it_sends(server: Served) -> None:
    """Who pipelines without reading is not read from either, once some requests wait."""
    request, depths = post([[5.1, 3.5, 1.4, 0.2]] * 50), []
    with server.line(4096) as line:
        sending = threading.Thread(target=line.send, args=(request * 6000,))
        sending.start()
        connection = only(server)
        until(lambda: connection.flow.write_paused, "the client's answers are piled up")
        for _ in range(50):
            assert server.ask(post(SETOSA)).status == 200
            depths.append(server.within(lambda: len(connection.pipeline)))
        line.reset()
        sending.join()
    assert max(depths) * len(request) < 2**22


# Clients that go.


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_who_has_sent_all_still_gets_the_answers(
    server: Served, loop: Loop, nap: Nap, count: int, slow: bool
) -> None:
    """After shutting down the sending side, and then the connection is closed."""
    with server.line() as line:
        line.send((nap.request() if slow else say("woken")) + say("again") * (count - 1))
        line.finish()
        if slow:
            asleep(loop)
            until(lambda: server.tally.in_flight == count, "the server has read it all")
            nap.wake()
        assert [said(line) for _ in range(count)] == ["woken", "again", "again"][:count]
        assert line.rest() == b""


@pytest.mark.parametrize(
    "data", [b"", b"POST /v1", post(SETOSA)[:-5], post(SETOSA, chunks=[])[:-5]]
)
def test_who_leaves_in_the_middle_gets_nothing(server: Served, data: bytes) -> None:
    """The connection is closed, and the request counts as hung up if its head was there."""
    hung_up = server.tally.statuses[499]
    with server.line() as line:
        line.send(data)
        if b"\r\n\r\n" in data:
            until(lambda: server.tally.in_flight == 1, "the head was read")
        line.finish()
        assert line.rest() == b""
    server.at_rest()
    assert server.tally.statuses[499] == hung_up + (b"\r\n\r\n" in data)


@pytest.mark.parametrize("way", [Line.reset, Line.close])
@pytest.mark.parametrize("called", [False, True])
def test_who_vanishes_does_not_disturb_the_others(
    server: Served, loop: Loop, nap: Nap, way: Any, called: bool
) -> None:
    """Neither while they wait for a batch together, nor while its call runs.

    A client that closes looks like one that only has no more to send, so its answer may count as
    given.
    """
    before = server.tally.statuses.copy()
    with ExitStack() as stack:
        first, gone, *others = (stack.enter_context(server.line()) for _ in range(5))
        first.send(say("first") if called else nap.request())
        if called:
            assert said(first) == "first"
        else:
            asleep(loop)
        gone.send(nap.request() if called else say("gone"))
        if called:
            asleep(loop)
        else:
            queued(loop, 1)
        for number, other in enumerate(others):
            other.send(say(number))
            queued(loop, number + (1 if called else 2))
        way(gone)
        if way is Line.reset:
            until(lambda: len(server.connections) == 4, "the server has noticed")
            assert server.tally.statuses[499] == before[499] + 1
        nap.wake()
        assert [said(other) for other in others] == [0, 1, 2]
        if not called:
            assert said(first) == "woken"
        assert server.ask(say("on")).status == 200
    server.at_rest()
    counted = server.tally.statuses - before
    assert counted[200] + counted[499] == 6
    assert counted[499] == 1 if way is Line.reset else counted[499] <= 1


def test_a_whole_pipeline_may_vanish(server: Served, loop: Loop, nap: Nap) -> None:
    """All of its requests count as hung up, and none stays in flight."""
    before = server.tally.statuses[499]
    with server.line() as line, server.line() as other:
        line.send(nap.request() + say("a") + PING.replace(b"close", b"keep-alive") + say("b"))
        until(lambda: server.tally.in_flight == 3, "the lane's requests were read")
        asleep(loop)
        other.send(say("on"))
        queued(loop, 1)
        line.reset()
        nap.wake()
        assert said(other) == "on"
    server.at_rest()
    assert server.tally.statuses[499] - before in (2, 3)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("cut_off", [False, True])
def test_who_hangs_up_on_the_application_is_no_error_of_ours(
    server: Served, count: int, cut_off: bool
) -> None:
    """Neither in the log nor in the count."""
    before = server.tally.statuses[500]
    sent = post(SETOSA, headers=[("accept", "text/html")]) * count + post(SETOSA)[:-5] * cut_off
    for _ in range(100):
        with server.line() as line:
            line.send(sent)
            line.finish()
            line.rest()
    server.at_rest()
    assert server.tally.statuses[500] == before
    assert not server.errors


class Recorder:
    """Somebody else who waits for a batch."""

    def __init__(self, ask: Ask, deaf: bool = False) -> None:
        self.ask = ask
        self.gone = False
        self.heard: list[Answer] = []
        self._deaf = deaf

    def settle(self, answer: Answer) -> None:
        """Take the answer."""
        if self._deaf:
            raise ConnectionError("nobody there")
        self.heard.append(answer)


@pytest.mark.parametrize("model", ["iris", "moody"])
def test_one_that_cannot_be_told_does_not_keep_the_others_waiting(
    server: Served, loop: Loop, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the batch is answered on the event loop or on the thread."""
    row = {"say": 1} if model == "moody" else SETOSA
    asks = [Ask(model, value=row) for _ in range(4)]
    waiters = [Recorder(ask, deaf=index in (0, 2)) for index, ask in enumerate(asks)]

    def enqueue() -> None:
        for waiter in waiters:
            loop.serving.enqueue(waiter)

    server.within(enqueue)
    until(lambda: waiters[3].heard, "the last one has its answer")
    assert [len(waiter.heard) for waiter in waiters] == [0, 1, 0, 1]
    assert not any(isinstance(waiter.heard[0], LooplineError) for waiter in waiters[1::2])
    told = [each for each in caplog.records if "could not be delivered" in each.getMessage()]
    assert len(told) == 2


# Clients that are slow.


def test_who_says_nothing_is_hung_up_on(
    loop: Loop, nap: Nap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first request, in its head or body, or between two; not while it is our turn."""
    monkeypatch.setattr(lanes, "LOOK", 0.02)
    monkeypatch.setattr(lanes, "PATIENCE", 0.2)
    with served(loop) as server, ExitStack() as stack:
        server.server._server.config.timeout_keep_alive = 0  # between two requests
        busy, *silent = (stack.enter_context(server.line()) for _ in range(6))
        busy.send(nap.request())
        asleep(loop)
        silent[1].send(b"POST /v1/mod")
        silent[2].send(post(SETOSA)[:-1])
        silent[3].send(post(SETOSA))
        silent[4].send(PING.replace(b"close", b"keep-alive"))
        assert silent[3].answer().status == 200
        assert silent[4].answer().status == 200
        assert [line.rest() for line in silent] == [b""] * 5
        assert len(server.connections) == 1
        nap.wake()
        assert said(busy) == "woken"


def test_nobody_is_hung_up_on_while_the_server_does_not_read(
    loop: Loop, nap: Nap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that is stuck behind an earlier request is not the client's silence."""
    monkeypatch.setattr(lanes, "LOOK", 0.02)
    monkeypatch.setattr(lanes, "PATIENCE", 0.2)
    with served(loop) as server, server.line() as line:
        body = b"[[5.1,3.5,1.4,0.2]]" + b" " * 2**23
        sending = threading.Thread(target=line.send, args=(nap.request() + post(body),))
        sending.start()
        until(lambda: only(server).flow.read_paused, "the second request waits")
        with server.line() as silent:
            assert silent.rest() == b""
        nap.wake()
        assert said(line) == "woken"
        assert line.answer().json()["predictions"][0]["prediction"] == "setosa"
        sending.join()


def test_a_second_request_may_be_as_slow_as_the_first(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has begun it is in the middle of a request, and no longer between two."""
    monkeypatch.setattr(lanes, "LOOK", 0.02)
    with served(loop) as server, ExitStack() as stack:
        server.server._server.config.timeout_keep_alive = 1
        line, idle = stack.enter_context(server.line()), stack.enter_context(server.line())
        assert line.ask(post(SETOSA)).status == 200
        line.send(post(SETOSA)[:30])
        assert idle.ask(post(SETOSA)).status == 200
        assert idle.rest() == b""
        assert line.ask(post(SETOSA)[30:]).status == 200


def test_a_slow_reader_gets_every_answer(loop: Loop) -> None:
    """In order, while others are served, and without being written more than it takes."""
    requests = [post({"TV": [number] * 100}, SALES) for number in range(150)]
    answers = LinearRegression().fit(sales()[["TV"]], sales()["Sales"])
    with served(loop, buffer=8192) as server, server.line(8192) as line:
        sending = threading.Thread(target=line.send, args=(b"".join(requests),))
        sending.start()
        connection = only(server)
        until(lambda: connection.flow.write_paused, "the server waits for the reader")
        sizes = []
        for _ in range(20):
            assert server.ask(post(SETOSA)).json()["prediction"] == "setosa"
            sizes.append(server.within(connection.transport.get_write_buffer_size))
        assert 0 < max(sizes) < 2**17
        assert connection.flow.write_paused
        for number in range(150):
            told = line.answer().json()["predictions"]
            expected = answers.intercept_ + answers.coef_[0] * number
            assert [each["prediction"] for each in told] == pytest.approx([expected] * 100)
        sending.join()


def test_a_slow_reader_may_have_sent_all(loop: Loop) -> None:
    """Its answers wait for it though it has shut down its sending side."""
    request = post({"TV": [1] * 100}, SALES)
    with served(loop, buffer=8192) as server, server.line(8192) as line:
        line.send(request * 30)
        line.finish()
        connection = only(server)
        until(lambda: connection.flow.write_paused, "the server waits for the reader")
        assert [line.answer().status for _ in range(30)] == [200] * 30
        assert line.rest() == b""
        server.at_rest()


def test_a_slow_reader_may_vanish(loop: Loop) -> None:
    """What was to be written is forgotten, and nothing stays in flight."""
    with served(loop, buffer=8192) as server, server.line(8192) as line:
        line.send(post({"TV": [1] * 100}, SALES) * 30)
        connection = only(server)
        until(lambda: connection.flow.write_paused, "the server waits for the reader")
        line.reset()
        server.at_rest()
        assert server.tally.statuses[499] > 0
        assert sum(server.tally.statuses.values()) == 30


# The end of the server.


def test_a_leaving_server_answers_what_it_has_taken(loop: Loop, nap: Nap) -> None:
    """Idle connections are closed, the others after their answers, and `run` returns."""
    with served(loop) as server, ExitStack() as stack:
        idle, slow, many, half = (stack.enter_context(server.line()) for _ in range(4))
        assert idle.ask(post(SETOSA)).status == 200
        slow.send(nap.request())
        asleep(loop)
        many.send(say("one") + say("two") + say("three"))
        half.send(post(SETOSA)[:-5])
        until(lambda: server.tally.in_flight == 5, "all was read")
        server.leave()
        assert idle.rest() == b""
        half.send(post(SETOSA)[-5:])
        answer = half.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        nap.wake()
        assert slow.answer().headers["connection"] == "close"
        assert [said(many), said(many), said(many)] == ["one", "two", "three"]
        assert [line.rest() for line in (slow, many, half)] == [b""] * 3
        server.join()
        with pytest.raises(ConnectionRefusedError):
            server.line()
    assert not server.tally.in_flight


def test_a_kindly_leaving_server_answers_one_more(loop: Loop, nap: Nap) -> None:
    """On each connection, saying that it is the last; whoever then asks again goes elsewhere."""
    with served(loop) as server, ExitStack() as stack:
        used, fresh, app, busy, begun = (stack.enter_context(server.line()) for _ in range(5))
        assert used.ask(post(SETOSA)).status == 200
        assert app.ask(PING.replace(b"close", b"keep-alive")).status == 200
        busy.send(nap.request())
        begun.send(b"POST /v1/models")
        asleep(loop)
        until(lambda: len(server.connections) == 5, "all are there")
        server.leave(kindly=True)
        until(lambda: sum(each.last for each in server.connections) == 4, "it takes its leave")
        for line in (used, fresh):
            answer = line.ask(post(SETOSA))
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert line.rest() == b""
        answer = app.ask(PING.replace(b"close", b"keep-alive"))
        assert (answer.body, answer.headers["connection"]) == (b"pong", "close")
        begun.send(post(SETOSA).removeprefix(b"POST /v1/models"))
        assert begun.answer().headers["connection"] == "close"
        nap.wake()
        assert busy.answer().headers["connection"] == "close"
        assert [line.rest() for line in (app, busy, begun)] == [b""] * 3
        server.join()


def test_a_kindly_leaving_server_does_not_wait_for_ever(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle connection that has no more to ask is closed after a while."""
    monkeypatch.setattr(lanes, "LOOK", 0.02)
    with served(loop) as server:
        server.server._server.config.timeout_keep_alive = 1
        with server.line() as line:
            assert line.ask(post(SETOSA)).status == 200
            server.leave(kindly=True)
            assert line.rest() == b""
        server.join()


# Without the lane, and in and out of it.


def test_it_works_without_the_lane(loop: Loop, nap: Nap) -> None:
    """All requests then go to the application."""
    with served(loop, lane=False) as server, server.line() as line:
        line.send(nap.request() + post(SETOSA) + say("last"))
        asleep(loop)
        assert not in_lane(only(server))
        nap.wake()
        assert said(line) == "woken"
        assert line.answer().json()["prediction"] == "setosa"
        assert said(line) == "last"
        server.leave(kindly=True)
        until(lambda: only(server).last, "it takes its leave")
        assert line.ask(post(SETOSA)).headers["connection"] == "close"
        assert line.rest() == b""
        server.join()


def test_the_application_says_why_a_model_cannot_answer(server: Served, loop: Loop) -> None:
    """Until it can, when the lane takes the next request on the same connection."""
    service = loop.serving.service("moody")
    with server.line() as line:
        assert line.ask(say(1)).status == 200
        service.trouble = "it sulks"
        answer = line.ask(say(2))
        assert (answer.status, answer.json()["detail"]) == (503, "it sulks")
        assert not in_lane(only(server))
        service.trouble = None
        assert line.ask(say(3)).json()["prediction"] == 3
        assert in_lane(only(server))


def test_the_application_looks_up_tokens(guarded: Loop) -> None:
    """Those that are not known yet, not right or revoked; the lane knows the others."""
    good = guarded.access.issue("good", ["predict"])
    poor = guarded.access.issue("poor", ["learn"])

    def bear(token: str) -> bytes:
        return post(SETOSA, headers=[("authorization", f"Bearer {token}")])

    with served(guarded) as server, server.line() as line:
        assert line.ask(post(SETOSA)).status == 401
        assert line.ask(bear("ll_wrong")).status == 401
        assert not in_lane(only(server))
        # Believed tokens have to be read again from time to time, by the application.
        until(lambda: line.ask(bear(good)).status == 200 and in_lane(only(server)), "it is known")
        answer = line.ask(bear(poor))
        assert (answer.status, answer.json()["code"]) == (403, "forbidden")
        guarded.access.revoke("good")
        answer = line.ask(bear(good))
        assert (answer.status, answer.headers["www-authenticate"]) == (
            401,
            'Bearer realm="loopline"',
        )
        assert line.ask(bear(guarded.access.issue("good", ["predict"]))).status == 200


def test_a_stranger_has_the_event_loop_ask_nobody(guarded: Loop) -> None:
    """Who has shown no token cannot make it look for a model that is not there."""
    paths = [f"/v1/models/{name}/predict?probabilities=true" for name in ("nope", "iris")]
    refreshed = []
    with served(guarded) as server, pytest.MonkeyPatch.context() as patch:
        refresh = guarded.serving.refresh

        def spy(force: bool = False) -> bool:
            refreshed.append(threading.current_thread().name)
            return refresh(force)

        patch.setattr(guarded.serving, "refresh", spy)
        assert [server.ask(post(SETOSA, path)).status for path in paths] == [401, 401]
    assert "server" not in refreshed


def test_memory_of_paths_is_bounded(server: Served) -> None:
    """Whoever asks for many models that are not there, with long names, leaves nothing behind."""
    paths = [f"/v1/models/{'x' * 5000}{number}/predict" for number in range(50)]
    with server.line() as line:
        assert {line.ask(post(SETOSA, path)).status for path in paths} == {404}
    express: Any = server.door.admit
    assert sum(len(path) for path in express.__self__._models) < 50_000


def test_a_fragment_is_no_query(server: Served) -> None:
    """What stands behind a number sign says nothing, as in the application."""
    answers = [
        server.ask(post(SETOSA, f"{PREDICT}?{query}"))
        for query in ("x=1#&version=99", "#&version=99", "x#?version=99", "version=1#9")
    ]
    assert [answer.status for answer in answers] == [200] * 4


# Models that change, are overloaded or late.


def add_version(loop: Loop, factor: float) -> None:
    """Give the model of sales a new version, which answers so many times as much."""
    money = sales()
    model = LinearRegression().fit(money[["TV"]], money["Sales"] * factor)
    loop.registry.register(Definition(name="sales", model=model, data=money, target="Sales"))
    loop.serving.refresh()


def test_a_swap_fails_no_call(tmp_path: Path) -> None:
    """Steady callers see the version change, each at one moment, and nothing else."""
    with running(tmp_path) as loop, served(loop) as server:
        stop, at = threading.Event(), [1]
        seen: list[list[tuple[int, int, int]]] = [[] for _ in range(3)]

        def ask(mine: list[tuple[int, int, int]]) -> None:
            with server.line() as line:
                while not stop.is_set():
                    least = at[0]
                    answer = line.ask(post({"TV": 100}, SALES))
                    mine.append((answer.status, least, answer.json().get("version", 0)))

        callers = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
        for caller in callers:
            caller.start()

        def go_on() -> None:
            counts = [len(mine) for mine in seen]
            until(
                lambda: all(len(m) > count + 5 for m, count in zip(seen, counts, strict=True)),
                "the callers go on",
            )

        try:
            go_on()
            add_version(loop, 2.0)
            at[0] = 2
            go_on()
            add_version(loop, 3.0)
            at[0] = 3
            go_on()
            loop.promote("sales", 1)
            go_on()
        finally:
            stop.set()
            for caller in callers:
                caller.join()
    for mine in seen:
        assert {status for status, *_ in mine} == {200}
        versions = [version for _, _, version in mine]
        changes = [one for one, two in pairwise(versions) if one != two]
        assert changes == [1, 2, 3] and versions[-1] == 1
        rising = mine[: versions.index(3)]
        assert all(version >= least for _, least, version in rising)


def test_capabilities_are_those_of_the_model_as_it_is_now(tmp_path: Path) -> None:
    """A head that was understood once is understood anew when the model is another."""
    request = post({"TV": 100}, f"{SALES}?probabilities=true")
    money = sales()
    data = money.assign(Sales=np.where(money["TV"] > 150, "high", "low"))
    able = DummyClassifier().fit(data[["TV"]], data["Sales"])
    with running(tmp_path) as loop, served(loop) as server, ExitStack() as stack:
        first, second = stack.enter_context(server.line()), stack.enter_context(server.line())
        assert first.ask(request).status == 422
        loop.registry.register(Definition(name="sales", model=able, data=data, target="Sales"))
        loop.serving.refresh()
        for line in (first, second):
            assert set(line.ask(request).json()["probabilities"]) == {"high", "low"}
        add_version(loop, 2.0)
        for line in (first, second):
            assert line.ask(request).status == 422


def test_past_the_bound_requests_are_shed(tight: Loop, nap: Nap) -> None:
    """While a call runs only so many wait, and afterwards there is room again."""
    with served(tight) as server, ExitStack() as stack:
        first, *others = (stack.enter_context(server.line()) for _ in range(10))
        first.send(nap.request())
        asleep(tight)
        for number, line in enumerate(others):
            line.send(say(number))
            queued(tight, min(number + 1, 3))
        for line in others[3:]:
            answer = line.answer()
            assert (answer.status, answer.json()["code"]) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"
        nap.wake()
        assert said(first) == "woken"
        assert [said(line) for line in others[:3]] == [0, 1, 2]
        assert others[5].ask(say("room")).json()["prediction"] == "room"


def test_a_deadline_is_kept_in_the_queue(server: Served, loop: Loop, nap: Nap) -> None:
    """Who waits behind a slow call is told when the time is over, and the connection serves on."""
    with server.line() as first, server.line() as late, server.line() as patient:
        first.send(nap.request())
        asleep(loop)
        patient.send(say("patient"))
        answer = late.ask(say("late", "?timeout=0.05"))
        assert (answer.status, answer.json()["code"]) == (504, "timeout")
        nap.wake()
        assert said(first) == "woken"
        assert said(patient) == "patient"
        assert late.ask(say("again", "?timeout=20")).status == 200


def test_a_deadline_is_kept_in_the_call(server: Served, loop: Loop, nap: Nap) -> None:
    """A model that hangs answers 504, then 503 until it comes back; others go on."""
    with server.line() as line:
        assert line.ask(nap.request("?timeout=0.05")).status == 504
        assert line.ask(say("now?")).status == 503
        assert line.ask(post(SETOSA)).status == 200
        nap.wake()
        until(lambda: line.ask(say("now?")).status == 200, "the model is back")


# Many connections.


def test_everybody_gets_the_answer_to_their_own_row(server: Served) -> None:
    """Hundreds of connections, whose requests are answered together."""
    model = LinearRegression().fit(sales()[["TV"]], sales()["Sales"])
    chance = random.Random(7)
    with ExitStack() as stack:
        lines = [stack.enter_context(server.line()) for _ in range(300)]
        for turn in range(4):
            asked = []
            for index, line in enumerate(lines):
                many = chance.random() < 0.3
                values = [turn * 1000 + index + step / 8 for step in range(8 if many else 1)]
                body = {"TV": values} if many else {"TV": values[0]}
                data = post(body, SALES, chunks=[3] if chance.random() < 0.2 else None)
                asked.append((line, values, many))
                line.send(data, [chance.randrange(len(data))] if chance.random() < 0.5 else ())
            chance.shuffle(asked)
            for line, values, many in asked:
                told = line.answer().json()
                found = told["predictions"] if many else [told]
                expected = model.intercept_ + model.coef_[0] * np.array(values)
                assert [each["prediction"] for each in found] == pytest.approx(list(expected))


def test_bad_rows_fail_alone(server: Served) -> None:
    """Among good ones in the same batch, each is told its own errors."""
    with ExitStack() as stack:
        lines = [stack.enter_context(server.line()) for _ in range(60)]
        for index, line in enumerate(lines):
            line.send(post(SETOSA | ({FEATURES[index % 4]: "x"} if index % 3 else {})))
        for index, line in enumerate(lines):
            answer = line.answer()
            if index % 3:
                assert answer.json()["errors"][0]["pointer"] == f"/{FEATURES[index % 4]}"
            else:
                assert answer.json()["prediction"] == "setosa"


@pytest.mark.parametrize("value", [1e200, -1e300])
def test_huge_numbers_are_numbers(server: Served, value: float) -> None:
    """Nothing on their way overflows, and nobody is warned of it."""
    assert server.ask(post({"TV": value}, SALES)).status == 200


def test_the_tally_is_one_for_both_ways(loop: Loop) -> None:
    """What the lane answers and what the application answers is counted together."""
    with served(loop) as server, server.line() as line:
        assert line.ask(post(SETOSA)).status == 200
        assert line.ask(post(b"{")).status == 400
        assert line.ask(PING.replace(b"close", b"keep-alive")).status == 200
        until(lambda: sum(server.tally.statuses.values()) == 3, "all is counted")
        assert server.tally.statuses == {200: 2, 400: 1}
        text = line.ask(PING.replace(b"/ping", b"/metrics")).body.decode().splitlines()
        assert any(each.startswith('loopline_http_requests_total{status="400"}') for each in text)
