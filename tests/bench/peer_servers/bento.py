"""BentoML with its adaptive batching: up to 64 rows."""

from __future__ import annotations

import bentoml
import numpy as np
from prepare import load
from pydantic import BaseModel


class Row(BaseModel):
    """An iris."""

    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


class Answer(BaseModel):
    """The prediction for one row."""

    prediction: str


# A tighter latency target makes it answer "overloaded" with as many clients as the others get.
@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Predict:
    """The model behind one batchable route."""

    def __init__(self) -> None:
        self.model = load("iris")

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60_000)
    def predict(self, rows: list[Row]) -> list[Answer]:
        """One call for the batch."""
        values = [list(row.model_dump().values()) for row in rows]
        return [Answer(prediction=str(each)) for each in self.model.predict(np.array(values))]
