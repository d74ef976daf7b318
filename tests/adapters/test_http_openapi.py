from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from loopline.loop import Loop
from tests.adapters.speaking import FEATURES, SETOSA, Http, state_of

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def test_the_document_is_valid(http: Http) -> None:
    """It satisfies OpenAPI's own schema, and every operation has an id of its own."""
    told = http.get("/openapi.json").json()
    assert told["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(told).validate()
    ids = [each["operationId"] for path in told["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))


def test_every_model_shows_its_real_fields(http: Http) -> None:
    """With names, types and examples, and the shapes that the server takes."""
    told = http.get("/openapi.json").json()
    row = told["components"]["schemas"]["iris.row"]
    assert list(row["properties"]) == FEATURES
    assert row["properties"]["sepal_length"]["type"] == "number"
    assert row["examples"]
    labelled = told["components"]["schemas"]["iris.labelled"]
    assert list(labelled["properties"])[-1] == "species"
    predict = told["paths"]["/v1/models/iris/predict"]["post"]
    assert {each["name"] for each in predict["parameters"]} == {
        "version",
        "alias",
        "timeout",
        "probabilities",
    }
    assert "/v1/models/moody/learn" not in told["paths"]
    assert "/v1/models/{model}/learn" in told["paths"]
    example = row["examples"][0]
    assert http.post("/v1/models/iris/predict", example).status_code == 200


def test_the_shapes_are_those_that_are_taken(http: Http) -> None:
    """What the document allows is answered, and what it forbids is refused."""
    told = http.get("/openapi.json").json()
    body = told["paths"]["/v1/models/iris/predict"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"] | {"components": told["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    values = list(SETOSA.values())
    cases: list[tuple[Any, bool]] = [
        (SETOSA, True),
        ([SETOSA, values], True),
        ({name: [1.0, 2.0] for name in FEATURES}, True),
        ({"inputs": [values], "ids": ["only"]}, True),
        ({**SETOSA, "colour": "red"}, False),
        ([values[:3]], False),
        ({"sepal_length": 1.0}, False),
        (values, False),
        ([], False),
        ("text", False),
    ]
    for number, (value, good) in enumerate(cases):
        if isinstance(value, dict) and "ids" in value:
            value = value | {"ids": [f"case-{number}"]}
        answer = http.post("/v1/models/iris/predict", value)
        assert validator.is_valid(value) is good, value
        assert (answer.status_code == 200) is good, (value, answer.text)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on numbers of any size
def test_random_requests_are_answered_as_documented(http: Http, loop: Loop) -> None:
    """No 5xx for anybody's mistake, no other status or shape than told, no trace of a refusal."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", http.app)
    good, bad = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    count = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        # Any text can stand in a path, so only a body or a query can be wrong.
        fallible = bool(operation.body) or bool(operation.query)
        count += sum(_try_out(operation, m, loop) for m in ([good, bad] if fallible else [good]))
    assert count > 200


def _try_out(operation: Any, mode: Any, loop: Loop) -> int:
    """Call an operation some times; returns how often."""
    calls = 0

    @settings(
        max_examples=5,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def call(case: Any) -> None:
        nonlocal calls
        calls += 1
        before = state_of(loop)
        answer = case.call()
        # A deadline of a millisecond may well pass, and is answered so.
        late = answer.status_code == 504
        case.validate_response(answer, checks=CHECKS[1:] if late else CHECKS)
        if answer.status_code >= 400:
            assert state_of(loop) == before

    call()
    return calls
