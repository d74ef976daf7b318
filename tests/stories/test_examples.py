"""Every example does what its README says, as the reader finds it, against one real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.clients import EXAMPLES, go, node, python
from tests.servers import Server

README = (EXAMPLES / "README.md").read_text("utf-8")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
SERVE = "loopline serve app.py --grpc 127.0.0.1:8002 --zerorpc tcp://127.0.0.1:4242"
COMMANDS = re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)
PYTHON = ("call_http", "call_v2", "call_grpc", "call_zerorpc", "stream_websocket")
TESTED = ("curl/run.sh", *PYTHON, "go run", "node node-gateway", "BACKEND=http")


class Place:
    """The server, and the environment that leads the examples to it."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        http, grpc, zerorpc = ports
        self.environ = {
            **os.environ,
            "URL": f"http://127.0.0.1:{http}",
            "GRPC": f"127.0.0.1:{grpc}",
            "ZERORPC": f"tcp://127.0.0.1:{zerorpc}",
        }
        arguments = SERVE.removeprefix("loopline serve ").split()
        arguments[0] = str(EXAMPLES / "app.py")
        arguments[2] = self.environ["GRPC"]
        arguments[4] = self.environ["ZERORPC"]
        self.server = Server(folder, http, *arguments)

    def run(self, word: str, interpreter: Path | None = None) -> str:
        """Run the README's command that holds a word; returns what it prints."""
        (command,) = [each for each in COMMANDS if word in each]
        path = f"{(interpreter or Path(sys.executable)).parent}{os.pathsep}{os.environ['PATH']}"
        return self.shell(["sh", "-c", command], PATH=path)

    def shell(self, command: list[str], **more: str) -> str:
        """Run a command in the folder of the examples; it has to succeed."""
        done = subprocess.run(
            command,
            cwd=EXAMPLES,
            env={**self.environ, **more},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def sales(self, budget: float) -> float:
        """What the model says now."""
        answer: float = self.server.post("/v1/models/sales/predict", {"TV": budget})["prediction"]
        return answer


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Place]:
    """The application of the examples, served as the README says, on ports of its own."""
    place = Place(tmp_path_factory.mktemp("examples"), free_ports(3))
    place.server.start("/readyz")
    yield place
    place.server.stop()


def seen(pattern: str, printed: str) -> re.Match[str]:
    """Find a pattern with `<id>` in the place of an id, and tell everything where it is not."""
    found = re.search(pattern.replace("<id>", UUID), printed, re.MULTILINE)
    assert found, f"{pattern}\nis not in\n{printed}"
    return found


def test_every_example_is_tested() -> None:
    """What the README's table runs, and how it serves, is what the tests of this module run."""
    assert f"$ {SERVE}\n" in README
    assert len(COMMANDS) == len(TESTED)
    for word in TESTED:
        assert any(word in command for command in COMMANDS)
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (EXAMPLES / link).exists()


def test_curl(place: Place) -> None:
    """The loop, V2 and an error, each under its heading."""
    printed = place.run("curl/run.sh")
    parts = dict(re.findall(r"^# ([^\n]+)\n(.*?)(?=^# |\Z)", printed, re.MULTILINE | re.DOTALL))
    seen('^{"model":"sales","version":\\d+,"id":"<id>","prediction":', parts["One row"])
    assert parts["Many rows"].count('"prediction":') == 2
    assert '"status":"joined"' in parts["What became true of the first"]
    assert '"accepted":1' in parts["A labelled row: TV, Radio, Newspaper, Sales"]
    assert '"state":"done"' in parts["A training, and why its version answers now"]
    assert '"verdict":"promote"' in parts["A training, and why its version answers now"]
    assert '"coverage":' in parts["How good the answers were"]
    assert '"outputs":[{"name":"prediction"' in parts["The Open Inference Protocol"]
    refused = parts["A bad row is refused, and its field named"]
    assert "\"/TV: 'abc' is not a float\"" in refused and "HTTP status 422" in refused


def test_python_over_http(place: Place) -> None:
    """One row, many, an outcome that the server has joined, and a refusal."""
    printed = place.run("call_http")
    id = seen("^one row: setosa version 1 id (<id>)$", printed)[1]
    back = place.server.get(f"/v1/models/iris/predictions/{id}")
    assert (back["prediction"], back["outcome"]["value"]) == ("setosa", "setosa")
    seen(r"^many rows: setosa with \d+%\nmany rows: virginica with \d+%$", printed)
    seen("^outcome: joined$", printed)
    seen("^refused: 422 invalid-input .*'/petal_width'.*'abc' is not a float", printed)


def test_python_over_v2(place: Place) -> None:
    """The same species over HTTP and over gRPC, with ids, and a refusal."""
    printed = place.run("call_v2", python("triton"))
    answer = r"\['setosa', 'virginica'\] ids \['<id>', '<id>'\]"
    seen(f"^over HTTP\n{answer}\nover gRPC\n{answer}$", printed)
    seen(r"^refused: StatusCode.NOT_FOUND there is no model 'nobody'", printed)


def test_python_over_grpc(place: Place) -> None:
    """A service found by reflection, an outcome, and the details of a refusal."""
    printed = place.run("call_grpc")
    id = seen("^one row: setosa version 1 id (<id>)$", printed)[1]
    assert place.server.get(f"/v1/models/iris/predictions/{id}")["outcome"]["value"] == "setosa"
    seen("^outcome: joined$", printed)
    seen("^refused: INVALID_ARGUMENT\n  code invalid-input\n  field /petal_width is req", printed)


def test_python_over_zerorpc(place: Place) -> None:
    """The default model's bare answer, a map, a stream, and an exception."""
    printed = place.run("call_zerorpc", python("zerorpc"))
    sales = float(seen(r"^the default model: (\S+)$", printed)[1])
    assert sales == pytest.approx(place.sales(50), rel=1e-12)
    seen("^iris: setosa version 1 id <id>$", printed)
    seen("^streamed: 1000 setosa$", printed)
    seen("^refused: InvalidInput /petal_width: 'abc' is not a float$", printed)


def test_python_over_a_websocket(place: Place) -> None:
    """A thousand answers with the numbers of HTTP, an outcome, and a refusal."""
    printed = place.run("stream_websocket")
    found = seen(r"^1000 answers; TV=50: (\S+) id (<id>)$", printed)
    assert float(found[1]) == place.sales(50)
    back = place.server.get(f"/v1/models/sales/predictions/{found[2]}")
    assert (back["input"]["TV"], back["outcome"]["value"]) == (50.0, 9.4)
    seen("^outcome: joined$", printed)
    seen("^refused: invalid-input .*'abc' is not a float", printed)


def test_go_over_grpc(place: Place) -> None:
    """The numbers that HTTP gives, and a status with its details; no server is an exit code."""
    program = str(go("go-client"))
    printed = place.shell([program])
    for budget in (50, 100):
        line = rf"^  TV={budget} prediction=(\S+) version=\d+ id=<id>$"
        assert float(seen(line, printed)[1]) == pytest.approx(place.sales(budget), abs=1e-6)
    seen("^A model that is not there\n  NotFound: .*'nobody'.*\n  code unknown-model$", printed)
    nowhere = {**place.environ, "GRPC": "127.0.0.1:1"}
    done = subprocess.run([program], env=nowhere, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    seen("^  Unavailable: ", done.stdout)


@contextmanager
def gateway(place: Place, command: str, **more: str) -> Iterator[httpx.Client]:
    """The Express gateway, started by the README's command, on a port of its own."""
    modules = str(node("node-gateway") / "node_modules")
    environ = {**place.environ, "PORT": "0", "NODE_PATH": modules, "NODE_NO_WARNINGS": "1", **more}
    process = subprocess.Popen(
        ["sh", "-c", f"exec env {command}"],
        cwd=EXAMPLES,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = seen(r"listens on (http://\S+)", process.stdout.readline())[1]
        with httpx.Client(base_url=url, timeout=90) as client:
            yield client
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("command", [each for each in COMMANDS if "node " in each])
def test_node_gateway(place: Place, command: str) -> None:
    """Learn by JSON and by form, train, predict, and refusals with their status."""
    rows = place.server.get("/v1/models/sales")["rows"]
    with gateway(place, command) as client:
        assert client.get("/v1/ia/predict").json() == {"data": place.sales(50)}
        assert client.get("/v1/ia/predict?TV=100").json() == {"data": place.sales(100)}
        row = {"data": [3.14, 34.6, 12.2, 8.4]}
        form = {"data[]": ["3.14", "34.6", "12.2", "8.4"]}
        for count, learnt in enumerate(
            (client.post("/v1/ia/learn", json=row), client.post("/v1/ia/learn", data=form)), rows
        ):
            assert learnt.status_code == 202, learnt.text
            assert learnt.json()["feedback"]["Sales"]["count"] == count + 1
        for refused, word in (
            (client.get("/v1/ia/predict?TV=abc"), "'abc' is not a float"),
            (client.get("/v1/ia/predict?TV="), "TV"),
            (client.post("/v1/ia/learn", json={"data": [1, 2]}), "expected 4"),
            (client.post("/v1/ia/learn", json={"data": [None, 1, 1, 1]}), "null"),
            (client.post("/v1/ia/learn"), "null"),
        ):
            assert refused.status_code == 422 and word in refused.json()["error"], refused.text
        assert client.post("/v1/ia/learn", content="{", headers=JSON).status_code == 400
        assert place.server.get("/v1/models/sales")["rows"] == rows + 2
        trained = client.get("/v1/ia/train")
        assert trained.status_code == 200, trained.text
        assert trained.headers["content-type"].startswith("text/html")
        assert f"<td>{rows + 2}</td>" in trained.text and "R-squared" in trained.text
        assert client.get("/v1/ia/predict").json() == {"data": place.sales(50)}


JSON = {"content-type": "application/json"}


def test_node_gateway_without_its_model(place: Place) -> None:
    """A server that is away is not the caller's fault, and 502."""
    command = "BACKEND=http node node-gateway/gateway.js"
    with gateway(place, command, URL="http://127.0.0.1:1") as client:
        answer = client.get("/v1/ia/predict")
    assert answer.status_code == 502 and answer.json()["error"]
