"""The Python client: one set of verbs, the same over HTTP and in this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loopline.app import load_app
from loopline.client import Client, Predicted
from loopline.errors import (
    Forbidden,
    InvalidInput,
    LooplineError,
    Overloaded,
    TimedOut,
    Unauthorized,
    Unavailable,
    UnknownJob,
    UnknownModel,
    UnknownPrediction,
    UnknownVersion,
    Unreadable,
    WrongState,
)
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("here", "there")

APP = '''
from pathlib import Path

from sklearn.linear_model import LinearRegression, LogisticRegression

from loopline import Loopline

HERE = Path(__file__).parent
app = Loopline(DATA)
app.add("line", LinearRegression(), data=HERE / "line.csv", target="y")
app.add("sign", LogisticRegression(), data=HERE / "sign.csv", target="sign")


def shout(data):
    """Say it louder."""
    return {"said": data["word"].upper()}


app.add("shout", shout)
'''


def write_app(folder: Path, data: str) -> None:
    """An application with a regression, a classifier and a function."""
    lines = "".join(f"{x},{3 + 2 * x}\n" for x in range(20))
    (folder / "line.csv").write_text(f"x,y\n{lines}")
    signs = "".join(f"{x},{'up' if x > 0 else 'down'}\n" for x in range(-10, 11) if x)
    (folder / "sign.csv").write_text(f"x,sign\n{signs}")
    (folder / "app.py").write_text(APP.replace("DATA", data))


@pytest.fixture(scope="module")
def here(session_dir: Path) -> Iterator[Client]:
    """A client of an application in this process."""
    folder = session_dir / "client-here"
    folder.mkdir()
    write_app(folder, 'str(HERE / "data")')
    app = load_app(str(folder / "app.py"))
    with app:
        client = Client(app)
        finish_first(client)
        yield client


@pytest.fixture(scope="module")
def server(session_dir: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Server]:
    """A server of the same application."""
    folder = session_dir / "client-there"
    folder.mkdir()
    write_app(folder, "")
    server = Server(folder, free_ports(1)[0], "app.py")
    server.start("/readyz")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def there(server: Server) -> Iterator[Client]:
    """A client of that server."""
    with Client(server.url) as client:
        yield client


@pytest.fixture(params=["here", "there"])
def client(request: pytest.FixtureRequest) -> Client:
    """Either of them."""
    found: Client = request.getfixturevalue(request.param)
    return found


def finish_first(client: Client, model: str | None = None) -> None:
    """Wait for the trainings that registering began, and until what they made is served."""
    for job in client.jobs(model=model)["jobs"]:
        assert client.job(job["job"], wait=60.0)["state"] == "done"
    deadline = time.monotonic() + 10.0
    while not client.ready()["ready"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# The verbs, on both sides.


def test_one_row_is_one_prediction(client: Client) -> None:
    """A mapping is answered by one record with its id, version and value."""
    answer = client.predict("line", {"x": 10}, version=1)
    assert isinstance(answer, Predicted)
    assert (answer.model, answer.version) == ("line", 1)
    assert answer.prediction == pytest.approx(23.0)
    assert answer.output == answer.prediction
    assert answer.probabilities is None


@pytest.mark.parametrize(
    "rows",
    [
        [{"x": 1}, {"x": 2}],
        [[1], [2]],
        {"x": [1, 2]},
        np.array([[1.0], [2.0]]),
        pd.DataFrame({"x": [1, 2]}),
        [{"x": np.float64(1)}, {"x": np.int64(2)}],
    ],
    ids=["mappings", "lists", "columns", "array", "frame", "numpy scalars"],
)
def test_many_rows_are_a_list(client: Client, rows: Any) -> None:
    """Every shape of many rows is answered by one prediction per row, in order."""
    answers = client.predict("line", rows, version=1)
    assert [each.prediction for each in answers] == pytest.approx([5.0, 7.0])
    assert len({each.id for each in answers}) == 2


def test_ids_are_kept(client: Client) -> None:
    """An id given twice is answered with the first answer."""
    first = client.predict("line", {"x": 1}, ids=["mine"])
    client.outcome("line", "mine", 5)  # This waits until the prediction is in the log.
    again = client.predict("line", {"x": 100}, ids=["mine"])
    assert (first.id, again.id) == ("mine", "mine")
    assert again.prediction == first.prediction


def test_text_rows_are_read_as_numbers(client: Client) -> None:
    """Texts, as a CSV file has them, count as numbers where they are meant as such."""
    answer = client.predict("line", {"x": "4"}, text=True, version=1)
    assert answer.prediction == pytest.approx(11.0)
    assert client.predict("line", {"x": "4"}, text=True, ids=["texted"]).id == "texted"
    many = client.predict("line", [{"x": "1"}, {"x": "2"}], text=True, version=1)
    assert [each.prediction for each in many] == pytest.approx([5.0, 7.0])
    with pytest.raises(InvalidInput):
        client.predict("line", {"x": "4"})


def test_probabilities_come_by_class(client: Client) -> None:
    """They are sent when asked for, and refused by a model that has none."""
    answer = client.predict("sign", {"x": 9}, probabilities=True)
    assert answer.prediction == "up"
    assert answer.probabilities is not None
    assert set(answer.probabilities) == {"up", "down"}
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match="probabilities"):
        client.predict("line", {"x": 9}, probabilities=True)


def test_outcomes_join_by_id(client: Client) -> None:
    """One outcome, many at once, and the status of each."""
    first, second = client.predict("line", [{"x": 1}, {"x": 2}])
    told = client.outcome("line", first.id, 5.5)
    assert told["results"] == [{"id": first.id, "status": "joined"}]
    items = [{"id": first.id, "outcome": 5.5}, {"id": second.id, "outcome": 7, "at": 1e9}]
    assert client.outcome("line", items)["duplicate"] == 1
    shown = client.prediction("line", second.id)
    assert (shown["input"], shown["outcome"]["value"]) == ({"x": 2}, 7)


def test_outcome_errors_name_the_field(client: Client) -> None:
    """A single outcome's errors point into it, those of many into the list."""
    with pytest.raises(InvalidInput) as caught:
        client.outcome("line", "some id", "much")
    assert [field.pointer for field in caught.value.fields] == ["/outcome"]
    with pytest.raises(InvalidInput) as caught:
        client.outcome("line", [{"id": "a", "outcome": 1}, {"id": "b"}])
    assert [field.pointer for field in caught.value.fields] == ["/1/outcome"]


def test_learn_train_promote_rollback(client: Client) -> None:
    """The life of a version, and the decisions it leaves."""
    accepted = client.learn("line", [{"x": 100, "y": 203}, {"x": 101, "y": 205}])
    assert accepted["accepted"] == 2
    assert accepted["summary"]["x"]["count"] == accepted["rows"]
    assert client.learn("line", [102, 207])["accepted"] == 1
    before = len(client.versions("line"))
    job = client.train("line", wait=60.0, reason="a test")
    assert (job["state"], job["reason"]) == ("done", "a test")
    versions = client.versions("line")
    assert [each["version"] for each in versions] == list(range(1, before + 2))
    newest = versions[-1]
    assert newest["aliases"] == ["champion"]
    assert client.version("line", newest["version"]) == newest
    assert client.rollback("line")["verdict"] == "rollback"
    assert client.describe("line")["champion"] == before
    assert client.promote("line", before + 1)["promoted"] is True
    with pytest.raises(WrongState, match="champion already"):
        client.promote("line", before + 1)
    assert [each["verdict"] for each in client.decisions("line")][-2:] == ["rollback", "promote"]


def test_score_and_scores(client: Client) -> None:
    """A version is scored on given rows; answers are scored as they were given."""
    rows = [{"x": 1, "y": 5}, {"x": 2, "y": 7}, {"x": 3, "y": 9}]
    told = client.score("line", rows, version=1)
    assert (told["rows"], told["on"]) == (3, "given rows")
    assert told["metrics"]["rmse"] == pytest.approx(0.0, abs=1e-6)
    assert client.score("line", version=1)["version"] == 1
    assert {"versions", "history"} <= client.scores("line").keys()


def test_models_are_added_and_removed(client: Client) -> None:
    """A definition as plain data makes a model, while the others go on."""
    rows = [{"x": float(x), "y": 2.0 * x} for x in range(10)]
    told = client.add("fresh", {"model": "linear", "data": rows, "target": "y"})
    assert told["name"] == "fresh"
    finish_first(client, "fresh")
    assert client.predict("fresh", {"x": 4}).prediction == pytest.approx(8.0)
    assert "fresh" in {each["name"] for each in client.models()}
    client.remove("fresh")
    assert "fresh" not in {each["name"] for each in client.models()}


def test_job_is_followed_to_its_end(client: Client) -> None:
    """Events come in order, and the last one says how it ended."""
    job = client.train("sign")["job"]
    events = list(client.follow(job))
    assert events[0]["kind"] == "queued"
    assert events[-1]["kind"] == "done"
    assert {event["job"] for event in events} == {job}
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    assert [each["kind"] for each in client.follow(job)][-1] == "done"
    assert client.cancel(job)["state"] == "done"
    assert client.jobs(model="sign", state="done", most=1)["jobs"][0]["job"] == job


def test_failed_job_has_its_error(client: Client) -> None:
    """A training that fails is an answer, with the reason in it."""
    job = client.train("line", {"no_such_parameter": 1}, wait=60.0)
    assert job["state"] == "failed"
    assert "no_such_parameter" in job["error"]["detail"]


def test_predictions_are_read_back(client: Client) -> None:
    """All that were logged, in order, within a span of time."""
    ids = [each.id for each in client.predict("shout", [{"word": "a"}, {"word": "b"}])]
    client.outcome("shout", ids[0], "A")  # This waits until the predictions are in the log.
    found = list(client.predictions("shout"))
    assert [each["id"] for each in found][-2:] == ids
    assert found[-1]["prediction"] == "B"
    assert list(client.predictions("shout", until=1.0)) == []


def test_tokens_are_made_and_revoked(client: Client) -> None:
    """Their text is told once; the list never has it."""
    text = client.create_token("ci", ["predict", "outcome"])
    assert text.startswith("ll_")
    (token,) = [each for each in client.tokens() if each["name"] == "ci"]
    assert (token["scopes"], token["revoked"]) == (["predict", "outcome"], False)
    assert token.keys() == {"name", "scopes", "created", "revoked"}
    client.revoke_token("ci")
    with pytest.raises(InvalidInput, match="no token 'ci'"):
        client.revoke_token("ci")


def test_the_installation_is_described(client: Client) -> None:
    """Readiness, workers and a model's description."""
    assert client.ready() == {"ready": True, "reasons": {}}
    assert client.workers()
    told = client.describe("line")
    assert (told["target"], told["columns"]) == ("y", ["x", "y"])


CALLS: dict[str, tuple[type[LooplineError], Callable[[Client], Any]]] = {
    "model": (UnknownModel, lambda c: c.predict("nobody", {"x": 1})),
    "version": (UnknownVersion, lambda c: c.predict("line", {"x": 1}, version=99)),
    "alias": (UnknownVersion, lambda c: c.predict("line", {"x": 1}, alias="challenger")),
    "prediction": (UnknownPrediction, lambda c: c.prediction("line", "nobody")),
    "job": (UnknownJob, lambda c: c.job("nobody")),
    "no report": (WrongState, lambda c: c.report("shout")),
    "no target": (WrongState, lambda c: c.learn("shout", {"word": "a"})),
    "definition": (InvalidInput, lambda c: c.add("bad", {"colour": "red"})),
}


@pytest.mark.parametrize("case", CALLS)
def test_errors_are_the_same_classes(client: Client, case: str) -> None:
    """What the loop raises is what the client raises, wherever the loop runs."""
    kind, call = CALLS[case]
    with pytest.raises(kind) as caught:
        call(client)
    assert type(caught.value) is kind
    assert caught.value.detail


def test_both_sides_say_the_same(here: Client, there: Client) -> None:
    """Detail, code and fields of an error do not depend on the way it came."""
    told = []
    for client in (here, there):
        with pytest.raises(InvalidInput) as caught:
            client.predict("line", [{"x": 1}, {"x": "abc"}, {}])
        told.append((caught.value.code, caught.value.detail, caught.value.fields))
    assert told[0] == told[1]
    assert [field.pointer for field in told[0][2]] == ["/1/x", "/2/x"]


def test_many_threads_share_a_client(there: Client) -> None:
    """Each thread has a connection of its own, and each caller its own answer."""
    wrong: list[int] = []

    def ask(number: int) -> None:
        for x in range(number, number + 20):
            if there.predict("line", {"x": x}, version=1).prediction != pytest.approx(3 + 2 * x):
                wrong.append(x)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# HTTP itself, against small servers that speak it in odd ways.


@contextmanager
def odd_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on a free port that answers every request in the given way."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def reply(
    handler: BaseHTTPRequestHandler,
    body: Any,
    status: int = 200,
    kind: str = "application/json",
    **headers: str,
) -> None:
    """Answer with a body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.rfile.read(int(handler.headers.get("content-length", 0)))
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(raw)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


PROBLEMS = {
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
    "overloaded": Overloaded,
    "timeout": TimedOut,
    "unavailable": Unavailable,
    "unsupported-media-type": Unreadable,
    "unknown-path": InvalidInput,
    "internal-error": LooplineError,
    "something-new": LooplineError,
}


@pytest.mark.parametrize("code", PROBLEMS)
def test_problem_details_become_errors(code: str) -> None:
    """The code names the class; detail, fields and the time to wait come along."""
    problem = {"code": code, "detail": "so", "errors": [{"pointer": "/x", "detail": "why"}]}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, problem, 503, "application/problem+json", retry_after="7")

    with (
        odd_server(answer) as url,
        Client(url) as client,
        pytest.raises(PROBLEMS[code]) as caught,
    ):
        client.models()
    error = caught.value
    assert type(error) is PROBLEMS[code]
    assert (error.detail, error.retry_after) == ("so", 7.0)
    assert [field.pointer for field in error.fields] == ["/x"]


def test_token_and_prefix_are_sent() -> None:
    """Every request carries the token, under the path that the URL names."""
    seen = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append((handler.path, handler.headers["authorization"]))
        reply(handler, {"models": []})

    with odd_server(answer) as url, Client(f"{url}/ml/", token="ll_x") as client:
        assert client.models() == []
    assert seen == [("/ml/v1/models", "Bearer ll_x")]


def test_names_are_escaped() -> None:
    """A name that is none stays inside its part of the path."""
    seen = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.path)
        reply(handler, {})

    with odd_server(answer) as url, Client(url) as client:
        client.prediction("a/b", "c d?e")
    assert seen == ["/v1/models/a%2Fb/predictions/c%20d%3Fe"]


def test_connection_closed_between_requests_is_replaced() -> None:
    """A server that hangs up after each answer is asked again on a fresh connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, {"job": "j"})
        handler.close_connection = True

    with odd_server(answer) as url, Client(url) as client:
        for _ in range(3):
            assert client.job("j") == {"job": "j"}


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b"nothing"])
def test_other_servers_are_recognised(body: bytes) -> None:
    """An answer that is not Loopline's is an error of its own, not an exception of the parser."""
    with (
        odd_server(lambda handler: reply(handler, body)) as url,
        Client(url) as client,
        pytest.raises(Unavailable),
    ):
        client.describe("line")


def test_gateway_errors_are_told() -> None:
    """A page of a proxy in between becomes one sentence."""
    with (
        odd_server(lambda handler: reply(handler, b"<html>", 502, "text/html")) as url,
        Client(url) as client,
        pytest.raises(Unavailable, match="502"),
    ):
        client.models()


def test_slow_answer_is_timed_out() -> None:
    """The client waits as long as it was told, and no longer."""
    hold = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        hold.wait(10)

    with (
        odd_server(answer) as url,
        Client(url, timeout=0.05) as client,
    ):
        with pytest.raises(TimedOut):
            client.models()
        hold.set()


def test_refused_call_is_tried_again(free_port: int) -> None:
    """A reading call outlives the moment in which nobody listens."""
    refused = socket.socket()
    refused.bind(("127.0.0.1", free_port))
    listening = threading.Event()

    def accept() -> None:
        refused.listen()
        listening.set()
        connection, _ = refused.accept()
        connection.recv(4096)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n"
        connection.sendall(head + b'{"models":[]}')
        connection.close()

    timer = threading.Timer(0.15, accept)
    timer.start()
    with Client(f"http://127.0.0.1:{free_port}") as client:
        assert client.models() == []
    timer.join()
    refused.close()
    assert listening.is_set()


def test_nobody_there_is_unavailable(free_port: int) -> None:
    """The error names the address."""
    with (
        Client(f"http://127.0.0.1:{free_port}") as client,
        pytest.raises(Unavailable, match=str(free_port)),
    ):
        client.learn("line", {"x": 1, "y": 2})


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "://"])
def test_url_has_to_be_one(url: str) -> None:
    """What is not the URL of a server is refused at once."""
    with pytest.raises(InvalidInput, match="URL"):
        Client(url)


def test_unsendable_value_is_named(there: Client) -> None:
    """A value that JSON does not have is refused by its type."""
    with pytest.raises(InvalidInput, match="object"):
        there.predict("line", {"x": object()})
