from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopline.adapters.http_predict import class_name
from loopline.loop import Loop
from tests.adapters.speaking import (
    FEATURES,
    SETOSA,
    VIRGINICA,
    Http,
    pointers,
    problem,
    running,
    speaking,
    state_of,
)

PREDICT = "/v1/models/iris/predict"


def test_one_row_gets_one_prediction(http: Http) -> None:
    """An object is answered by an object with the id, the model and the version."""
    answer = http.post(PREDICT, SETOSA)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert set(told) == {"id", "model", "version", "prediction"}
    assert (told["model"], told["version"], told["prediction"]) == ("iris", 1, "setosa")
    assert isinstance(told["version"], int) and len(told["id"]) == 36


@pytest.mark.parametrize(
    "body",
    [
        [SETOSA, VIRGINICA],
        [list(SETOSA.values()), list(VIRGINICA.values())],
        {name: [SETOSA[name], VIRGINICA[name]] for name in FEATURES},
        {"inputs": [SETOSA, VIRGINICA]},
        {"inputs": {name: [SETOSA[name], VIRGINICA[name]] for name in FEATURES}},
    ],
    ids=["objects", "lists", "columns", "envelope", "envelope of columns"],
)
def test_many_rows_get_many_predictions(http: Http, body: Any) -> None:
    """Every shape that holds several rows is answered by a list in their order."""
    told = http.post(PREDICT, body).json()
    assert set(told) == {"model", "version", "predictions"}
    assert [each["prediction"] for each in told["predictions"]] == ["setosa", "virginica"]
    assert all(set(each) == {"id", "prediction"} for each in told["predictions"])
    assert len({each["id"] for each in told["predictions"]}) == 2


def test_a_list_of_one_is_answered_by_a_list(http: Http) -> None:
    """Who asks for many gets many, even where it is one; a regression answers with numbers."""
    told = http.post("/v1/models/sales/predict", {"TV": [50]}).json()
    assert len(told["predictions"]) == 1
    assert told["predictions"][0]["prediction"] == pytest.approx(9.5, abs=0.1)


def test_probabilities_come_by_class_on_request(http: Http) -> None:
    """They are named by class and add up to one, for one row as for many."""
    one = http.post(f"{PREDICT}?probabilities=true", SETOSA).json()
    assert set(one["probabilities"]) == {"setosa", "versicolor", "virginica"}
    assert sum(one["probabilities"].values()) == pytest.approx(1.0)
    many = http.post(f"{PREDICT}?probabilities=1", [SETOSA]).json()
    assert many["predictions"][0]["probabilities"] == pytest.approx(one["probabilities"])
    assert "probabilities" not in http.post(f"{PREDICT}?probabilities=false", SETOSA).json()


def test_probabilities_of_a_regression_are_refused(http: Http, loop: Loop) -> None:
    """Before anything is predicted or logged."""
    before = loop.log.count("sales.predictions")
    answer = http.post("/v1/models/sales/predict?probabilities=true", {"TV": 50})
    assert pointers(problem(answer, 422, "invalid-input")) == ["?probabilities"]
    assert loop.log.count("sales.predictions") == before


def test_ids_are_given_by_header_or_body(http: Http) -> None:
    """One row's id comes in a header, many rows' in the envelope."""
    one = http.post(PREDICT, SETOSA, headers={"Prediction-Id": "order-1"}).json()
    assert one["id"] == "order-1"
    body = {"inputs": [SETOSA, VIRGINICA], "ids": ["order-2", "order-3"]}
    many = http.post(PREDICT, body).json()
    assert [each["id"] for each in many["predictions"]] == ["order-2", "order-3"]
    single = http.post(PREDICT, {"inputs": SETOSA, "ids": ["order-4"]}).json()
    assert single["id"] == "order-4"


def test_an_id_given_twice_is_answered_as_the_first_time(http: Http) -> None:
    """The second row under an id changes nothing."""
    headers = {"Prediction-Id": "twice"}
    first = http.post(PREDICT, SETOSA, headers=headers).json()
    assert http.post(PREDICT, VIRGINICA, headers=headers).json() == first


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("a", ["/ids"]),
        ({"0": "a"}, ["/ids"]),
        (["a"], ["/ids"]),
        (["a", 5], ["/ids/1"]),
        (["a", "a"], ["/ids/1"]),
        (["", "x" * 201], ["/ids/0", "/ids/1"]),
    ],
)
def test_ids_that_do_not_fit_are_named(http: Http, ids: Any, expected: list[str]) -> None:
    """Ids of the wrong number, type or length are refused by position."""
    answer = http.post(PREDICT, {"inputs": [SETOSA, SETOSA], "ids": ids})
    assert pointers(problem(answer, 422, "invalid-input")) == expected


def test_a_form_is_one_row_of_text(http: Http) -> None:
    """Numbers in a form are spelled out, and understood."""
    told = http.post(PREDICT, data={name: str(SETOSA[name]) for name in FEATURES}).json()
    assert told["prediction"] == "setosa"


def test_other_formats_in_and_out(http: Http) -> None:
    """MessagePack, NDJSON and CSV are read; the answer comes as accepted, or as the body came."""
    packed = msgspec.msgpack.encode(SETOSA)
    kind = "application/msgpack"
    answer = http.post(PREDICT, content=packed, headers={"content-type": kind})
    assert answer.headers["content-type"] == kind
    assert msgspec.msgpack.decode(answer.content)["prediction"] == "setosa"
    answer = http.post(
        PREDICT, content=packed, headers={"content-type": kind, "accept": "application/json"}
    )
    assert answer.json()["prediction"] == "setosa"
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in (SETOSA, VIRGINICA))
    answer = http.post(PREDICT, content=lines, headers={"content-type": "application/x-ndjson"})
    told = [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert [each["prediction"] for each in told] == ["setosa", "virginica"]
    assert all(set(each) == {"id", "model", "version", "prediction"} for each in told)
    table = ",".join(FEATURES) + "\n" + ",".join(str(SETOSA[name]) for name in FEATURES)
    answer = http.post(PREDICT, content=table, headers={"content-type": "text/csv"})
    assert answer.json()["predictions"][0]["prediction"] == "setosa"


def test_a_version_or_an_alias_can_be_picked(http: Http) -> None:
    """By number or by name; both at once, or one that is not there, is refused."""
    assert http.post(f"{PREDICT}?version=1", SETOSA).json()["version"] == 1
    assert http.post(f"{PREDICT}?alias=champion", SETOSA).json()["version"] == 1
    problem(http.post(f"{PREDICT}?version=7", SETOSA), 404, "unknown-version")
    problem(http.post(f"{PREDICT}?alias=previous", SETOSA), 404, "unknown-version")
    both = http.post(f"{PREDICT}?alias=champion&version=1", SETOSA)
    problem(both, 422, "invalid-input")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("version=abc", ["?version"]),
        ("version=0", ["?version"]),
        ("version=99999999999999999999999", ["?version"]),
        ("version=1.0", ["?version"]),
        ("version=", ["?version"]),
        ("alias=latest", ["?alias"]),
        ("timeout=nan", ["?timeout"]),
        ("timeout=0", ["?timeout"]),
        ("timeout=-1", ["?timeout"]),
        ("timeout=inf", ["?timeout"]),
        ("probabilities=maybe", ["?probabilities"]),
        ("version=x&timeout=y&alias=z", ["?version", "?alias", "?timeout"]),
    ],
)
def test_bad_query_values_are_named(http: Http, query: str, expected: list[str]) -> None:
    """Every query parameter that is not right is named, all at once."""
    told = problem(http.post(f"{PREDICT}?{query}", SETOSA), 422, "invalid-input")
    assert pointers(told) == expected


def test_all_field_errors_are_told_at_once(http: Http) -> None:
    """Each by its JSON Pointer into the body as it was written."""
    wrong = {"sepal_length": "long", "sepal_width": None, "petal_length": 1.4, "colour": "red"}
    told = problem(http.post(PREDICT, wrong), 422, "invalid-input")
    names = {"/sepal_length", "/sepal_width", "/petal_width", "/colour"}
    assert set(pointers(told)) == names
    told = problem(http.post(PREDICT, [SETOSA, wrong]), 422, "invalid-input")
    assert set(pointers(told)) == {f"/1{name}" for name in names}
    told = problem(http.post(PREDICT, {"inputs": [wrong]}), 422, "invalid-input")
    assert set(pointers(told)) == {f"/inputs/0{name}" for name in names}
    columns = {name: [1.0, 2.0] for name in FEATURES} | {"petal_width": [0.2, "wide"]}
    told = problem(http.post(PREDICT, columns), 422, "invalid-input")
    assert pointers(told) == ["/petal_width/1"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "unreadable"),
        (b"", "application/json", 400, "unreadable"),
        (b"\xff\xfe", "application/json", 400, "unreadable"),
        (b"[" * 100_000, "application/json", 400, "unreadable"),
        (b"\xc1", "application/msgpack", 400, "unreadable"),
        (b"<row/>", "application/xml", 415, "unsupported-media-type"),
        (b"{}", "multipart/form-data; boundary=x", 415, "unsupported-media-type"),
        (b"[]", "application/json", 422, "invalid-input"),
        (b"null", "application/json", 422, "invalid-input"),
        (b"5", "application/json", 422, "invalid-input"),
        (b"[5.1, 3.5, 1.4, 0.2]", "application/json", 422, "invalid-input"),
    ],
)
def test_bodies_that_are_no_rows(
    http: Http, body: bytes, kind: str, status: int, code: str
) -> None:
    """Bytes that cannot be read, types that are not known, and values that are no rows."""
    problem(http.post(PREDICT, content=body, headers={"content-type": kind}), status, code)


def test_a_compressed_body_is_refused_by_name(http: Http) -> None:
    """A content coding is named rather than misread."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = http.post(PREDICT, content=b"\x1f\x8b", headers=headers)
    assert "gzip" in problem(answer, 415, "unsupported-media-type")["detail"]


def test_an_unknown_model_is_named_with_those_that_are_there(http: Http) -> None:
    """The problem lists the models, to spare a look at the documentation."""
    told = problem(http.post("/v1/models/iriss/predict", SETOSA), 404, "unknown-model")
    assert "'iriss'" in told["detail"] and "iris, moody, sales" in told["detail"]


def test_the_models_own_exception_is_told_without_its_traceback(
    http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    """Type and message go to the caller, the traceback to the log under the same id."""
    headers = {"X-Request-Id": "trace-me"}
    answer = http.post("/v1/models/moody/predict", {"raise": True}, headers=headers)
    told = problem(answer, 500, "model-failed")
    assert "ZeroDivisionError: the secret of the moody model" in told["detail"]
    assert told["instance"] == "trace-me"
    record = next(each for each in caplog.records if "trace-me" in each.getMessage())
    assert record.exc_info is not None
    assert http.post("/v1/models/moody/predict", {"say": "fine"}).json()["prediction"] == "fine"


def test_a_request_id_that_could_forge_a_log_line_is_replaced(http: Http) -> None:
    """Only what can stand in a URI is taken over."""
    for bad_id in ("two words", "x" * 200, "<b>"):
        answer = http.post("/v1/models/nope/predict", {}, headers={"X-Request-Id": bad_id})
        assert len(problem(answer, 404, "unknown-model")["instance"]) == 36


def test_a_deadline_is_kept_while_others_go_on(tmp_path: Path) -> None:
    """A hanging call answers 504; the other models are not held up, and it comes back."""
    with running(tmp_path / "data") as loop, speaking(loop) as http:
        wake, path = tmp_path / "wake", "/v1/models/moody/predict"
        late = http.post(f"{path}?timeout=0.2", {"sleep": str(wake)})
        problem(late, 504, "timeout")
        assert http.post(PREDICT, SETOSA).status_code == 200
        told = problem(http.post(path, {"say": "now?"}), 503, "not-ready")
        assert "come back" in told["detail"]
        wake.touch()

        async def again() -> Any:
            while (answer := await http.ask("POST", path, json={"say": 1})).status_code != 200:
                await asyncio.sleep(0.01)
            return answer.json()["prediction"]

        assert http.submit(again()).result(30) == 1


def test_past_the_bound_requests_are_shed(tmp_path: Path) -> None:
    """While a call runs, only so many wait; the next is refused at once and told to come back."""
    with running(tmp_path / "data", max_queue=2) as loop, speaking(loop) as http:
        wake = tmp_path / "wake"

        async def crowd() -> list[Any]:
            path = "/v1/models/moody/predict"
            first = asyncio.ensure_future(http.ask("POST", path, json={"sleep": str(wake)}))
            while not loop.serving.service("moody").running:
                await asyncio.sleep(0.001)
            asks = [http.ask("POST", path, json={"say": n}) for n in range(5)]
            others = [asyncio.ensure_future(ask) for ask in asks]
            while sum(each.done() for each in others) < 3:
                await asyncio.sleep(0.001)
            wake.touch()
            return await asyncio.gather(first, *others)

        answers = http.submit(crowd()).result(60)
        shed = [each for each in answers if each.status_code != 200]
        assert len(shed) == 3
        for each in shed:
            problem(each, 503, "overloaded")
            assert each.headers["retry-after"] == "1"


def test_a_body_over_the_limit_is_refused_while_it_is_read(tmp_path: Path) -> None:
    """Whether or not it says how long it is."""

    async def chunks() -> Any:
        for _ in range(50):
            yield b" " * 100

    with running(tmp_path, max_body=1000) as loop, speaking(loop) as http:
        assert http.post(PREDICT, SETOSA).status_code == 200
        for path in (PREDICT, "/v1/models/iris/outcomes", "/v1/models/iris/learn"):
            problem(http.post(path, content=b" " * 1001), 413, "too-large")
            problem(http.post(path, content=chunks()), 413, "too-large")


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    """The number of rows in a request has a bound of its own."""
    with running(tmp_path, max_rows=3) as loop, speaking(loop) as http:
        assert http.post(PREDICT, [SETOSA] * 3).status_code == 200
        problem(http.post(PREDICT, [SETOSA] * 4), 413, "too-large")


def test_behind_the_router_the_bytes_are_the_same(loop: Loop, http: Http) -> None:
    """The quick way in front of the router and the slow way through it cannot be told apart."""
    cases: list[tuple[str, Any, dict[str, str]]] = [
        (PREDICT, SETOSA, {"Prediction-Id": "same-1"}),
        (f"{PREDICT}?probabilities=true", [SETOSA], {}),
        (f"{PREDICT}?version=abc&timeout=nan", SETOSA, {}),
        (PREDICT, {"sepal_length": "x"}, {}),
        ("/v1/models/nope/predict", SETOSA, {}),
        ("/v1/models/moody/predict", {"raise": True}, {}),
    ]
    with speaking(loop, quick=False) as slow:
        for path, body, more in cases:
            headers = {"X-Request-Id": "same", **more}
            one, two = (each.post(path, body, headers=headers) for each in (http, slow))
            assert one.status_code == two.status_code
            assert one.headers["content-type"] == two.headers["content-type"]
            if "probabilities" in path:
                assert one.json()["predictions"][0].keys() == two.json()["predictions"][0].keys()
            else:
                assert one.content == two.content


@pytest.mark.parametrize(
    ("label", "name"), [(True, "true"), (False, "false"), (1, "1"), (0.5, "0.5"), ("a b", "a b")]
)
def test_classes_are_named_as_json_would_spell_them(label: Any, name: str) -> None:
    """The keys of `probabilities` are texts, whatever the classes are."""
    assert class_name(label) == name


good = st.fixed_dictionaries({name: st.floats(0.1, 8.0) for name in FEATURES})
bad = st.one_of(
    st.just({}),
    st.builds(lambda row: row | {"petal_width": "wide"}, good),
    st.builds(lambda row: row | {"stranger": 1}, good),
    st.just([]),
    st.just("text"),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(bodies=st.lists(st.one_of(good, st.lists(good, min_size=1, max_size=4), bad), max_size=12))
def test_concurrent_requests_each_get_their_own_answer(http: Http, bodies: list[Any]) -> None:
    """Together as alone, and a bad request never touches those that came with it."""

    async def together() -> list[Any]:
        return await asyncio.gather(*(http.ask("POST", PREDICT, json=body) for body in bodies))

    for body, batched in zip(bodies, http.submit(together()).result(60), strict=True):
        alone = http.post(PREDICT, body)
        assert batched.status_code == alone.status_code
        if alone.status_code != 200:
            assert batched.json()["errors"] == alone.json()["errors"]
        elif isinstance(body, dict):
            assert batched.json()["prediction"] == alone.json()["prediction"]
        else:
            one, two = batched.json()["predictions"], alone.json()["predictions"]
            assert [each["prediction"] for each in one] == [each["prediction"] for each in two]


def test_refused_predictions_change_nothing(http: Http, loop: Loop) -> None:
    """Neither the log nor the store grows by what was refused."""
    before, logged = state_of(loop), loop.log.count("iris.predictions")
    http.post(PREDICT, [SETOSA, {}])
    http.post(PREDICT, content=b"{")
    http.post(f"{PREDICT}?version=9", SETOSA)
    http.post(PREDICT, {"inputs": [SETOSA], "ids": ["a", "b"]})
    assert state_of(loop) == before
    assert loop.log.count("iris.predictions") == logged
