"""Predict over HTTP and tell what became true, with nothing but the standard library."""

import json
import os
from urllib.error import HTTPError
from urllib.request import Request, urlopen

MODEL = os.environ.get("URL", "http://127.0.0.1:8000") + "/v1/models/iris"
FLOWER = {"sepal_length": 1.1, "sepal_width": 1.2, "petal_length": 1.4, "petal_width": 1.5}


def post(path, value):
    """Post JSON, return the answer."""
    headers = {"content-type": "application/json"}
    with urlopen(Request(MODEL + path, json.dumps(value).encode(), headers), timeout=10) as answer:
        return json.load(answer)


one = post("/predict", FLOWER)
print("one row:", one["prediction"], "version", one["version"], "id", one["id"])

many = post("/predict?probabilities=true", [FLOWER, {**FLOWER, "petal_length": 6.0}])
for answer in many["predictions"]:
    likely = max(answer["probabilities"].values())
    print(f"many rows: {answer['prediction']} with {likely:.0%}")

told = post("/outcomes", {"id": one["id"], "outcome": "setosa"})
print("outcome:", told["results"][0]["status"])

try:
    post("/predict", {**FLOWER, "petal_width": "abc"})
except HTTPError as refusal:
    problem = json.load(refusal)
    print("refused:", refusal.code, problem["code"], problem["errors"][0])
