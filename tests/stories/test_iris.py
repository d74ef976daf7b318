"""One service for any number of models, and the same answer in every spelling."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import Server

Serve = Callable[..., Server]
ROW = {"sepal_length": 1.1, "sepal_width": 1.2, "petal_length": 1.4, "petal_width": 1.5}
UUID7 = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"

APP = '''
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from loopline import Loopline

def rows():
    frame = load_iris(as_frame=True).frame
    frame.columns = ["sepal_length", "sepal_width", "petal_length", "petal_width", "species"]
    frame["species"] = frame["species"].map({0: "setosa", 1: "versicolor", 2: "virginica"})
    return frame

class IrisModel:
    """Somebody's class, as they wrote it."""
    display_name = "Iris Model"
    qualified_name = "iris_model"
    description = "Predict the species of an iris."
    major_version = 1
    minor_version = 0
    input_schema = {
        "type": "object",
        "properties": {n: {"type": "number", "minimum": 0, "maximum": 20}
                       for n in ("sepal_length", "sepal_width", "petal_length", "petal_width")},
        "required": ["sepal_length", "sepal_width", "petal_length", "petal_width"],
    }
    output_schema = {"type": "object", "properties": {"species": {"type": "string"}}}

    def predict(self, data):
        return {"species": "setosa" if data["petal_length"] < 2.5 else "other"}

app = Loopline()
app.add("iris", LogisticRegression(max_iter=500), data=rows, target="species")
app.add("iris_model", IrisModel())
'''


@pytest.fixture(scope="module")
def shared(share: Serve) -> Server:
    """A server for the tests that leave it as it was."""
    return share(APP)


def test_the_same_answer_in_every_spelling_over_http(shared: Server) -> None:
    """Object, list, columns, envelope, form and MessagePack-free JSON: one species, one version."""

    post = shared.client.post
    path = "/v1/models/iris/predict"
    one = post(path, json=ROW).json()
    assert one["prediction"] == "setosa"
    assert (one["model"], one["version"]) == ("iris", 1)
    assert re.fullmatch(UUID7, one["id"])
    form = post(path, data={name: str(value) for name, value in ROW.items()}).json()
    assert form["prediction"] == "setosa"
    for body in (
        [ROW],
        [list(ROW.values())],
        {name: [value] for name, value in ROW.items()},
        {"inputs": [ROW], "ids": ["mine"]},
    ):
        many = post(path, json=body).json()
        assert many["version"] == 1
        assert [p["prediction"] for p in many["predictions"]] == ["setosa"]
    likely = post(path, json=ROW, params={"probabilities": "true"}).json()["probabilities"]
    assert sorted(likely) == ["setosa", "versicolor", "virginica"]
    assert sum(likely.values()) == pytest.approx(1.0)
    back = shared.get("/v1/models/iris/predictions/mine")
    assert back["input"] == ROW and back["prediction"] == "setosa"


def test_a_class_with_its_own_schemas_is_adopted_as_it_is(shared: Server) -> None:
    """Dict in, dict out; its description, its fields and its ranges are the service's."""

    answer = shared.post("/v1/models/iris_model/predict", ROW)
    assert answer["prediction"] in ("setosa", {"species": "setosa"})
    described = shared.get("/v1/models/iris_model")
    assert described["description"] == "Predict the species of an iris."
    assert set(described["schema"]["properties"]) == set(ROW)


@pytest.mark.parametrize("model", ["iris", "iris_model"])
def test_a_bad_field_is_named_with_what_is_wrong(shared: Server, model: str) -> None:
    """'abc' is not a float; 5 and 0.0 are accepted."""

    path = f"/v1/models/{model}/predict"
    answer = shared.client.post(path, json={**ROW, "petal_width": "abc"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/petal_width"
    assert "'abc' is not a float" in error["detail"]
    assert shared.client.post(path, json={**ROW, "petal_width": 5}).status_code == 200
    assert shared.client.post(path, json={**ROW, "petal_width": 0.0}).status_code == 200


def test_models_from_configuration_come_and_go_while_running(serve: Serve, tmp_path: Path) -> None:
    """A changed `loopline.toml` adds and removes models without a restart."""
    config = tmp_path / "loopline.toml"
    config.write_text("")
    server = serve(APP, "--config", str(config))
    rows = tmp_path / "line.csv"
    rows.write_text("x,y\n" + "".join(f"{n},{2 * n}\n" for n in range(30)))
    config.write_text('[models.line]\nmodel = "linear"\ndata = "line.csv"\ntarget = "y"\n')
    server.wait("/v1/models/line/versions/1")
    server.wait("/readyz")
    assert server.post("/v1/models/line/predict", {"x": 4})["prediction"] == pytest.approx(8.0)
    config.write_text("")
    while server.client.get("/v1/models/line").status_code != 404:
        pass
    assert {m["name"] for m in server.get("/v1/models")["models"]} == {"iris", "iris_model"}
