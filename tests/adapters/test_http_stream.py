from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from loopline.loop import Loop
from loopline.registry import Definition
from tests.adapters.sockets import PREDICT, Line, Served, served, until
from tests.adapters.speaking import SETOSA, VIRGINICA, Http, problem, running, sales, speaking
from tests.servers import Server

NDJSON = "application/x-ndjson"
MSGPACK = "application/msgpack"


@pytest.fixture(scope="module")
def server(loop: Loop) -> Iterator[Served]:
    """A server of the shared loop."""
    with served(loop) as server:
        yield server


class Stream:
    """A request whose rows are sent while its answers are read, through `http.client`."""

    def __init__(self, address: tuple[str, int], path: str = PREDICT) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=20)
        self.connection.putrequest("POST", path)
        self.connection.putheader("content-type", NDJSON)
        self.connection.putheader("transfer-encoding", "chunked")
        self.connection.endheaders()
        self._answer: http.client.HTTPResponse | None = None

    def send(self, *rows: Any) -> None:
        """Send some lines."""
        data = b"".join(
            (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
        )
        self.connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        """Say that no more rows come."""
        self.connection.send(b"0\r\n\r\n")

    def hear(self) -> dict[str, Any]:
        """The next answer."""
        if self._answer is None:
            self._answer = self.connection.getresponse()
            assert self._answer.status == 200
            assert self._answer.headers["content-type"] == NDJSON
        told: dict[str, Any] = json.loads(self._answer.readline())
        return told

    def rest(self) -> bytes:
        """What comes up to the end."""
        assert self._answer is not None
        return self._answer.read()

    def close(self) -> None:
        """Hang up."""
        if self._answer is not None:
            self._answer.close()
        self.connection.close()


def lines(*rows: Any) -> bytes:
    """The body of a request."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def ask(http: Http, body: bytes, path: str = PREDICT, **headers: str) -> list[dict[str, Any]]:
    """Send a whole stream; returns the answers."""
    answer = http.post(path, content=body, headers={"content-type": NDJSON, **headers})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == NDJSON
    return [json.loads(line) for line in answer.content.splitlines()]


def test_answers_come_before_the_last_row_is_sent(server: Served) -> None:
    """Row by row if that is how they come, and in order."""
    stream = Stream(server.address)
    for row, species in [(SETOSA, "setosa"), (VIRGINICA, "virginica"), (SETOSA, "setosa")]:
        stream.send(row)
        told = stream.hear()
        assert told["prediction"] == species and told["version"] == 1 and len(told["id"]) == 36
    stream.send(SETOSA, VIRGINICA)
    assert [stream.hear()["prediction"] for _ in range(2)] == ["setosa", "virginica"]
    stream.finish()
    assert stream.rest() == b""
    stream.close()
    server.at_rest()


def test_a_bad_row_has_its_error_in_its_place(http: Http) -> None:
    """With its line and the field; the others are answered, in one call with their neighbours."""
    wrong = {**SETOSA, "petal_width": "abc"}
    body = lines(SETOSA, wrong, VIRGINICA) + b"\n  \n{oops\n" + lines([5.1, 3.5, 1.4, 0.2], 5)
    told = ask(http, body + json.dumps(SETOSA).encode())
    assert [each.get("prediction") for each in told] == [
        "setosa", None, "virginica", None, "setosa", None, "setosa"
    ]  # fmt: skip
    bad = [each for each in told if "error" in each]
    assert [each["line"] for each in bad] == [2, 6, 8]
    codes = [each["error"]["code"] for each in bad]
    assert codes == ["invalid-input", "unreadable", "invalid-input"]
    assert bad[0]["error"]["errors"][0]["pointer"] == "/petal_width"
    assert "'abc'" in bad[0]["error"]["detail"] and "/0" not in bad[0]["error"]["detail"]


def test_a_line_holds_one_row(http: Http) -> None:
    """Columns, a list of rows, or two documents in a line are errors of that line."""
    columns = {name: [value, value] for name, value in SETOSA.items()}
    body = lines(columns, [SETOSA, SETOSA]) + json.dumps(SETOSA).encode() * 2 + b"\n"
    told = ask(http, body + lines(SETOSA))
    assert ["error" in each for each in told] == [True, True, True, False]


def test_rows_may_bring_their_ids(http: Http, loop: Loop) -> None:
    """Beside rows that do not; an id's first answer stands."""
    told = ask(http, lines({"inputs": SETOSA, "ids": ["mine"]}, VIRGINICA))
    assert [each["prediction"] for each in told] == ["setosa", "virginica"]
    assert told[0]["id"] == "mine" and len(told[1]["id"]) == 36
    until(lambda: loop.prediction("iris", "mine"), "it is in the log")
    (again,) = ask(http, lines({"inputs": VIRGINICA, "ids": ["mine"]}))
    assert again["prediction"] == "setosa"
    wrong = lines({"inputs": SETOSA, "ids": ["a", "b"]}, {"inputs": SETOSA, "ids": [""]}, SETOSA)
    bad = ask(http, wrong)
    assert [each["error"]["errors"][0]["pointer"] for each in bad[:2]] == ["/ids", "/ids/0"]
    assert bad[2]["prediction"] == "setosa"


def test_options_hold_for_all_rows(http: Http) -> None:
    """Version, alias and probabilities, as for any request."""
    (told,) = ask(http, lines(SETOSA), f"{PREDICT}?version=1&probabilities=true")
    assert set(told["probabilities"]) == {"setosa", "versicolor", "virginica"}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models/nobody/predict", 404, "unknown-model"),
        (f"{PREDICT}?version=9", 404, "unknown-version"),
        (f"{PREDICT}?timeout=x", 422, "invalid-input"),
        ("/v1/models/sales/predict?probabilities=1", 422, "invalid-input"),
    ],
)
def test_what_cannot_be_answered_at_all_is_a_problem(
    http: Http, path: str, status: int, code: str
) -> None:
    """With its own status, before a row is read."""
    answer = http.post(path, content=lines(SETOSA), headers={"content-type": NDJSON})
    problem(answer, status, code)


def test_a_model_that_raises_fails_its_row(http: Http) -> None:
    """And nobody else's."""
    body = lines({"say": "one"}, {"raise": True}, {"say": "two"})
    told = ask(http, body, "/v1/models/moody/predict")
    assert [each.get("prediction") for each in told] == ["one", None, "two"]
    assert told[1]["error"]["code"] == "model-failed" and told[1]["line"] == 2
    assert "Traceback" not in json.dumps(told)


def test_the_router_streams_too(loop: Loop, server: Served) -> None:
    """The same bytes with the door's own answers closed, and an empty stream is no error."""
    with speaking(loop, quick=False) as slow:
        (told,) = ask(slow, lines(VIRGINICA))
        assert told["prediction"] == "virginica"
        assert ask(slow, b"\n\n") == []


def test_ndjson_goes_in_or_out_alone(http: Http) -> None:
    """A stream answered as one document is all or nothing; one document is answered in lines."""
    wanted = {"content-type": NDJSON, "accept": "application/json"}
    answer = http.post(PREDICT, content=lines(SETOSA, VIRGINICA), headers=wanted)
    assert [each["prediction"] for each in answer.json()["predictions"]] == ["setosa", "virginica"]
    problem(http.post(PREDICT, content=b"{}\n{", headers=wanted), 400, "unreadable")
    answer = http.post(PREDICT, [SETOSA, VIRGINICA], headers={"accept": NDJSON})
    told = [json.loads(line) for line in answer.content.splitlines()]
    assert [each["prediction"] for each in told] == ["setosa", "virginica"]


@pytest.mark.parametrize("name", [MSGPACK, "application/x-msgpack", "application/vnd.msgpack"])
def test_messagepack_in_and_out(http: Http, name: str) -> None:
    """One row, many and ids; by the type of the body or by what is accepted; errors stay JSON."""
    headers = {"content-type": name}
    for value in (SETOSA, [SETOSA, VIRGINICA], {"inputs": [SETOSA], "ids": [f"by {name}"]}):
        answer = http.post(PREDICT, content=msgspec.msgpack.encode(value), headers=headers)
        assert answer.headers["content-type"] == MSGPACK
        told = msgspec.msgpack.decode(answer.content)
        first = told["predictions"][0] if "predictions" in told else told
        assert first["prediction"] == "setosa"
    answer = http.post(PREDICT, SETOSA, headers={"accept": name})
    assert msgspec.msgpack.decode(answer.content)["prediction"] == "setosa"
    wrong = msgspec.msgpack.encode({**SETOSA, "petal_width": "abc"})
    told = problem(http.post(PREDICT, content=wrong, headers=headers), 422, "invalid-input")
    assert told["errors"][0]["pointer"] == "/petal_width"
    row = msgspec.msgpack.encode({**SETOSA, "species": "setosa"})
    assert http.post("/v1/models/iris/learn", content=row, headers=headers).status_code == 202


def test_a_client_that_hangs_up_stops_the_stream(server: Served) -> None:
    """In the middle of a row; what was answered before is in the log, and nothing is left over."""
    stream = Stream(server.address)
    stream.send(SETOSA)
    id = stream.hear()["id"]
    stream.connection.send(b'8\r\n{"sepal_\r\n')
    stream.close()
    server.at_rest()
    until(lambda: server.loop.prediction("iris", id), "the answer is in the log")


def test_a_client_that_does_not_read_is_not_read_either(tmp_path: Path) -> None:
    """Rows stay with the client that does not take its answers, however many there are."""
    with running(tmp_path) as loop, served(loop, buffer=1 << 15) as server:
        head = f"POST /v1/models/moody/predict HTTP/1.1\r\nhost: h\r\ncontent-type: {NDJSON}\r\n"
        row = json.dumps({"say": "x" * 1000}).encode() + b"\n"
        count = 20_000
        with server.line(1 << 15) as line:
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
            line.send(f"{head}content-length: {len(row) * count}\r\n\r\n".encode())
            sent = [0]

            def send() -> None:
                for _ in range(count // 100):
                    line.socket.sendall(row * 100)
                    sent[0] += 100

            sender = threading.Thread(target=send)
            sender.start()
            before = -1
            while sent[0] != before or not before:
                before = sent[0]
                time.sleep(0.3)
            assert sender.is_alive() and sent[0] < count
            rows = read_all(line, count)
            sender.join(20)
        assert rows == count
        server.at_rest()


def read_all(line: Line, count: int) -> int:
    """Read answers up to the end of a chunked body; returns how many there were."""
    found, tail = 0, b""
    while not tail.endswith(b"0\r\n\r\n"):
        data = line.socket.recv(1 << 20)
        assert data
        found += data.count(b'"prediction"')
        # A word that was cut in two.
        found += (tail[-11:] + data[:11]).count(b'"prediction"')
        tail = (tail + data)[-50:]
    return found


def test_memory_stays_constant(tmp_path: Path, free_port: int) -> None:
    """A real server answers many megabytes of rows without growing by as much."""
    (tmp_path / "app.py").write_text(
        "from loopline import Loopline\n"
        "app = Loopline()\n"
        "def size(row: dict) -> int:\n"
        "    return len(row['x'])\n"
        "app.add('size', size, log='none')\n"
    )
    server = Server(tmp_path, free_port, "app.py", "--workers", "0")
    try:
        server.start(ready="/readyz")
        path = "/v1/models/size/predict"
        row = json.dumps({"x": "y" * 8_000}).encode() + b"\n"
        replica = psutil.Process(server.pid("replica-0"))

        def ask(count: int) -> int:
            body = (row * 20 for _ in range(count // 20))
            with httpx.stream(
                "POST", server.url + path, content=body, headers={"content-type": NDJSON}
            ) as answer:
                told = [json.loads(line) for line in answer.iter_lines()]
            assert {each["prediction"] for each in told} == {8_000}
            return len(told)

        assert ask(400) == 400
        before = replica.memory_info().rss
        assert ask(8000) == 8000  # 64 MB
        assert replica.memory_info().rss - before < 24 * 2**20
    finally:
        assert server.stop() == 0


def test_a_line_over_the_limit_ends_the_stream(tmp_path: Path) -> None:
    """The whole may be longer than a body may be, a line may not."""
    with running(tmp_path, max_body=1000) as loop, served(loop) as server:
        stream = Stream(server.address)
        for _ in range(30):
            stream.send(SETOSA)
            assert stream.hear()["prediction"] == "setosa"
        stream.send(b"[" * 2000)
        told = stream.hear()
        assert told["error"]["code"] in ("too-large", "unreadable") and told["line"] == 31
        stream.close()
        server.at_rest()


def test_overload_makes_the_stream_wait(tmp_path: Path) -> None:
    """A stream has nobody to come back later, so it waits for room in the queue."""
    nap = tmp_path / "w"
    with running(tmp_path, max_queue=1) as loop, served(loop) as server:
        url = f"http://{server.address[0]}:{server.address[1]}/v1/models/moody/predict"
        pool = [
            threading.Thread(
                target=httpx.post, args=(url,), kwargs={"json": {"sleep": str(nap)}, "timeout": 30}
            )
            for _ in range(2)
        ]
        pool[0].start()
        service = loop.serving.service("moody")
        until(lambda: service.running, "the model sleeps")
        pool[1].start()
        until(lambda: service.queue, "the queue is full")
        stream = Stream(server.address, "/v1/models/moody/predict")
        stream.send({"say": "late"})
        until(lambda: server.tally.in_flight == 3, "the stream is begun")
        time.sleep(0.1)
        nap.touch()
        assert stream.hear()["prediction"] == "late"
        stream.close()
        for each in pool:
            each.join(20)
        server.at_rest()


def test_a_swap_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    """The rows after it are answered by the new version."""
    with running(tmp_path) as loop, served(loop) as server:
        stream = Stream(server.address, "/v1/models/sales/predict")
        stream.send({"TV": 50})
        assert stream.hear()["version"] == 1
        money = sales()
        model = LinearRegression().fit(money[["TV"]], money["Sales"] * 2)
        loop.registry.register(Definition(name="sales", model=model, data=money, target="Sales"))
        loop.serving.refresh()
        stream.send({"TV": 50})
        assert stream.hear()["version"] == 2
        stream.finish()
        stream.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([json.dumps(SETOSA).encode(), b"", b" ", b"{", b"null", b"\xff"])
        | st.binary(max_size=20).filter(lambda data: b"\n" not in data),
        max_size=8,
    )
)
def test_every_line_has_one_answer(http: Http, given: list[bytes]) -> None:
    """Whatever the lines are, but for blank ones; a row that is good is answered."""
    told = ask(http, b"\n".join(given))
    real = [(at, text) for at, text in enumerate(given, 1) if text and not text.isspace()]
    assert len(told) == len(real)
    for (number, text), each in zip(real, told, strict=True):
        if text == json.dumps(SETOSA).encode():
            assert each["prediction"] == "setosa"
        else:
            assert each["line"] == number and each["error"]["code"]
