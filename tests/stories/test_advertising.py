"""An online regression that other languages call: ordinary least squares, `Sales ~ TV`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import Server

Serve = Callable[..., Server]
CONTENT_TYPE = {"content-type": "application/x-www-form-urlencoded"}
FORM = "data[]=3.14&data[]=34.6&data[]=12.2&data[]=8.4"


@pytest.fixture(scope="module")
def app(shared_data: Path) -> str:
    """An application with the formula model on the advertising data."""
    return f"""
from loopline import Loopline
from loopline.builtin import Formula

app = Loopline()
app.add("sales", Formula("Sales ~ TV"), data={str(shared_data / "Advertising.csv")!r},
        target="Sales", description="Sales by television budget.")
"""


@pytest.fixture(scope="module")
def shared(share: Serve, app: str) -> Server:
    """A server for the tests that leave it as it was."""
    return share(app)


def near(value: float) -> object:
    """Equal within 1e-9, as the original's figures are given."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def test_the_fitted_figures_are_those_of_the_original(shared: Server) -> None:
    """Coefficients and statistics of the report, and the prediction at TV = 50."""

    report = shared.client.get(
        "/v1/models/sales/report", headers={"accept": "application/json"}
    ).json()
    text = str(report)
    for figure in ("7.03259354912", "0.0475366404330", "0.61187505085", "312.14499437271"):
        assert figure in text
    for figure in ("-519.04566376817", "1042.09132753634", "338.119624182"):
        assert figure in text
    answer = shared.post("/v1/models/sales/predict", {"TV": 50})
    assert answer["prediction"] == near(9.409425570778684)
    assert (answer["model"], answer["version"]) == ("sales", 1)
    many = shared.post("/v1/models/sales/predict", {"TV": [50, 100]})
    assert many["predictions"][0]["prediction"] == near(9.409425570778684)


@pytest.mark.parametrize(
    "how",
    ["list", "object", "form"],
)
def test_learn_takes_a_row_in_three_spellings_with_one_result(
    serve: Serve, app: str, how: str
) -> None:
    """A list in column order, an object, and a form give the same figures, and are then trained."""
    server = serve(app)
    path = "/v1/models/sales/learn"
    if how == "list":
        answer = server.client.post(path, json=[3.14, 34.6, 12.2, 8.4])
    elif how == "object":
        row = {"TV": 3.14, "Radio": 34.6, "Newspaper": 12.2, "Sales": 8.4}
        answer = server.client.post(path, json=row)
    else:
        answer = server.client.post(path, content=FORM, headers=CONTENT_TYPE)
    assert answer.status_code == 202, answer.text
    learned = answer.json()
    assert (learned["accepted"], learned["rows"]) == (1, 201)
    summary = learned["summary"]
    assert summary["TV"]["count"] == 201
    assert summary["TV"]["mean"] == pytest.approx(146.3265671642, abs=1e-9)
    assert summary["Sales"]["mean"] == pytest.approx(13.9945273632, abs=1e-9)

    before = server.post("/v1/models/sales/predict", {"TV": 50})
    assert before["prediction"] == near(9.409425570778684)
    trained = server.client.post("/v1/models/sales/train", params={"wait": 60})
    assert trained.status_code == 200, trained.text
    assert trained.json()["version"] == 2
    text = str(server.get("/v1/models/sales/report", format="json"))
    for figure in ("7.05581281286", "0.0474193762950", "0.61384849706"):
        assert figure in text


def test_the_report_is_a_full_table(shared: Server) -> None:
    """As HTML it holds every statistic a person looks for."""

    answer = shared.client.get("/v1/models/sales/report", headers={"accept": "text/html"})
    assert answer.headers["content-type"].startswith("text/html")
    for word in ("R-squared", "F-statistic", "Omnibus", "Durbin-Watson", "Jarque-Bera", "Cond"):
        assert word in answer.text
    assert "TV" in answer.text and "Intercept" in answer.text


@pytest.mark.parametrize(
    ("body", "pointer", "word"),
    [
        ("[1, 2]", "", "4"),
        ('{"TV": "abc", "Radio": 1, "Newspaper": 1, "Sales": 1}', "/TV", "float"),
        ('{"Radio": 1, "Newspaper": 1, "Sales": 1}', "/TV", "required"),
        ('{"TV": NaN, "Radio": 1, "Newspaper": 1, "Sales": 1}', "/TV", "NaN"),
    ],
)
def test_bad_rows_are_refused_by_name_and_nothing_changes(
    shared: Server, body: str, pointer: str, word: str
) -> None:
    """A wrong length, text, a missing field and NaN: 422 with the field, and the data set as is."""

    headers = {"content-type": "application/json"}
    answer = shared.client.post("/v1/models/sales/learn", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "invalid-input"
    assert any(e["pointer"] == pointer and word in e["detail"] for e in problem["errors"])
    mixed = f'[{{"TV": 1, "Radio": 1, "Newspaper": 1, "Sales": 1}}, {body}]'
    again = shared.client.post("/v1/models/sales/learn", content=mixed, headers=headers)
    assert again.status_code == 422
    assert shared.get("/v1/models/sales")["rows"] == 200


def test_a_storm_of_learns_while_predicting_and_training_then_kill_and_restart(
    serve: Serve, app: str
) -> None:
    """No failed predict, exact counts, and every acknowledged row is there after `kill -9`."""
    server = serve(app)
    bad: list[str] = []
    stop = threading.Event()
    counts = {"predicted": 0}

    def predict() -> None:
        while not stop.is_set():
            answer = server.client.post("/v1/models/sales/predict", json={"TV": 50})
            if answer.status_code != 200:
                bad.append(answer.text)
            counts["predicted"] += 1

    def learn() -> None:
        for n in range(60):
            answer = server.client.post("/v1/models/sales/learn", json=[float(n), 1, 1, float(n)])
            if answer.status_code != 202:
                bad.append(answer.text)

    threads = [threading.Thread(target=learn) for _ in range(4)]
    predictor = threading.Thread(target=predict)
    predictor.start()
    for thread in threads:
        thread.start()
    jobs = [server.post("/v1/models/sales/train")["job"] for _ in range(2)]
    for thread in threads:
        thread.join()
    for job in jobs:
        assert server.get(f"/v1/jobs/{job}", wait=60)["state"] == "done"
    stop.set()
    predictor.join()
    assert not bad
    assert counts["predicted"] > 50
    assert server.get("/v1/models/sales")["rows"] == 440

    for role in ("replica-0", "keeper-0", "supervisor"):
        server.kill(role)
    server.start("/readyz")
    description = server.get("/v1/models/sales")
    assert (description["rows"], description["champion"]) == (440, 3)
    answer = server.post("/v1/models/sales/learn", [3.14, 34.6, 12.2, 8.4])
    assert answer["rows"] == 441
