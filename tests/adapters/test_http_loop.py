from __future__ import annotations

import json
from typing import Any

import pytest

from loopline.loop import Loop
from tests.adapters.speaking import (
    FEATURES,
    SETOSA,
    VIRGINICA,
    Http,
    pointers,
    problem,
    state_of,
)

IRIS = "/v1/models/iris"
SALES = "/v1/models/sales"


def predict(http: Http, id: str, row: Any = SETOSA) -> None:
    """Have a prediction under an id."""
    assert http.post(f"{IRIS}/predict", row, headers={"Prediction-Id": id}).status_code == 200


def test_outcomes_meet_their_predictions(fresh: Http) -> None:
    """One or a list, each with its own status, and the counts of all seven."""
    predict(fresh, "a")
    predict(fresh, "b")
    told = fresh.post(f"{IRIS}/outcomes", {"id": "a", "outcome": "setosa"}).json()
    assert told["results"] == [{"id": "a", "status": "joined"}]
    body = [
        {"id": "a", "outcome": "setosa"},
        {"id": "b", "outcome": "virginica", "at": "2026-01-02T03:04:05Z"},
        {"id": "early", "outcome": "setosa"},
    ]
    told = fresh.post(f"{IRIS}/outcomes", body).json()
    statuses = [each["status"] for each in told.pop("results")]
    assert statuses == ["duplicate", "joined", "waiting"]
    assert told == {
        "joined": 1,
        "waiting": 1,
        "duplicate": 1,
        "corrected": 0,
        "late": 0,
        "unknown": 0,
        "accepted": 0,
    }
    read = fresh.get(f"{IRIS}/predictions/b").json()
    assert read["outcome"]["value"] == "virginica"


def test_an_outcome_can_come_as_a_form(fresh: Http) -> None:
    """Its value is read in the type of the model's answers."""
    headers = {"Prediction-Id": "f"}
    fresh.post(f"{SALES}/predict", {"TV": 50}, headers=headers)
    told = fresh.post(f"{SALES}/outcomes", data={"id": "f", "outcome": "12.5"}).json()
    assert told["results"] == [{"id": "f", "status": "joined"}]
    assert fresh.get(f"{SALES}/predictions/f").json()["outcome"]["value"] == 12.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"id": 5, "outcome": "setosa"}, ["/id"]),
        ({"id": "a"}, ["/outcome"]),
        ({"id": "a", "outcome": "setosa", "at": "soon", "x": 1}, ["/x", "/at"]),
        ([{"id": "a", "outcome": "setosa"}, {"outcome": {}}], ["/1/id", "/1/outcome"]),
        ("text", [""]),
        ([7], ["/0"]),
    ],
)
def test_bad_outcomes_are_named_and_none_is_taken(
    http: Http, loop: Loop, body: Any, expected: list[str]
) -> None:
    """Pointers lead into the body as it was written, and the good ones among them wait too."""
    before = state_of(loop)
    told = problem(http.post(f"{IRIS}/outcomes", body), 422, "invalid-input")
    assert sorted(pointers(told)) == sorted(expected)
    assert state_of(loop) == before


def test_learn_takes_rows_in_every_shape(fresh: Http) -> None:
    """Objects, lists in column order, and forms with `data[]` all add rows."""
    rows = [
        {"json": {"TV": 10, "Sales": 7.5}},
        {"json": [{"TV": 10, "Sales": 7.5}, {"Sales": 8, "TV": 20}]},
        {"json": [10, 7.5]},
        {"json": [[10, 7.5], [20, 8]]},
        {"data": {"TV": "10", "Sales": "7.5"}},
        {"content": b"data[]=10&data[]=7.5", "headers": {"content-type": FORM}},
    ]
    expected = 60
    for options, count in zip(rows, (1, 2, 1, 2, 1, 1), strict=True):
        answer = fresh.request("POST", f"{SALES}/learn", **options)
        assert answer.status_code == 202, answer.text
        told = answer.json()
        expected += count
        assert (told["accepted"], told["rows"]) == (count, expected)
    assert set(told["summary"]) == {"TV", "Sales"}
    assert {"count", "mean", "std", "min", "max"} <= set(told["summary"]["TV"])


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"TV": 10}, ["/Sales"]),
        ({"TV": "ten", "Sales": None, "Radio": 1}, ["/TV", "/Sales", "/Radio"]),
        ([[10, 7.5], [10]], ["/1"]),
        ([[10, 7.5], [10, "many"]], ["/1/1"]),
    ],
)
def test_one_bad_row_keeps_all_of_them_out(
    http: Http, loop: Loop, body: Any, expected: list[str]
) -> None:
    """Learning is all or nothing, and says everything that is wrong."""
    before = state_of(loop)
    told = problem(http.post(f"{SALES}/learn", body), 422, "invalid-input")
    assert sorted(pointers(told)) == sorted(expected)
    assert state_of(loop) == before


def test_a_model_without_a_target_cannot_learn(http: Http) -> None:
    """That is the model's state, not the body's fault."""
    problem(http.post("/v1/models/moody/learn", {"say": "x"}), 409, "wrong-state")


def test_training_is_waited_for_and_becomes_a_version(fresh: Http) -> None:
    """In time: 200 with the version, its metrics and the decision; promoted and answering."""
    answer = fresh.post(f"{SALES}/train?wait=60", {"reason": "a test"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["version"], told["state"]) == (2, "done")
    assert told["metrics"]
    assert told["decision"]["candidate"] == 2
    assert answer.headers["location"] == f"/v1/jobs/{told['job']}"
    assert fresh.post(f"{SALES}/predict", {"TV": 50}).json()["version"] == 2
    shown = fresh.get(answer.headers["location"]).json()
    assert (shown["job"], shown["state"], shown["reason"]) == (told["job"], "done", "a test")
    versions = fresh.get(f"{SALES}/versions").json()["versions"]
    assert [each["version"] for each in versions] == [1, 2]
    assert versions[1]["aliases"] == ["champion"] and versions[0]["aliases"] == ["previous"]
    back = fresh.post(f"{SALES}/rollback").json()
    assert (back["verdict"], back["candidate"]) == ("rollback", 1)
    assert fresh.post(f"{SALES}/predict", {"TV": 50}).json()["version"] == 1
    again = fresh.post(f"{SALES}/promote", {"version": 2})
    assert again.status_code == 200 and again.json()["verdict"] == "promote"
    decisions = fresh.get(f"{SALES}/decisions").json()["decisions"]
    assert [each["number"] for each in decisions] == [1, 2, 3, 4]
    assert decisions[-1] == again.json()
    assert fresh.post(f"{SALES}/predict?version=1", {"TV": 50}).json()["version"] == 1
    assert fresh.post(f"{SALES}/predict?alias=previous", {"TV": 50}).json()["version"] == 1


@pytest.mark.parametrize(
    ("path", "headers", "applied"),
    [
        ("train", {}, None),
        ("train?wait=60", {"Prefer": "respond-async"}, "respond-async"),
        ("train", {"Prefer": 'foo, Respond-Async; x, wait="0"'}, "wait=0"),
    ],
)
def test_training_need_not_be_waited_for(
    fresh: Http, path: str, headers: dict[str, str], applied: str | None
) -> None:
    """Without `wait`, or when the caller prefers so, the job is answered at once."""
    answer = fresh.post(f"{SALES}/{path}", headers=headers)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert set(told) == {"job", "state"} and told["state"] in ("queued", "running")
    assert answer.headers["location"] == f"/v1/jobs/{told['job']}"
    assert answer.headers.get("preference-applied") == applied
    assert fresh.get(f"/v1/jobs/{told['job']}?wait=60").json()["state"] == "done"


def test_preferring_to_wait_waits(fresh: Http) -> None:
    """`Prefer: wait=N` is as good as `?wait=N`."""
    answer = fresh.post(f"{SALES}/train", headers={"Prefer": "wait=60"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=60"


def test_a_training_that_fails_in_time_is_a_problem(fresh: Http) -> None:
    """It tells the estimator's own words and the job, and changes no version."""
    answer = fresh.post(f"{SALES}/train?wait=60", {"parameters": {"nonsense": 1}})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code in (422, 500)
    told = answer.json()
    assert "nonsense" in told["detail"] and "Traceback" not in answer.text
    assert fresh.get(f"/v1/jobs/{told['job']}").json()["state"] == "failed"
    assert len(fresh.get(f"{SALES}/versions").json()["versions"]) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"parameters": [1]}, ["/parameters"]),
        ({"reason": 5, "parameters": "x"}, ["/parameters", "/reason"]),
        ({"params": {}}, ["/params"]),
        ([1], [""]),
    ],
)
def test_bad_training_options_queue_nothing(
    http: Http, loop: Loop, body: Any, expected: list[str]
) -> None:
    """The options are checked before there is a job."""
    before = state_of(loop)
    told = problem(http.post(f"{SALES}/train", body), 422, "invalid-input")
    assert sorted(pointers(told)) == expected
    assert state_of(loop) == before


def test_what_cannot_be_trained_says_so(http: Http) -> None:
    """A model without fit is in the wrong state, and a bad wait is named."""
    problem(http.post("/v1/models/moody/train"), 409, "wrong-state")
    for wait in ("-1", "nan", "soon", "1e9"):
        told = problem(http.post(f"{SALES}/train?wait={wait}"), 422, "invalid-input")
        assert pointers(told) == ["?wait"]


def test_a_model_that_was_never_trained_is_not_ready(fresh: Http) -> None:
    """409 while nothing is on its way, 503 with `Retry-After` once a training is."""
    body = {"estimator": "sklearn.linear_model.LinearRegression", "target": "y"}
    assert fresh.request("PUT", "/v1/models/never", json=body).status_code == 201
    told = problem(fresh.post("/v1/models/never/predict", {"x": 5}), 409, "not-ready")
    assert "/v1/models/never/learn" in told["detail"]
    data = [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 4.0}, {"x": 3.0, "y": 6.0}]
    assert fresh.request("PUT", "/v1/models/late", json=body | {"data": data}).status_code == 201
    answer = fresh.post("/v1/models/late/predict", {"x": 5})
    if answer.status_code != 200:  # The training may be quicker than the request.
        problem(answer, 503, "not-ready")
        assert int(answer.headers["retry-after"]) >= 1
    job = fresh.get("/v1/jobs?model=late").json()["jobs"][0]["job"]
    assert fresh.get(f"/v1/jobs/{job}?wait=60").json()["state"] == "done"
    assert fresh.post("/v1/models/late/predict", {"x": 5}).json()["prediction"] == pytest.approx(10)


def test_promote_and_rollback_refuse_what_makes_no_sense(http: Http, loop: Loop) -> None:
    """The champion itself, versions that are not there, numbers that are none."""
    before = state_of(loop)
    problem(http.post(f"{IRIS}/promote", {"version": 1}), 409, "wrong-state")
    problem(http.post(f"{IRIS}/promote", {"version": 9}), 404, "unknown-version")
    problem(http.post(f"{IRIS}/rollback"), 409, "wrong-state")
    for version in (0, -1, True, "x", None, 1.5, 2**80):
        told = problem(http.post(f"{IRIS}/promote", {"version": version}), 422, "invalid-input")
        assert pointers(told) == ["/version"]
    problem(http.post(f"{IRIS}/promote"), 422, "invalid-input")
    assert state_of(loop) == before


def test_score_on_given_rows_or_on_its_own(http: Http) -> None:
    """With a body on those rows; without one, on what there is."""
    rows = [SETOSA | {"species": "setosa"}, VIRGINICA | {"species": "virginica"}]
    told = http.post(f"{IRIS}/score", rows).json()
    assert (told["rows"], told["version"], told["metrics"]["accuracy"]) == (2, 1, 1.0)
    told = http.post(f"{IRIS}/score?version=1").json()
    assert told["rows"] == 150
    problem(http.post(f"{IRIS}/score?version=4"), 404, "unknown-version")
    told = problem(http.post(f"{IRIS}/score", [SETOSA]), 422, "invalid-input")
    assert pointers(told) == ["/0/species"]


def test_models_are_listed_and_described(http: Http) -> None:
    """Each entry has a name and whether it is ready, as V1 clients expect."""
    listed = {each["name"]: each for each in http.get("/v1/models").json()["models"]}
    assert set(listed) == {"iris", "sales", "moody"}
    assert listed["iris"]["ready"] is True
    told = http.get(IRIS).json()
    assert (told["name"], told["champion"], told["target"]) == ("iris", 1, "species")
    assert set(told["schema"]["properties"]) == set(FEATURES)
    assert told["columns"] == [*FEATURES, "species"]
    problem(http.get("/v1/models/nope"), 404, "unknown-model")


def test_versions_scores_and_decisions_are_told(http: Http) -> None:
    """The lists of a model that came fitted hold its one version."""
    assert http.get(f"{IRIS}/versions/1").json()["version"] == 1
    problem(http.get(f"{IRIS}/versions/2"), 404, "unknown-version")
    problem(http.get(f"{IRIS}/versions/one"), 404, "unknown-path")
    assert http.get(f"{IRIS}/decisions").json()["decisions"][0]["candidate"] == 1
    assert isinstance(http.get(f"{IRIS}/scores").json(), dict)
    for path in ("versions", "decisions", "scores", "report", "predictions", "versions/1"):
        problem(http.get(f"/v1/models/nope/{path}"), 404, "unknown-model")


def test_models_come_and_go_while_running(fresh: Http) -> None:
    """PUT defines one by import path, is replaced by another PUT, and DELETE removes it."""
    path = "/v1/models/line"
    body = {
        "estimator": "sklearn.linear_model.LinearRegression",
        "parameters": {"fit_intercept": False},
        "data": [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 4.0}, {"x": 3.0, "y": 6.0}],
        "target": "y",
    }
    answer = fresh.request("PUT", path, json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == path
    assert answer.json()["name"] == "line"
    job = fresh.get("/v1/jobs?model=line").json()["jobs"][0]["job"]
    assert fresh.get(f"/v1/jobs/{job}?wait=60").json()["state"] == "done"
    assert fresh.post(f"{path}/predict", {"x": 4}).json()["prediction"] == pytest.approx(8.0)
    assert fresh.request("PUT", path, json=body).status_code == 200
    answer = fresh.request("DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    problem(fresh.get(path), 404, "unknown-model")
    problem(fresh.request("DELETE", path), 404, "unknown-model")


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("line", {}, "/estimator"),
        ("line", {"estimator": "os.system"}, None),
        ("line", {"estimator": "no.such.Thing"}, None),
        ("line", {"estimator": "sklearn.linear_model.LinearRegression", "wheels": 4}, "/wheels"),
        ("line", {"model": "cubic"}, "/model"),
        ("Line", {"model": "linear", "data": [{"x": 1, "y": 1}], "target": "y"}, "/name"),
        ("line", {"model": "linear", "data": [{"x": 1, "y": 1}], "target": "z"}, "/target"),
        ("line", {"model": "linear", "data": "/no/such/file.csv", "target": "z"}, None),
        ("line", {"model": "linear", "parameters": {"nonsense": 1}}, None),
        ("line", {"model": "linear", "data": [5, "x"], "target": "y"}, None),
        ("line", {"model": "linear", "data": {"x": 1}, "target": "y"}, None),
        ("line", [], ""),
    ],
)
def test_bad_definitions_are_refused(
    http: Http, loop: Loop, name: str, body: Any, expected: str | None
) -> None:
    """They name what is wrong, and no model is there afterwards."""
    before = state_of(loop)
    answer = http.request("PUT", f"/v1/models/{name}", json=body)
    told = problem(answer, 422, "invalid-input")
    assert expected is None or expected in pointers(told)
    assert state_of(loop) == before


def test_a_report_comes_as_html_or_json(fresh: Http) -> None:
    """By `format` or by what is accepted; HTML is shown in a sandbox."""
    body = {
        "formula": "y ~ x",
        "data": [{"x": float(x), "y": 2.0 * x + (x % 3)} for x in range(20)],
        "target": "y",
    }
    path = "/v1/models/fitted"
    assert fresh.request("PUT", path, json=body).status_code == 201
    job = fresh.get("/v1/jobs?model=fitted").json()["jobs"][0]["job"]
    assert fresh.get(f"/v1/jobs/{job}?wait=60").json()["state"] == "done"
    told = fresh.get(f"{path}/report").json()
    assert (told["model"], told["version"]) == ("fitted", 1) and told["report"]
    for options in ({"headers": {"Accept": "text/html"}}, {"params": {"format": "html"}}):
        answer = fresh.get(f"{path}/report", **options)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "<" in answer.text
    answer = fresh.get(f"{path}/report?format=json", headers={"Accept": "text/html"})
    assert answer.json() == told
    told = problem(fresh.get(f"{path}/report?format=pdf"), 422, "invalid-input")
    assert pointers(told) == ["?format"]
    problem(fresh.get("/v1/models/moody/report"), 409, "wrong-state")


def test_predictions_are_read_back(fresh: Http) -> None:
    """One by its id, or a span of time as NDJSON, in order and without an end that is in."""
    for number in range(3):
        predict(fresh, f"p{number}")
    one = fresh.get(f"{IRIS}/predictions/p1").json()
    assert (one["id"], one["prediction"], one["input"]) == ("p1", "setosa", SETOSA)
    problem(fresh.get(f"{IRIS}/predictions/never"), 404, "unknown-prediction")
    answer = fresh.get(f"{IRIS}/predictions")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [each["id"] for each in lines] == ["p0", "p1", "p2"]
    middle = lines[1]["at"]
    later = fresh.get(f"{IRIS}/predictions?from={middle!r}").text.splitlines()
    assert [json.loads(line)["id"] for line in later] == ["p1", "p2"]
    sooner = fresh.get(f"{IRIS}/predictions?to={middle!r}").text.splitlines()
    assert [json.loads(line)["id"] for line in sooner] == ["p0"]
    for none in ("from=2100-01-01", "to=2000-01-01T00:00:00+02:00", "to=2000-01-01T00:00:00Z"):
        assert fresh.get(f"{IRIS}/predictions?{none}").text == ""
    told = problem(fresh.get(f"{IRIS}/predictions?from=soon&to=nan"), 422, "invalid-input")
    assert pointers(told) == ["?from", "?to"]


def test_reading_back_more_than_one_portion(fresh: Http) -> None:
    """A stream of many predictions is whole and in order."""
    ids = [f"n{number:05}" for number in range(1203)]
    fresh.post(f"{IRIS}/predict", {"inputs": [SETOSA] * len(ids), "ids": ids})
    lines = fresh.get(f"{IRIS}/predictions").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
