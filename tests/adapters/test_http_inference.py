from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from loopline.adapters.http_inference import SMALL
from loopline.loop import Loop
from loopline.registry import Definition
from tests.adapters.sockets import PING, Served, post, served, until
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA, Http, running, sales, speaking
from tests.adapters.test_lane_fuzz import TIMES, Servers, Writer, compare, places_of

INFER = "/v2/models/iris/infer"
LENGTH = "inference-header-content-length"
COOK = {"age": 30.0, "job": "cook", "member": True}
NIL = st.none()


def people() -> pd.DataFrame:
    """Numbers, words and truths, of which those together say who is rich."""
    rows = [
        {"age": float(age), "job": job, "member": age % 2 == 0, "rich": "yes" if age > 40 else "no"}
        for age in range(20, 60)
        for job in ("clerk", "cook", "Köchin")
    ]
    return pd.DataFrame(rows)


def add_people(loop: Loop) -> None:
    """Give the loop a model of mixed types, and one that is not fitted."""
    frame = people()
    encode = make_column_transformer((OneHotEncoder(), ["job"]), remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression(max_iter=5000))
    model.fit(frame[["age", "job", "member"]], frame["rich"])
    loop.registry.register(Definition(name="people", model=model, data=frame, target="rich"))
    loop.serving.refresh()


@pytest.fixture(scope="module")
def http(loop: Loop) -> Iterator[Http]:
    """A client of the shared loop, which has the model of people too."""
    add_people(loop)
    with speaking(loop) as http:
        yield http


def fields(*rows: dict[str, Any], kinds: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """One tensor for each field of the rows."""
    types = {float: "FP64", int: "INT64", bool: "BOOL", str: "BYTES"}
    return [
        {
            "name": name,
            "datatype": (kinds or {}).get(name) or types[type(value)],
            "shape": [len(rows)],
            "data": [row[name] for row in rows],
        }
        for name, value in rows[0].items()
    ]


def matrix(*rows: dict[str, float], name: str = "input-0") -> list[dict[str, Any]]:
    """All fields of the rows as one tensor."""
    data = [list(row.values()) for row in rows]
    return [{"name": name, "datatype": "FP64", "shape": [len(data), len(data[0])], "data": data}]


def said(answer: httpx.Response) -> dict[str, Any]:
    """What a good answer holds, by output."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return {each["name"]: each["data"] for each in answer.json()["outputs"]}


def error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is an error that every client understands, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    told: dict[str, Any] = answer.json()
    assert told["error"] == f"{code}: {told['detail']}"
    assert (told["code"], told["status"]) == (code, status)
    assert "Traceback" not in answer.text
    return told


# The server and its models.


def test_health_is_told_in_status_and_body(http: Http) -> None:
    """Clients look at either."""
    for path, body in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/iris/ready", {"name": "iris", "ready": True}),
        ("/v2/models/iris/versions/1/ready", {"name": "iris", "ready": True}),
    ):
        answer = http.get(path)
        assert (answer.status_code, answer.json()) == (200, body)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_tells_of_itself(http: Http, path: str) -> None:
    """With and without a slash, as specification and clients write it."""
    told = http.get(path).json()
    assert told["name"] == "loopline" and told["version"]
    assert "binary_tensor_data" in told["extensions"]


def test_a_model_tells_of_itself(http: Http) -> None:
    """Its tensors, versions and classes."""
    told = http.get("/v2/models/iris").json()
    assert told == http.get("/v2/models/iris/versions/1").json()
    assert (told["name"], told["versions"], told["platform"]) == ("iris", ["1"], "loopline")
    assert told["inputs"] == [
        {"name": name, "datatype": "FP64", "shape": [-1]} for name in FEATURES
    ]
    assert told["outputs"][1] == {"name": "probabilities", "datatype": "FP64", "shape": [-1, 3]}
    assert json.loads(told["properties"]["classes"]) == ["setosa", "versicolor", "virginica"]
    kinds = {
        each["name"]: each["datatype"] for each in http.get("/v2/models/people").json()["inputs"]
    }
    assert kinds == {"age": "FP64", "job": "BYTES", "member": "BOOL"}
    config = http.get("/v2/models/people/config").json()
    assert [each["data_type"] for each in config["input"]] == [
        "TYPE_FP64",
        "TYPE_STRING",
        "TYPE_BOOL",
    ]
    assert (config["name"], config["max_batch_size"]) == ("people", 0)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/models/nope", "unknown-model"),
        ("/v2/models/nope/ready", "unknown-model"),
        ("/v2/models/iris/versions/9", "unknown-version"),
        ("/v2/models/iris/versions/9/ready", "unknown-version"),
        ("/v2/models/iris/versions/latest", "unknown-path"),
        ("/v2/models/iris/stats", "unknown-path"),
        ("/v2/nope", "unknown-path"),
    ],
)
def test_what_is_not_there_is_told_in_the_protocols_way(http: Http, path: str, code: str) -> None:
    """Paths of ours and those of nobody."""
    error(http.get(path), 404, code)


def test_a_wrong_method_is_told_in_the_protocols_way(http: Http) -> None:
    """With the methods that there are."""
    answer = http.get(INFER)
    error(answer, 405, "wrong-method")
    assert "POST" in answer.headers["allow"]


def test_the_repository_lists_its_models(http: Http) -> None:
    """And looks again where it is told to."""
    found = {each["name"]: each for each in http.post("/v2/repository/index").json()}
    assert set(found) == {"iris", "sales", "moody", "people"}
    assert found["iris"] == {"name": "iris", "version": "1", "state": "READY", "reason": ""}
    assert len(http.post("/v2/repository/index", {"ready": True}).json()) == 4
    assert http.post("/v2/repository/models/iris/load").status_code == 200
    error(http.post("/v2/repository/models/nope/load"), 404, "unknown-model")
    wish = {"parameters": {"config": "{}"}}
    told = error(http.post("/v2/repository/models/iris/load", wish), 422, "invalid-input")
    assert "PUT /v1/models/{model}" in told["error"]
    told = error(http.post("/v2/repository/models/iris/unload"), 409, "wrong-state")
    assert "DELETE /v1/models/iris" in told["error"]


def test_a_model_that_is_not_fitted_is_not_ready(tmp_path: Path) -> None:
    """Nor is the server, then; both say what to do."""
    with running(tmp_path) as loop, speaking(loop) as http:
        definition = Definition(name="fresh", model=LinearRegression(), target="Sales")
        loop.registry.register(definition)
        loop.serving.refresh()
        told = error(http.get("/v2/models/fresh/ready"), 409, "not-ready")
        assert "/v1/models/fresh/train" in told["error"]
        error(http.post("/v2/models/fresh/infer", {"inputs": []}), 409, "not-ready")
        answer = http.get("/v2/health/ready")
        error(answer, 503, "not-ready")
        assert answer.headers["retry-after"] == "1"
        assert len(http.post("/v2/repository/index", {"ready": True}).json()) == 3
        assert http.get("/v2/health/live").status_code == 200


# Predictions.


@pytest.mark.parametrize("path", [INFER, "/v2/models/iris/versions/1/infer"])
def test_a_row_is_answered_as_everywhere(http: Http, loop: Loop, path: str) -> None:
    """With the same answer, version and log row; its id takes an outcome."""
    for inputs in (fields(VIRGINICA), matrix(VIRGINICA)):
        answer = http.post(path, {"id": "my-request", "inputs": inputs})
        told, found = answer.json(), said(answer)
        assert (told["model_name"], told["model_version"]) == ("iris", "1")
        assert told["id"] == "my-request"
        (id,) = found["prediction_id"]
        plain = http.post("/v1/models/iris/predict?probabilities=true", VIRGINICA).json()
        assert found["prediction"] == [plain["prediction"]] == ["virginica"]
        assert found["probabilities"] == list(plain["probabilities"].values())
        kept = http.get(f"/v1/models/iris/predictions/{id}").json()
        assert (kept["input"], kept["prediction"]) == (VIRGINICA, "virginica")
        told = loop.outcome("iris", [{"id": id, "outcome": "virginica"}])
        assert told["results"][0]["status"] != "unknown"


def test_many_rows_are_answered_in_order(http: Http) -> None:
    """However they come."""
    rows = [SETOSA, VIRGINICA, SETOSA]
    upright = [
        {**each, "shape": [3, 1], "data": [[v] for v in each["data"]]} for each in fields(*rows)
    ]
    (flat,) = matrix(*rows)
    flat = {**flat, "data": [value for row in flat["data"] for value in row]}
    for inputs in (fields(*rows), fields(*rows)[::-1], upright, matrix(*rows), [flat]):
        answer = http.post(INFER, {"inputs": inputs})
        found = said(answer)
        assert found["prediction"] == ["setosa", "virginica", "setosa"]
        assert len(set(found["prediction_id"])) == 3 and len(found["probabilities"]) == 9
        assert answer.json()["id"] == found["prediction_id"][0]


def test_types_may_be_mixed(http: Http) -> None:
    """Words, truths and numbers beside each other, in whatever language."""
    rich = {"age": 55.0, "job": "Köchin", "member": False}
    for rows in ([COOK], [COOK, rich]):
        found = said(http.post("/v2/models/people/infer", {"inputs": fields(*rows)}))
        assert found["prediction"] == ["no", "yes"][: len(rows)]
    found = said(http.post("/v2/models/people/infer", {"inputs": fields({**COOK, "age": 55})}))
    assert found["prediction"] == ["yes"]
    error(
        http.post("/v2/models/people/infer", {"inputs": matrix({"a": 1.0})}), 422, "invalid-input"
    )


def test_models_without_fields_take_any_tensor(http: Http) -> None:
    """And answer in the type that they find."""
    for value, kind in ((5, "INT64"), (2.5, "FP64"), (True, "BOOL"), ("x", "BYTES")):
        answer = http.post("/v2/models/moody/infer", {"inputs": fields({"say": value})})
        assert said(answer)["prediction"] == [value]
        assert answer.json()["outputs"][0]["datatype"] == kind


def test_numbers_are_floats(http: Http) -> None:
    """A regression answers FP64, and knows no probabilities."""
    answer = http.post("/v2/models/sales/infer", {"inputs": fields({"TV": 100})})
    names = [(each["name"], each["datatype"]) for each in answer.json()["outputs"]]
    assert names == [("prediction", "FP64"), ("prediction_id", "BYTES")]
    assert said(answer)["prediction"][0] == pytest.approx(12, abs=0.2)


def test_callers_may_name_their_predictions(http: Http) -> None:
    """By a tensor or a parameter; the same name gets the same answer, and the request's id not."""
    ids = {"name": "prediction_id", "datatype": "BYTES", "shape": [2], "data": ["v2-a", "v2-b"]}
    found = said(http.post(INFER, {"inputs": [*fields(SETOSA, VIRGINICA), ids]}))
    assert found["prediction_id"] == ["v2-a", "v2-b"]
    one = {"id": "7", "parameters": {"prediction_id": "v2-b"}, "inputs": fields(SETOSA)}
    assert said(http.post(INFER, one))["prediction"] == ["virginica"]
    for row, name in ((SETOSA, "setosa"), (VIRGINICA, "virginica")):
        assert said(http.post(INFER, {"id": "7", "inputs": fields(row)}))["prediction"] == [name]
    told = error(http.post(INFER, {**one, "inputs": fields(SETOSA, SETOSA)}), 422, "invalid-input")
    assert told["errors"][0]["pointer"] == "/ids"


def test_versions_answer_by_their_number(tmp_path: Path) -> None:
    """In the path; without one it is the champion, and an alias may be asked for."""
    with running(tmp_path) as loop, speaking(loop) as http:
        money = sales()
        model = LinearRegression().fit(money[["TV"]], money["Sales"] * 2)
        loop.registry.register(Definition(name="sales", model=model, data=money, target="Sales"))
        loop.serving.refresh()
        body = {"inputs": fields({"TV": 100.0})}
        found = {}
        for where, version in (
            ("/infer", "2"),
            ("/versions/1/infer", "1"),
            ("/versions/2/infer", "2"),
            ("/infer?alias=previous", "1"),
        ):
            answer = http.post(f"/v2/models/sales{where}", body)
            assert answer.json()["model_version"] == version
            found[version] = said(answer)["prediction"][0]
        assert found["2"] == pytest.approx(2 * found["1"])
        assert http.get("/v2/models/sales").json()["versions"] == ["1", "2"]
        error(http.post("/v2/models/sales/versions/3/infer", body), 404, "unknown-version")
        error(http.post("/v2/models/sales/versions/x/infer", body), 404, "unknown-path")


def test_outputs_are_chosen_by_name(http: Http) -> None:
    """In the order asked for."""
    wish = [{"name": "prediction_id"}, {"name": "prediction"}]
    found = said(http.post(INFER, {"inputs": fields(SETOSA), "outputs": wish}))
    assert list(found) == ["prediction_id", "prediction"]
    told = http.post(INFER, {"inputs": fields(SETOSA), "outputs": [{"name": "label"}]})
    assert (
        "there are prediction, probabilities, prediction_id"
        in error(told, 422, "invalid-input")["error"]
    )


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "x"])
def test_json_is_json_under_any_name(http: Http, kind: str) -> None:
    """Clients send it without a content type, or with somebody else's."""
    body = json.dumps({"inputs": fields(SETOSA)}).encode()
    headers = {"content-type": kind} if kind else {}
    assert said(http.post(INFER, content=body, headers=headers))["prediction"] == ["setosa"]


# Tensors as bytes, and compression.


def packed(body: dict[str, Any], *pieces: bytes) -> tuple[bytes, dict[str, str]]:
    """A body with tensors as bytes behind its JSON, and the header that says so."""
    text = json.dumps(body).encode()
    return text + b"".join(pieces), {LENGTH: str(len(text))}


def raw(name: str, datatype: str, shape: list[int], data: bytes) -> dict[str, Any]:
    """An input whose bytes are elsewhere."""
    parameters = {"binary_data_size": len(data)}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def words(*texts: str) -> bytes:
    """BYTES."""
    return b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)


def test_tensors_come_and_go_as_bytes(http: Http) -> None:
    """Beside others in JSON, in order."""
    age, job = np.array([30, 55], "<f4").tobytes(), words("cook", "Köchin")
    member = {"name": "member", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    inputs = [raw("age", "FP32", [2], age), member, raw("job", "BYTES", [2, 1], job)]
    body: dict[str, Any] = {"inputs": inputs}
    content, headers = packed(body, age, job)
    found = said(http.post("/v2/models/people/infer", content=content, headers=headers))
    assert found["prediction"] == ["no", "yes"]
    body["parameters"] = {"binary_data_output": True}
    content, headers = packed(body, age, job)
    answer = http.post("/v2/models/people/infer", content=content, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers[LENGTH])
    told, tail = json.loads(answer.content[:size]), answer.content[size:]
    assert [each["parameters"]["binary_data_size"] for each in told["outputs"]] == [13, 32, 80]
    assert tail[:13] == words("no", "yes")
    assert np.frombuffer(tail[13:45], "<f8").reshape(2, 2).sum(1) == pytest.approx([1, 1])
    body["outputs"] = [
        {"name": "prediction", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
    ]
    content, headers = packed(body, age, job)
    answer = http.post("/v2/models/people/infer", content=content, headers=headers)
    told = json.loads(answer.content[: int(answer.headers[LENGTH])])
    assert told["outputs"][0]["data"] == ["no", "yes"] and "data" not in told["outputs"][1]


@pytest.mark.parametrize(
    ("length", "status", "code"),
    [
        ("", 400, "unreadable"),
        ("x", 400, "unreadable"),
        ("-1", 400, "unreadable"),
        ("0", 400, "unreadable"),
        ("9" * 30, 400, "unreadable"),
        ("100000", 400, "unreadable"),
        ("10", 400, "unreadable"),
        ("whole", 400, "unreadable"),
        ("more", 422, "invalid-input"),
        ("less", 422, "invalid-input"),
    ],
)
def test_bytes_are_counted(http: Http, length: str, status: int, code: str) -> None:
    """All of them belong to somebody."""
    data = np.array([list(SETOSA.values())], "<f8").tobytes()
    content, headers = packed({"inputs": [raw("x", "FP64", [1, 4], data)]}, data)
    if length == "whole":
        headers[LENGTH] = str(len(content))
    elif length == "more":
        content += b"x"
    elif length == "less":
        content = content[:-1]
    else:
        headers[LENGTH] = length
    error(http.post(INFER, content=content, headers=headers), status, code)


PACKERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("coding", PACKERS)
def test_bodies_may_be_compressed(http: Http, coding: str) -> None:
    """With bytes behind the JSON too, whose length is that before compression."""
    data = np.array([list(SETOSA.values())] * 500, "<f8").tobytes()
    content, headers = packed({"inputs": [raw("x", "FP64", [500, 4], data)]}, data)
    for body, more in ((content, headers), (json.dumps({"inputs": fields(SETOSA)}).encode(), {})):
        answer = http.post(
            INFER,
            content=PACKERS[coding](body),
            headers={"content-encoding": coding, "accept-encoding": "identity", **more},
        )
        assert set(said(answer)["prediction"]) == {"setosa"}


@pytest.mark.parametrize("coding", PACKERS)
def test_what_is_not_compressed_right_is_refused(http: Http, coding: str) -> None:
    """Cut, longer than it says, of another coding, or not at all."""
    body = PACKERS[coding](json.dumps({"inputs": fields(SETOSA)}).encode())
    other = next(pack for name, pack in PACKERS.items() if name != coding)
    for wrong in (body[:-1], body + b"x", b"", b"{}", other(b"{}"), b"\x1f\x8b\x08" + b"\xff" * 20):
        answer = http.post(INFER, content=wrong, headers={"content-encoding": coding})
        error(answer, 400, "unreadable")
    told = error(
        http.post(INFER, content=body, headers={"content-encoding": "br"}),
        415,
        "unsupported-media-type",
    )
    assert "gzip, deflate" in told["error"]


def test_a_small_body_that_grows_is_too_large(tmp_path: Path) -> None:
    """It is not read further than the limit."""
    bomb = gzip.compress(b" " * 2**26)
    with running(tmp_path, max_body=2**17) as loop, speaking(loop) as http:
        assert len(bomb) < 2**17
        answer = http.post(INFER, content=bomb, headers={"content-encoding": "gzip"})
        error(answer, 413, "too-large")
        error(http.post(INFER, content=b" " * (2**17 + 1)), 413, "too-large")


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate, gzip;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("br", None),
        ("", None),
    ],
)
def test_long_answers_are_compressed_where_that_is_accepted(
    http: Http, accept: str, coding: str | None
) -> None:
    """Short ones are not worth it."""
    for inputs, expected in ((matrix(*[SETOSA] * 50), coding), (matrix(SETOSA), None)):
        answer = http.post(INFER, {"inputs": inputs}, headers={"accept-encoding": accept})
        assert answer.headers.get("content-encoding") == expected
        assert set(said(answer)["prediction"]) == {"setosa"}


def test_large_requests_leave_the_event_loop(http: Http) -> None:
    """And are answered like others."""
    body = {"inputs": matrix(*[SETOSA, VIRGINICA] * 2500)}
    assert len(json.dumps(body)) > SMALL
    found = said(http.post(INFER, body))
    assert found["prediction"] == ["setosa", "virginica"] * 2500


# What is wrong.


def test_a_wrong_value_is_told_as_everywhere(http: Http) -> None:
    """The field, and what is wrong with it."""
    plain = http.post("/v1/models/iris/predict", {**SETOSA, "petal_width": "abc"}).json()
    wrong = {**SETOSA, "petal_width": "abc"}
    told = error(http.post(INFER, {"inputs": fields(wrong)}), 422, "invalid-input")
    assert (told["detail"], told["errors"]) == (plain["detail"], plain["errors"])
    told = error(
        http.post(INFER, {"inputs": fields(wrong, kinds={"petal_width": "FP64"})}),
        422,
        "invalid-input",
    )
    assert told["errors"][0]["pointer"] == "/inputs/3/data/0"
    assert "input 'petal_width': 'abc' is not a float" in told["error"]
    for good in (5, 0.0):
        said(http.post(INFER, {"inputs": fields({**SETOSA, "petal_width": good})}))


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b"[" * 100_000, 400, None),
        (b"[]", 422, ""),
        (b"5", 422, ""),
        (b"{}", 422, "/inputs"),
        ({"inputs": {}}, 422, "/inputs"),
        ({"inputs": [5]}, 422, "/inputs"),
        ({"inputs": [{}]}, 422, "/inputs/0/name"),
        ({"inputs": []}, 422, "/sepal_length"),
        ({"inputs": fields(SETOSA)[1:]}, 422, "/sepal_length"),
        ({"inputs": fields({**SETOSA, "colour": "red"})}, 422, "/colour"),
        ({"inputs": fields({**SETOSA, "species": "setosa"})}, 422, "/species"),
        ({"inputs": fields(SETOSA) * 2}, 422, "/inputs"),
        ({"inputs": [*fields(SETOSA)[:3], *fields(SETOSA, SETOSA)[3:]]}, 422, "/inputs/3/shape"),
        ({"inputs": matrix({"a": 1.0})}, 422, "/0"),
        ({"inputs": fields(SETOSA), "id": 5}, 422, "/id"),
        ({"inputs": fields(SETOSA), "parameters": []}, 422, "/parameters"),
        ({"inputs": fields(SETOSA), "parameters": {"timeout": "1s"}}, 422, "/parameters/timeout"),
        ({"inputs": fields(SETOSA), "outputs": "all"}, 422, "/outputs"),
        ({"inputs": fields(SETOSA), "outputs": [{}]}, 422, "/outputs/0/name"),
        (
            {"inputs": [{**each, "parameters": 5} for each in fields(SETOSA)]},
            422,
            "/inputs/0/parameters",
        ),
        (
            {
                "inputs": [
                    {**each, "parameters": {"shared_memory_region": "x"}} for each in fields(SETOSA)
                ]
            },
            422,
            "/inputs/0/parameters/shared_memory_region",
        ),
        (
            {
                "inputs": fields(SETOSA),
                "outputs": [{"name": "prediction", "parameters": {"classification": 2}}],
            },
            422,
            "/outputs/0/parameters/classification",
        ),
        (
            {"inputs": [{**fields(SETOSA)[0], "parameters": {"binary_data_size": -1}}]},
            422,
            "/inputs/0/parameters/binary_data_size",
        ),
        (
            {"inputs": [{**fields(SETOSA)[0], "parameters": {"binary_data_size": 8}}]},
            422,
            "/inputs/0/parameters/binary_data_size",
        ),
    ],
)
def test_wrong_requests_are_told_apart(
    http: Http, body: Any, status: int, pointer: str | None
) -> None:
    """By code, place and sentence."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = error(
        http.post(INFER, content=content),
        status,
        "unreadable" if status == 400 else "invalid-input",
    )
    if pointer is not None:
        assert told["errors"][0]["pointer"] == pointer


def test_nan_and_null_are_for_the_schema(http: Http) -> None:
    """Which does not allow them here."""
    for value in ("null", "NaN", "Infinity", "1e999"):
        text = json.dumps({"inputs": fields({**SETOSA, "petal_width": 0.125})}).replace(
            "0.125", value
        )
        told = error(http.post(INFER, content=text.encode()), 422, "invalid-input")
        assert told["errors"][0]["pointer"] == "/petal_width"


def test_a_deadline_may_be_a_parameter(http: Http, loop: Loop, tmp_path: Path) -> None:
    """In microseconds, as Triton has it, or seconds in the query, as here."""
    sleep = fields({"sleep": str(tmp_path / "w")})
    try:
        body = {"inputs": sleep, "parameters": {"timeout": 50_000}}
        error(http.post("/v2/models/moody/infer", body), 504, "timeout")
        (tmp_path / "w").touch()
        until(lambda: loop.serving.service("moody").trouble is None, "it is back")
        sleep = fields({"sleep": str(tmp_path / "x")})
        error(http.post("/v2/models/moody/infer?timeout=0.05", {"inputs": sleep}), 504, "timeout")
    finally:
        (tmp_path / "w").touch()
        (tmp_path / "x").touch()
    until(lambda: loop.serving.service("moody").trouble is None, "it is back")
    assert http.post(f"{INFER}?timeout=x", {"inputs": fields(SETOSA)}).status_code == 422


def test_a_failing_model_says_nothing_of_itself(http: Http) -> None:
    """But its error, in the protocol's way."""
    error(
        http.post("/v2/models/moody/infer", {"inputs": fields({"raise": True})}),
        500,
        "model-failed",
    )


def test_tokens_are_asked_for(tmp_path: Path) -> None:
    """Except for health; with the scopes as everywhere."""
    with running(tmp_path, token_required=True) as loop, speaking(loop) as http:
        good = {"authorization": f"Bearer {loop.access.issue('good', ['predict'])}"}
        poor = {"authorization": f"Bearer {loop.access.issue('poor', ['learn'])}"}
        body = {"inputs": fields(SETOSA)}
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert http.get(path).status_code == 200
        for path in ("/v2", "/v2/models/iris", "/v2/models/iris/ready", "/v2/nope"):
            error(http.get(path), 401, "unauthorized")
        answer = http.post(INFER, body)
        error(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"]
        error(http.post(INFER, body, headers=poor), 403, "forbidden")
        error(http.post(INFER, content=b"{", headers=poor), 403, "forbidden")
        for path in ("/v2/models/iris", "/v2/models/iris/ready"):
            error(http.get(path, headers=poor), 403, "forbidden")
        error(http.post("/v2/repository/models/iris/load", headers=good), 403, "forbidden")
        assert said(http.post(INFER, body, headers=good))["prediction"] == ["setosa"]


def test_pages_of_other_sites_are_kept_out(http: Http) -> None:
    """As from all other routes."""
    answer = http.post(
        INFER, {"inputs": fields(SETOSA)}, headers={"origin": "https://evil.example"}
    )
    error(answer, 403, "forbidden")


JSON = st.recursive(
    NIL | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([*FEATURES, "x", "prediction_id"]) | JSON,
        "datatype": st.sampled_from(["FP64", "BYTES", "BOOL", "INT8", "BF16"]) | JSON,
        "shape": st.sampled_from([[1], [1, 4], [2, 4], [0]])
        | st.lists(st.integers(), max_size=3)
        | JSON,
        "data": st.lists(st.floats() | st.text(max_size=3), max_size=4) | JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 40) | JSON}
        )
        | JSON,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    told=st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.lists(INPUT, max_size=4) | JSON,
            "outputs": st.lists(st.fixed_dictionaries({}, optional={"name": JSON}), max_size=2)
            | JSON,
            "parameters": st.fixed_dictionaries(
                {}, optional={"timeout": JSON, "prediction_id": JSON}
            )
            | JSON,
            "id": JSON,
        },
    )
    | JSON,
    tail=st.binary(max_size=40),
    cut=st.integers(-3, 3) | NIL,
)
def test_nothing_that_is_sent_is_our_mistake(
    http: Http, told: Any, tail: bytes, cut: int | None
) -> None:
    """It is answered, or refused by name."""
    text = json.dumps(told).encode()
    headers = {} if cut is None else {LENGTH: str(len(text) + cut)}
    answer = http.post(INFER, content=text + (b"" if cut is None else tail), headers=headers)
    if answer.status_code != 200:
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["error"]


# The fast lane.


class TensorWriter(Writer):
    """Writes requests of this protocol, most of them good."""

    def path(self) -> str:
        pick = self.chance.random()
        if pick < 0.6:
            return INFER
        return self.chance.choice(
            [
                "/v2/models/sales/infer",
                "/v2/models/moody/infer",
                "/v2/models/iris/versions/1/infer",
                "/v2/models/iris/versions/9/infer",
                "/v2/models/iris/versions/0/infer",
                "/v2/models/iris/versions/01/infer",
                "/v2/models/iris/versions/x/infer",
                "/v2/models/iris/versions//infer",
                "/v2/models/iris/versions/1234567890/infer",
                "/v2/models/nope/infer",
                "/v2/models//infer",
                "/v2/models/iris/infer/",
                "/v2/models/%69ris/infer",
                "/v2/models/iris/infer#x",
                "/v2/models/iris",
                "/v2",
                "/v1/models/iris/predict",
            ]
        )

    def query(self) -> str:
        pick = self.chance.random()
        if pick < 0.7:
            return ""
        return "?" + self.chance.choice(
            [
                "timeout=30",
                "timeout=x",
                "alias=champion",
                "alias=previous",
                "alias=x",
                "version=9",
                "x",
            ]
        )

    def headers(self) -> list[tuple[str, str]]:
        held = [each for each in super().headers() if each[0].lower() != "prediction-id"]
        if self.chance.random() < 0.3:
            codings = ["gzip", "deflate", "identity", "gzip, deflate;q=0.5", "br", ""]
            held.append(("accept-encoding", self.chance.choice(codings)))
        if self.chance.random() < 0.1:
            held.append((LENGTH, self.chance.choice(["0", "20", "200", "x", ""])))
        return held

    def body(self, path: str) -> bytes:
        chance = self.chance
        if "/v2" not in path or chance.random() < 0.1:
            return super().body(path)
        told: dict[str, Any] = {"inputs": self.inputs(path)}
        if chance.random() < 0.3:
            told["id"] = chance.choice(["r", "r-@@-", "", 5, None, "\u2028"])
        if chance.random() < 0.3:
            told["outputs"] = chance.choice(
                [
                    [],
                    [{"name": "prediction"}],
                    [{"name": "prediction_id"}, {"name": "prediction"}],
                    [{"name": "probabilities", "parameters": {"binary_data": True}}],
                    [{"name": "nope"}],
                    [{}],
                    "all",
                ]
            )
        if chance.random() < 0.3:
            self.count += 1
            told["parameters"] = chance.choice(
                [
                    {},
                    None,
                    {"binary_data_output": True},
                    {"timeout": 20_000_000},
                    {"timeout": -1},
                    {"prediction_id": f"t{self.count}-@@-"},
                    {"prediction_id": "again-@@-"},
                    {"prediction_id": 5},
                    [],
                ]
            )
        return json.dumps(told, indent=chance.choice([None, None, 1])).encode()

    def inputs(self, path: str) -> Any:
        """Tensors, most of them good."""
        chance = self.chance
        rows = [self.row(path) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
        count, pick = len(rows), chance.random()
        if "iris" in path and pick < 0.4:
            data: Any = [list(row.values()) for row in rows]
            shape = [count, len(rows[0])]
            if chance.random() < 0.5:
                data = [value for row in data for value in row]
            name = chance.choice(["input-0", "predict", "inputs", "", FEATURES[0]])
            return [{"name": name, "datatype": "FP32", "shape": shape, "data": data}]
        names = dict.fromkeys(name for row in rows for name in row)
        found = [
            {
                "name": name,
                "datatype": chance.choice(["FP64"] * 9 + ["BYTES", "INT32", "FP9"]),
                "shape": chance.choice([[count]] * 5 + [[count, 1]] * 3 + [[count + 1]]),
                "data": [row.get(name) for row in rows],
            }
            for name in names
        ]
        if chance.random() < 0.1:
            self.count += 1
            ids = [f"i{self.count}-{index}-@@-" for index in range(count)]
            found.append(
                {"name": "prediction_id", "datatype": "BYTES", "shape": [count], "data": ids}
            )
        if chance.random() < 0.1:
            found[0]["parameters"] = chance.choice([{}, None, {"content_type": "np"}, 5])
        return found


@pytest.fixture(scope="module", params=["open", "guarded"])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """With the lane and without it."""
    guarded = request.param == "guarded"
    folder = tmp_path_factory.mktemp("tensors")
    with running(folder, max_body=3000, token_required=guarded) as loop, ExitStack() as stack:
        token = loop.access.issue("app", ["predict"])
        one, two = (stack.enter_context(served(loop, lane)) for lane in (True, False))
        yield Servers(loop, one, two, two, token)
        for server in (one, two):
            server.at_rest()


@pytest.mark.parametrize("seed", ["v2-0", "v2-1"])
def test_the_lane_answers_as_the_application_does(servers: Servers, seed: str) -> None:
    """Byte for byte, whatever is sent, and however it is cut up on its way."""
    chance = random.Random(seed)
    writer = TensorWriter(chance, servers.token, servers.loop.access.required)
    for _ in range(250 * TIMES):
        sent = b"".join(writer.write() for _ in range(chance.choice([1, 1, 1, 4]))) + PING
        compare(servers.lane, servers.plain, sent, places_of(chance, sent))


def test_most_requests_take_the_lane(servers: Servers) -> None:
    """Otherwise the comparison would say little."""
    writer = TensorWriter(random.Random(1), servers.token, servers.loop.access.required)
    taken = 0
    for _ in range(300):
        first, *lines = writer.write().partition(b"\r\n\r\n")[0].split(b"\r\n")
        method, url, _ = first.split(b" ")
        held = [(n.lower(), v) for n, _, v in (line.partition(b": ") for line in lines)]
        taken += method == b"POST" and servers.lane.door.admit(url, held) is not None
    assert taken > 80


def test_each_connection_gets_its_own_answer(servers: Servers) -> None:
    """Of many that are answered together, some by each protocol."""
    known = [("authorization", f"Bearer {servers.token}")]
    with ExitStack() as stack:
        lines = [stack.enter_context(servers.lane.line()) for _ in range(60)]
        for index, line in enumerate(lines):
            row = {**SETOSA, FEATURES[index % 4]: "x"} if index % 3 == 0 else VIRGINICA
            if index % 2:
                line.send(post({"id": str(index), "inputs": fields(row)}, INFER, known))
            else:
                line.send(post(row, headers=known))
        for index, line in enumerate(lines):
            answer = line.answer()
            told = answer.json()
            assert answer.status == (422 if index % 3 == 0 else 200)
            if index % 3 == 0:
                assert told["errors"][0]["pointer"] == f"/{FEATURES[index % 4]}"
            elif index % 2:
                assert told["id"] == str(index) and told["outputs"][0]["data"] == ["virginica"]
            else:
                assert told["prediction"] == "virginica"


def test_broken_and_slow_senders_harm_nobody(servers: Servers) -> None:
    """They are cut off in the middle, or end in garbage, and the server goes on."""
    chance = random.Random(5)
    known = [("authorization", f"Bearer {servers.token}")]
    good = post({"inputs": fields(SETOSA)}, INFER, known)
    data = np.array([list(SETOSA.values())], "<f8").tobytes()
    content, headers = packed({"inputs": [raw("x", "FP64", [1, 4], data)]}, data)
    binary = post(content, INFER, [*known, *headers.items()])
    server: Served = servers.lane
    with ExitStack() as stack:
        for sent in (
            good,
            binary,
            post(content, INFER, [*known, *headers.items()], chunks=[50, 90]),
        ):
            assert server.ask(sent).status == 200
            for _ in range(20):
                line = stack.enter_context(server.line())
                line.send(sent[: chance.randrange(1, len(sent))])
                if chance.random() < 0.3:
                    line.send(chance.randbytes(50))
                chance.choice([line.close, line.reset, lambda: None])()
            slow = stack.enter_context(server.line())
            slow.send(sent, range(0, len(sent), 7))
            assert slow.answer().status == 200
    server.at_rest()
    assert server.ask(good).json()["outputs"][0]["data"] == ["setosa"]
    assert msgspec.json.decode(server.ask(good).body)["model_name"] == "iris"


def test_past_the_bound_requests_are_shed(tmp_path: Path) -> None:
    """At once, with a word on when to come back; who hangs up makes room for others."""
    path, wake = "/v2/models/moody/infer", tmp_path / "w"

    def say(word: str) -> bytes:
        return post({"inputs": fields({"say": word})}, path)

    with running(tmp_path, max_queue=2) as loop, served(loop) as server, ExitStack() as stack:
        first, *others = (stack.enter_context(server.line()) for _ in range(6))
        service = loop.serving.service("moody")
        first.send(post({"inputs": fields({"say": "woken", "sleep": str(wake)})}, path))
        until(lambda: service.running, "the model is asleep")
        for number, line in enumerate(others):
            line.send(say(str(number)))
            until(lambda most=number: len(service.queue) == min(most + 1, 2), "it is queued")
        for line in others[2:]:
            answer = line.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"].startswith("overloaded: ")
        others[0].reset()
        wake.touch()
        assert first.answer().json()["outputs"][0]["data"] == ["woken"]
        assert others[1].answer().json()["outputs"][0]["data"] == ["1"]
        assert others[4].ask(say("room")).json()["outputs"][0]["data"] == ["room"]
