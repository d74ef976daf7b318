"""The synchronous and the asynchronous API in one: fit, predict, score, long jobs, cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.servers import Server

Serve = Callable[..., Server]

CUBIC = '''
import numpy, pandas, time
from loopline import Loopline
from loopline.builtin import Linear, Polynomial

def points():
    x = numpy.linspace(-3, 3, 60)
    return pandas.DataFrame({"x": x, "y": 3 + 0.4 * x - 3 * x**2 + 2 * x**3})

class Slow:
    """Half a minute of fitting."""
    def fit(self, X, y):
        time.sleep(30)
        return self
    def predict(self, X):
        return [0.0] * len(X)

app = Loopline()
app.add("cubic", Polynomial(degree=3), data=points, target="y")
app.add("slow", Slow(), data=points, target="y")
app.add("bare", Linear(), schema={"type": "object", "properties": {"x": {"type": "number"}},
                                  "required": ["x"]}, target="y")
'''


def test_the_built_in_regressors_recover_what_made_the_data(
    serve: Serve, shared_data: Path
) -> None:
    """Degree 3 gives 3, 0.4, -3, 2 and R² 1; linear on the advertising data its known figures."""
    source = CUBIC + (
        f'app.add("sales", Linear(), data={str(shared_data / "Advertising.csv")!r}, '
        'target="Sales")\n'
    )
    server = serve(source, "--workers", "1", ready="/livez")
    for name in ("cubic", "sales"):
        (job,) = server.get("/v1/jobs", model=name)["jobs"]
        if name == "sales":
            slow = server.get("/v1/jobs", model="slow")["jobs"][0]
            server.post(f"/v1/jobs/{slow['job']}/cancel")
        assert server.get(f"/v1/jobs/{job['job']}", wait=60)["state"] == "done"
    text = str(server.get("/v1/models/cubic/report", format="json"))
    score = server.post("/v1/models/cubic/score")
    assert score["metrics"]["r2"] == pytest.approx(1.0, abs=1e-12)
    for x in (-1.0, 0.0, 2.0):
        answer = server.post("/v1/models/cubic/predict", {"x": x})["prediction"]
        assert answer == pytest.approx(3 + 0.4 * x - 3 * x**2 + 2 * x**3, abs=1e-9)
    assert "coefficients" in text
    sales = str(server.get("/v1/models/sales/report", format="json"))
    for figure in ("2.93888", "0.045764", "0.18853", "0.001037", "0.89721"):
        assert figure in sales


def test_predict_before_fit_says_what_to_do(serve: Serve) -> None:
    """Not ready, by code, with the next step in the sentence."""
    server = serve(CUBIC, ready="/livez")
    answer = server.client.post("/v1/models/bare/predict", json={"x": 1})
    assert answer.json()["code"] == "not-ready"
    assert "train" in answer.json()["detail"]
    assert server.client.get("/readyz").status_code == 503


def test_a_long_fit_is_a_job_that_can_be_followed_and_cancelled(serve: Serve) -> None:
    """`wait=1` gives 202 and a link; the API answers meanwhile; cancel ends the job."""
    server = serve(CUBIC, ready="/livez")
    first = server.get("/v1/jobs", model="slow")["jobs"][0]["job"]
    server.wait("/v1/models/cubic/versions/1")
    queued = server.client.post("/v1/models/slow/train", params={"wait": 1})
    assert queued.status_code == 202
    body = queued.json()
    assert queued.headers["location"].endswith(f"/v1/jobs/{body['job']}")
    assert body["state"] in ("queued", "running")
    assert server.post("/v1/models/cubic/predict", {"x": 0})["prediction"] == pytest.approx(3.0)
    assert server.client.get("/v1/jobs/nothing").status_code == 404
    figures = server.get("/v1/jobs")["figures"]
    assert figures["running"] == 1 and figures["queued"] == 1 and figures["oldest"] >= 0
    server.post(f"/v1/jobs/{body['job']}/cancel")
    server.post(f"/v1/jobs/{first}/cancel")
    for job in (body["job"], first):
        assert server.get(f"/v1/jobs/{job}", wait=30)["state"] == "cancelled"
    with httpx.stream("GET", f"{server.url}/v1/jobs/{first}/events", timeout=30) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("event:")]
    assert lines[-1] == "event: cancelled"


def test_score_on_demand_and_by_itself_after_outcomes(serve: Serve) -> None:
    """Given rows, the data set, and the progressive history with its coverage."""
    server = serve(CUBIC, ready="/livez")
    server.wait("/v1/models/cubic/versions/1")
    given = server.post("/v1/models/cubic/score", [{"x": 0, "y": 3.0}, {"x": 1, "y": 2.4}])
    assert given["on"] == "given rows" and given["rows"] == 2
    assert given["metrics"]["mae"] == pytest.approx(0.0, abs=1e-9)
    many = server.post("/v1/models/cubic/predict", {"x": [0, 1, 2, 3]})["predictions"]
    told = [{"id": p["id"], "outcome": p["prediction"] + 1} for p in many[:3]]
    counts = server.post("/v1/models/cubic/outcomes", told)
    assert counts["joined"] == 3
    text = str(server.get("/v1/models/cubic/scores"))
    assert "'coverage': 0.75" in text and "'mae': 1.0" in text
