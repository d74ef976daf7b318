"""Other people's ZeroRPC clients, unmodified, against a real `loopline serve --zerorpc`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from loopline.testing.adapter import Refusal
from tests.adapters.drivers.zerorpc import Bridge, ZerorpcDriver
from tests.adapters.zerorpc_raw import wait_until
from tests.clients import node, python
from tests.servers import Server

ROW = {"sepal_length": 1.1, "sepal_width": 1.2, "petal_length": 1.4, "petal_width": 1.5}
UUID7 = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
FORM = "data[]=3.14&data[]=34.6&data[]=12.2&data[]=8.4"
GATEWAY = Path(__file__).with_name("drivers") / "zerorpc_gateway.js"
APP = """
import time
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from loopline import Loopline
from loopline.builtin import Formula

frame = load_iris(as_frame=True).frame
frame.columns = ["sepal_length", "sepal_width", "petal_length", "petal_width", "species"]
frame["species"] = frame["species"].map({0: "setosa", 1: "versicolor", 2: "virginica"})
sales = pd.read_csv(SALES, index_col=0)

def slow(row):
    time.sleep(row["seconds"])
    return row["seconds"]

app = Loopline()
app.add("sales", Formula("Sales ~ TV").fit(sales[["TV", "Radio", "Newspaper"]], sales["Sales"]),
        data=SALES, target="Sales", description="Sales by television budget.")
app.add("iris", LogisticRegression(max_iter=500).fit(frame.iloc[:, :4], frame["species"]),
        data=lambda: frame, target="species")
app.add("slow", slow)
"""


class Place(NamedTuple):
    """A server, and where its ZeroRPC service is."""

    server: Server
    endpoint: str


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    free_ports: Callable[[int], list[int]],
    shared_data: Path,
) -> Iterator[Place]:
    """A server for the tests of this module."""
    python("zerorpc")
    folder = tmp_path_factory.mktemp("zerorpc")
    http, port = free_ports(2)
    endpoint = f"tcp://127.0.0.1:{port}"
    sales = shared_data / "Advertising.csv"
    (folder / "app.py").write_text(APP.replace("SALES", repr(str(sales))))
    server = Server(folder, http, "app.py", "--zerorpc", endpoint)
    server.start("/readyz")
    yield Place(server, endpoint)
    server.stop()


@pytest.fixture
def driver(place: Place) -> Iterator[ZerorpcDriver]:
    """The Python client."""
    driver = ZerorpcDriver(place.endpoint)
    yield driver
    driver.close()


@pytest.fixture
def gateway(place: Place, free_port: int) -> Iterator[httpx.Client]:
    """The Node gateway, spoken to over HTTP."""
    modules = node("node-gateway") / "node_modules"
    process = subprocess.Popen(
        [shutil.which("node") or "node", GATEWAY, place.endpoint, str(free_port)],
        env={**os.environ, "NODE_PATH": str(modules), "NODE_NO_WARNINGS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as client:
        yield client
    process.kill()
    process.stdout.close()
    process.wait()


def near(value: float) -> object:
    """Equal within 1e-9."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def test_the_original_gateway_works_unmodified(place: Place, gateway: httpx.Client) -> None:
    """Learn by list and by form, train, predict; errors arrive in the callback."""
    assert gateway.get("/v1/ia/predict").json() == {"data": near(9.409425570778684)}
    assert gateway.get("/v1/ia/predict?TV=array").json() == {"data": near(9.409425570778684)}
    answer = gateway.post("/v1/ia/learn", json={"data": [3.14, 34.6, 12.2, 8.4]})
    assert answer.status_code == 202
    feedback = json.loads(answer.json()["feedback"])
    assert feedback["TV"]["count"] == 201
    assert feedback["TV"]["mean"] == pytest.approx(146.3265671642, abs=1e-9)
    assert feedback["Sales"]["mean"] == pytest.approx(13.9945273632, abs=1e-9)
    assert gateway.get("/v1/ia/predict").json() == {"data": near(9.409425570778684)}

    for data, word in (([1, 2], "4"), (["abc", 1, 1, 1], "abc"), ([None, 1, 1, 1], "null")):
        answer = gateway.post("/v1/ia/learn", json={"data": data})
        assert answer.status_code == 400 and answer.json()["name"] == "InvalidInput"
        assert word in answer.json()["message"]
    answer = gateway.get("/v1/ia/predict?TV=abc")
    assert answer.json()["name"] == "InvalidInput"
    assert "TV" in answer.json()["message"] and "'abc' is not a float" in answer.json()["message"]
    assert place.server.get("/v1/models/sales")["rows"] == 201

    answer = gateway.get("/v1/ia/train")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html"
    for word in ("R-squared", "F-statistic", "Omnibus", "Durbin-Watson", "Cond", "0.613"):
        assert word in answer.text
    expected = 7.055812812861933 + 50 * 0.04741937629505706
    wait_until(lambda: gateway.get("/v1/ia/predict").json() == {"data": near(expected)})

    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = gateway.post("/v1/ia/learn", content=FORM, headers=headers)
    assert answer.status_code == 202, answer.text
    assert json.loads(answer.json()["feedback"])["TV"]["count"] == 202


def test_streams_to_node_leave_the_server_alive(gateway: httpx.Client) -> None:
    """More than a hundred items, several times: what ends the original for good."""
    for _ in range(6):
        assert gateway.get("/stream").json() == {"count": 300}
    assert gateway.get("/v1/ia/predict").status_code == 200


def test_the_answer_is_that_of_http(place: Place, driver: ZerorpcDriver) -> None:
    """The same species, version, form of id and log row."""
    (said,) = driver.predict("iris", ROW)
    same = place.server.post("/v1/models/iris/predict", ROW)
    assert (said.prediction, said.version) == ("setosa", 1)
    assert (said.prediction, said.version) == (same["prediction"], same["version"])
    assert re.fullmatch(UUID7, said.id) and re.fullmatch(UUID7, same["id"])
    back = place.server.get(f"/v1/models/iris/predictions/{said.id}")
    assert (back["input"], back["prediction"], back["version"]) == (ROW, "setosa", 1)
    (mine,) = driver.predict("iris", [ROW], ids=["over-zerorpc"])
    assert mine.id == "over-zerorpc"
    assert place.server.get("/v1/models/iris/predictions/over-zerorpc")["input"] == ROW
    assert driver.outcome("iris", [{"id": "over-zerorpc", "outcome": "setosa"}]) == ["joined"]
    assert driver.describe("iris")["inputs"] == list(ROW)
    assert driver.learn("iris", [{**ROW, "species": "setosa"}]) == 1


def test_a_bad_field_is_named_with_what_is_wrong(driver: ZerorpcDriver) -> None:
    """The exception reaches the client with the code, the field and the sentence."""
    with pytest.raises(Refusal) as refusal:
        driver.predict("iris", {**ROW, "petal_width": "abc"})
    assert refusal.value.code == "invalid-input"
    assert refusal.value.pointers == ("/petal_width",)
    assert "'abc' is not a float" in refusal.value.detail
    for value in (5, 0.0):
        assert driver.predict("iris", {**ROW, "petal_width": value})
    with pytest.raises(Refusal) as refusal:
        driver.predict("iris", ROW, version=99)
    assert refusal.value.code == "unknown-version"
    with pytest.raises(Refusal) as refusal:
        driver.predict("nope", ROW)
    assert refusal.value.code == "unknown-model"


def test_ten_thousand_rows_stream_with_the_first_answers_before_the_last_rows(
    place: Place,
) -> None:
    """The server predicts what the client asks for, and no more than its window ahead."""
    with closing(Bridge(place.endpoint, timeout=60)) as bridge:

        def predicted() -> float:
            found = re.findall(
                r'^loopline_prediction_rows_total\{model="iris"[^}]*\} (\S+)',
                _metrics(place),
                re.MULTILINE,
            )
            return sum(map(float, found))

        before = predicted()
        stream = bridge.answers("iris_predict_stream", [ROW] * 10_000)
        assert next(stream)["prediction"] == "setosa"
        assert predicted() - before < 10_000
        assert sum(each["prediction"] == "setosa" for each in stream) == 9_999


def _metrics(place: Place) -> str:
    return place.server.client.get("/metrics").text


def test_a_client_that_breaks_off_a_stream_leaves_the_server_free(place: Place) -> None:
    """Its process dies in the middle; others are answered at once."""
    with closing(Bridge(place.endpoint, timeout=60)) as bridge:
        stream = bridge.answers("iris_predict_stream", [ROW] * 10_000)
        assert next(stream)["prediction"] == "setosa"
        other = ZerorpcDriver(place.endpoint)
        assert other.predict("iris", ROW)[0].prediction == "setosa"
        other.close()


def test_heartbeats_go_on_while_a_model_computes(place: Place) -> None:
    """A client that would give up after three seconds of silence waits for five."""
    with closing(Bridge(place.endpoint, timeout=60, heartbeat=1)) as bridge:
        began = time.monotonic()
        assert bridge.call("slow_predict", {"seconds": 5.0})["prediction"] == 5.0
        assert time.monotonic() - began >= 5.0


@pytest.mark.long
def test_heartbeats_of_the_usual_interval_last_as_long_as_a_model_computes(
    place: Place, gateway: httpx.Client
) -> None:
    """Longer than Node's ten seconds and Python's fifteen, and in the queue too."""
    one, two = Bridge(place.endpoint, timeout=60), Bridge(place.endpoint, timeout=60)
    with closing(one), closing(two):
        first = one.answers("slow_predict", {"seconds": 16.0})
        time.sleep(1.0)
        second = two.answers("slow_predict", {"seconds": 0.1})
        assert gateway.get("/slow?seconds=0.2").json() == {"data": 0.2}
        assert next(first)["prediction"] == 16.0
        assert next(second)["prediction"] == 0.1


def test_the_command_line_tool_lists_and_explains(place: Place) -> None:
    """`zerorpc ENDPOINT`, and `-?` for one method."""

    def tool(*arguments: str) -> str:
        command = [str(python("zerorpc").with_name("zerorpc")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = tool(place.endpoint)
    assert listed.startswith("[loopline]")
    assert re.search(r"^iris_predict +Predict with the Iris Model\.$", listed, re.MULTILINE)
    explained = tool("-?", place.endpoint, "iris_predict")
    assert "iris_predict(data, options)" in explained
    assert "Predict with the Iris Model." in explained


@pytest.mark.long
def test_a_rolling_restart_hands_the_endpoint_over(place: Place) -> None:
    """SIGHUP gives the replica a successor; clients go on."""
    with closing(ZerorpcDriver(place.endpoint)) as driver:
        before = place.server.pid("replica-0")
        assert driver.predict("iris", ROW)
        os.kill(place.server.pid("supervisor"), signal.SIGHUP)
        wait_until(lambda: _changed(place, before), 60)
        assert driver.predict("iris", ROW)[0].prediction == "setosa"


def _changed(place: Place, before: int) -> Any:
    try:
        os.kill(before, 0)
    except ProcessLookupError:
        return True
    return False
