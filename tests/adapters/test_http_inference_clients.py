"""Unmodified clients of the Open Inference Protocol against a real server."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.adapter import Refusal, Said
from tests.adapters.drivers.inference_http import InferenceHttp
from tests.adapters.sockets import Line, post, until
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA
from tests.clients import python
from tests.clients.bridges import Bridge, Told, bridge
from tests.servers import Server

APP = """
import os
import time

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from loopline import Loopline
from tests.adapters.speaking import FEATURES, iris

JOBS = ["clerk", "cook", "Köchin"]
people = pd.DataFrame(
    {"age": float(age), "job": job, "member": age % 2 == 0, "rich": "yes" if age > 40 else "no"}
    for age in range(20, 60) for job in JOBS
)
encode = make_column_transformer((OneHotEncoder(), ["job"]), remainder="passthrough")

def slow(row: dict) -> int:
    time.sleep(row["seconds"])
    return 1

app = Loopline()
flowers = iris()
model = LogisticRegression(max_iter=1000).fit(flowers[FEATURES], flowers["species"])
app.add("iris", model, data=flowers, target="species")
model = make_pipeline(encode, LogisticRegression(max_iter=5000))
model.fit(people.drop(columns="rich"), people["rich"])
app.add("people", model, data=people, target="rich")
app.add("slow", slow)
"""
RICH = {"age": 55.0, "job": "Köchin", "member": False}
ROOT = Path(__file__).parents[2]
POOR = {"age": 25.0, "job": "cook", "member": True}
HOWS = ["sync", "aio"]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Server]:
    """A server of three models, with a limit that a test can reach."""
    folder = tmp_path_factory.mktemp("v2")
    (folder / "app.py").write_text(APP)
    server = Server(folder, free_ports(1)[0], "app.py")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
            patch.setenv("LOOPLINE_MAX_BODY", str(2**20))
            server.start("/v2/health/ready")
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[Bridge]:
    """tritonclient.http."""
    with bridge("triton", "triton_http.py", server.url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def kserve(server: Server) -> Iterator[Bridge]:
    """kserve's REST client."""
    with bridge("kserve", "kserve_rest.py", server.url) as found:
        yield found


def fields(*rows: dict[str, Any], binary: bool = True, upright: bool = False) -> list[Any]:
    """One tensor for each field."""
    types = {float: "FP64", bool: "BOOL", str: "BYTES"}
    shape = [len(rows), 1] if upright else [len(rows)]
    return [
        [name, types[type(value)], shape, [row[name] for row in rows], binary]
        for name, value in rows[0].items()
    ]


def matrix(*rows: dict[str, float], datatype: str = "FP32", binary: bool = True) -> list[Any]:
    """All fields as one tensor."""
    data = [list(row.values()) for row in rows]
    return [["input-0", datatype, [len(data), len(data[0])], data, binary]]


# tritonclient.


@pytest.mark.parametrize("how", HOWS)
def test_triton_asks_for_health_and_metadata(triton: Bridge, how: str) -> None:
    """Of the server, of models and of their versions."""
    assert triton("is_server_live", how=how) is True
    assert triton("is_server_ready", how=how) is True
    assert triton("is_model_ready", how=how, args=["iris"]) is True
    assert triton("is_model_ready", how=how, args=["iris", "1"]) is True
    assert triton("is_model_ready", how=how, args=["iris", "9"]) is False
    assert triton("is_model_ready", how=how, args=["nope"]) is False
    assert triton("get_server_metadata", how=how)["name"] == "loopline"
    told = triton("get_model_metadata", how=how, args=["people"])
    assert [each["datatype"] for each in told["inputs"]] == ["FP64", "BYTES", "BOOL"]
    assert told["versions"] == ["1"]
    config = triton("get_model_config", how=how, args=["iris"])
    assert [each["name"] for each in config["input"]] == FEATURES
    names = {each["name"] for each in triton("get_model_repository_index", how=how)}
    assert names == {"iris", "people", "slow"}
    triton("load_model", how=how, args=["iris"])
    for call, args in (
        ("unload_model", ["iris"]),
        ("load_model", ["nope"]),
        ("get_inference_statistics", ["iris"]),
        ("get_model_metadata", ["nope"]),
        ("get_trace_settings", []),
    ):
        with pytest.raises(Told) as told:
            triton(call, how=how, args=args)
        assert told.value.status in ("404", "409") and ": " in told.value.text


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("binary", [True, False])
def test_triton_predicts(triton: Bridge, server: Server, how: str, binary: bool) -> None:
    """One row or many, by fields or as one tensor, in bytes or in JSON."""
    rows = [SETOSA, VIRGINICA]
    for inputs in (
        matrix(*rows, binary=binary),
        matrix(*rows, binary=binary, datatype="FP64"),
        fields(*rows, binary=binary),
        fields(*rows, binary=binary, upright=True),
    ):
        found = triton("infer", how=how, model="iris", inputs=inputs)
        assert found["outputs"]["prediction"] == ["setosa", "virginica"]
        assert [sum(each) for each in found["outputs"]["probabilities"]] == pytest.approx([1, 1])
        assert found["dtypes"]["probabilities"] == "float64"
        assert found["response"]["model_version"] == "1"
    (id,) = triton("infer", how=how, model="iris", inputs=matrix(SETOSA, datatype="FP64"))[
        "outputs"
    ]["prediction_id"]
    assert server.get(f"/v1/models/iris/predictions/{id}")["input"] == SETOSA


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("binary", [True, False])
def test_triton_sends_words(triton: Bridge, how: str, binary: bool) -> None:
    """Beside numbers and truths."""
    for rows, said in (([RICH], ["yes"]), ([POOR, RICH], ["no", "yes"])):
        inputs = fields(*rows, binary=binary)
        found = triton("infer", how=how, model="people", inputs=inputs)
        assert found["outputs"]["prediction"] == said


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "INT64", "UINT16", "BF16"])
def test_triton_sends_numbers_of_any_type(triton: Bridge, how: str, datatype: str) -> None:
    """The schema takes them all for numbers."""
    row = dict(zip(FEATURES, (6.0, 3.0, 6.0, 2.0), strict=True))
    inputs = matrix(row, datatype=datatype)
    found = triton("infer", how=how, model="iris", inputs=inputs)
    assert found["outputs"]["prediction"] == ["virginica"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_triton_compresses_both_ways(triton: Bridge, how: str, coding: str) -> None:
    """What it sends and what it is sent, in bytes and in JSON."""
    options = {
        "request_compression_algorithm": coding,
        "response_compression_algorithm": coding,
    }
    for binary in (True, False):
        inputs = matrix(*[SETOSA, VIRGINICA] * 50, binary=binary)
        outputs = [["prediction", binary], ["prediction_id", binary]]
        found = triton(
            "infer", how=how, model="iris", inputs=inputs, outputs=outputs, options=options
        )
        assert found["outputs"]["prediction"] == ["setosa", "virginica"] * 50
        assert list(found["outputs"]) == ["prediction", "prediction_id"]


@pytest.mark.parametrize("how", HOWS)
def test_triton_names_requests_versions_and_predictions(
    triton: Bridge, server: Server, how: str
) -> None:
    """The request's id comes back; predictions are named by a tensor or a parameter."""
    options = {"request_id": "r-1", "model_version": "1", "timeout": 10_000_000}
    ids = ["prediction_id", "BYTES", [2], [f"{how}-1", f"{how}-2"], True]
    inputs = [*fields(SETOSA, VIRGINICA), ids]
    found = triton("infer", how=how, model="iris", inputs=inputs, options=options)
    assert found["response"]["id"] == "r-1"
    assert found["outputs"]["prediction_id"] == [f"{how}-1", f"{how}-2"]
    server.wait(f"/v1/models/iris/predictions/{how}-2")
    options = {"parameters": {"prediction_id": f"{how}-2"}}
    found = triton("infer", how=how, model="iris", inputs=fields(SETOSA), options=options)
    assert found["outputs"]["prediction"] == ["virginica"]
    with pytest.raises(Told) as told:
        triton(
            "infer", how=how, model="iris", inputs=fields(SETOSA), options={"model_version": "7"}
        )
    assert told.value.status == "404" and "has no version 7" in told.value.text


@pytest.mark.parametrize("how", HOWS)
def test_triton_is_told_what_is_wrong(triton: Bridge, how: str) -> None:
    """By code and field, in the words of every other protocol."""
    wrong = fields({**SETOSA, "petal_width": "abc"})
    for inputs, status, words in (
        (wrong, "422", "invalid-input: /petal_width: 'abc' is not a float"),
        (fields(SETOSA)[1:], "422", "/sepal_length: is required"),
        ([*fields(SETOSA), *fields({"colour": 1.0})], "422", "/colour: is not a field"),
        (matrix({"a": 1.0}), "422", "has 1 value; expected 4"),
        (matrix(*[SETOSA] * 80_000), "413", "too-large"),
    ):
        with pytest.raises(Told) as told:
            triton("infer", how=how, model="iris", inputs=inputs)
        assert told.value.status == status
        assert words in told.value.text
    with pytest.raises(Told) as told:
        triton("infer", how=how, model="nope", inputs=fields(SETOSA))
    assert told.value.text.startswith("unknown-model: there is no model 'nope'")


def test_triton_is_told_that_time_is_over(triton: Bridge) -> None:
    """By its own timeout, in microseconds; others go on meanwhile."""
    options = {"timeout": 50_000}
    with pytest.raises(Told) as told:
        triton("infer", model="slow", inputs=fields({"seconds": 1.0}), options=options)
    assert (told.value.status, told.value.text[:8]) == ("504", "timeout:")
    assert triton("infer", model="iris", inputs=fields(SETOSA))["outputs"]["prediction"]
    until(lambda: triton("is_model_ready", args=["slow"]), "the model is back")


def test_triton_asks_much_at_once(triton: Bridge) -> None:
    """With several connections and greenlets; each gets its own answer."""
    rows = [SETOSA, VIRGINICA, VIRGINICA] * 20
    many: list[dict[str, Any]] = [{"inputs": fields(row)} for row in rows]
    for index, each in enumerate(many):
        each["options"] = {"request_id": str(index)}
    found = triton("async_infer", model="iris", many=many)
    assert [each["response"]["id"] for each in found] == [str(i) for i in range(60)]
    said = [each["outputs"]["prediction"][0] for each in found]
    assert said == ["setosa", "virginica", "virginica"] * 20


# kserve.


def test_kserve_asks_for_health(kserve: Bridge) -> None:
    """And reads the bodies."""
    assert kserve("is_server_live") is True
    assert kserve("is_server_ready") is True
    assert kserve("is_model_ready", args=["iris"]) is True
    assert kserve("is_model_ready", args=["nope"]) is False


@pytest.mark.parametrize("binary", [True, False])
def test_kserve_predicts(kserve: Bridge, binary: bool) -> None:
    """In bytes and in JSON, numbers and words."""
    inputs = matrix(SETOSA, VIRGINICA, datatype="FP64", binary=binary)
    found = kserve("infer", model="iris", inputs=inputs, id="k-1")
    assert (found["id"], found["model"]) == ("k-1", "iris")
    assert found["outputs"]["prediction"] == ["setosa", "virginica"]
    outputs = [["prediction", binary], ["prediction_id", False]]
    inputs = fields(POOR, RICH, binary=binary)
    found = kserve("infer", model="people", inputs=inputs, outputs=outputs)
    assert found["outputs"]["prediction"] == ["no", "yes"]
    assert list(found["outputs"]) == ["prediction", "prediction_id"] and found["id"]


def test_kserve_is_told_what_is_wrong(kserve: Bridge) -> None:
    """Its exception has the text."""
    wrong = fields({**SETOSA, "petal_width": "abc"}, binary=False)
    with pytest.raises(Told) as told:
        kserve("infer", model="iris", inputs=wrong)
    assert told.value.status == "422"
    assert "invalid-input: /petal_width: 'abc' is not a float" in told.value.text
    with pytest.raises(Told) as told:
        kserve("infer", model="nope", inputs=fields(SETOSA, binary=False))
    assert told.value.status == "404" and "unknown-model" in told.value.text


# The documentation.


@pytest.mark.parametrize(("number", "client"), [(0, "triton"), (1, "kserve"), (2, "curl")])
def test_what_the_documentation_says_works(server: Server, number: int, client: str) -> None:
    """Its examples, as they stand there."""
    text = (ROOT / "docs/how-to/call-it-with-v2-clients.md").read_text("utf-8")
    example = re.findall(r"```(?:python|bash)\n(.*?)```", text, re.DOTALL)[number]
    example = example.replace("localhost:8000", server.url.removeprefix("http://"))
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("needs curl")
    command = ["sh"] if client == "curl" else [str(python(client)), "-"]
    ran = subprocess.run(command, input=example, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "setosa" in ran.stdout and "prediction_id" in ran.stdout + example


# What is no client.


def told(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The tensors of a row as JSON has them."""
    keys = ("name", "datatype", "shape", "data")
    return [dict(zip(keys, each[:4], strict=True)) for each in fields(row)]


def test_the_server_goes_on(server: Server, triton: Bridge) -> None:
    """Whoever hangs up, sends garbage, too much, too slowly, or not all of it."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    address = (host, int(port))
    path = "/v2/models/iris/infer"
    good = post({"inputs": told(SETOSA)}, path)
    wrong = [
        b"\x16\x03\x01" * 50,
        good[: len(good) // 2],
        good.replace(b"{", b"[", 1),
        post(b"x" * 1000, path, [("inference-header-content-length", "30")]),
        post(b"\x1f\x8b\x08" + b"\x00" * 50, path, [("content-encoding", "gzip")]),
        post(b"{" * (2**20 + 1), path),
        good.replace(b"content-length: ", b"content-length: 99"),
    ]
    lines = []
    for sent in wrong * 3:
        line = Line(address)
        line.send(sent)
        lines.append(line)
    slow = Line(address)
    slow.send(good, range(0, len(good), 11))
    assert slow.answer().json()["outputs"][0]["data"] == ["setosa"]
    hung = Line(address)
    hung.send(post({"inputs": told({"seconds": 0.2})}, "/v2/models/slow/infer"))
    hung.reset()
    found = triton("infer", model="iris", inputs=fields(VIRGINICA))
    assert found["outputs"]["prediction"] == ["virginica"]
    for line in [*lines, slow]:
        line.close()
    until(lambda: triton("is_server_ready"), "it is ready")
    with socket.create_connection(address):
        assert triton("is_server_live") is True
    text = server.log()
    assert "Traceback" not in text, text


def test_the_conformance_driver_speaks_for_triton(server: Server) -> None:
    """It gives answers and refusals as every protocol's driver does."""
    driver = InferenceHttp(server.url, "not-needed")
    try:
        one, two = driver.predict("iris", [SETOSA, VIRGINICA], ids=["d-1", "d-2"], version=1)
        assert (one, two) == (Said("d-1", "setosa", 1), Said("d-2", "virginica", 1))
        (said,) = driver.predict("people", RICH, timeout=20.0)
        assert said.prediction == "yes"
        told = driver.describe("people")
        assert (told["version"], told["inputs"]) == (1, ["age", "job", "member"])
        with pytest.raises(Refusal) as refused:
            driver.predict("iris", {**SETOSA, "petal_width": "abc"})
        assert refused.value.code == "invalid-input"
        assert refused.value.detail == "/petal_width: 'abc' is not a float"
        with pytest.raises(Refusal) as refused:
            driver.predict("nope", SETOSA)
        assert refused.value.code == "unknown-model"
    finally:
        driver.close()
