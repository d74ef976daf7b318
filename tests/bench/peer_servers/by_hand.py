"""FastAPI as one writes it by hand: one call of the model per request."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from prepare import load
from pydantic import BaseModel, create_model
from workloads import WORKLOADS

NAME = os.environ["BENCH_WORKLOAD"]
ROW = WORKLOADS[NAME].row
Row: Any = create_model("Row", **{name: (type(value), ...) for name, value in ROW.items()})


class Answer(BaseModel):
    """The prediction for one row."""

    prediction: str


app = FastAPI()
model = load(NAME)


def answer(rows: list[Any]) -> list[Answer]:
    """Ask the model, with a data frame where it needs one."""
    if NAME in ("frame", "note"):
        import pandas as pd

        found = model.predict(pd.DataFrame([row.model_dump() for row in rows]))
    else:
        found = model.predict([[getattr(row, name) for name in ROW] for row in rows])
    return [Answer(prediction=str(each)) for each in found]


async def on_the_loop(row: Row) -> Answer:  # type: ignore[valid-type]
    """Predict on the event loop, as most examples do."""
    return answer([row])[0]


def in_a_thread(row: Row) -> Answer:  # type: ignore[valid-type]
    """Predict in the thread pool."""
    return answer([row])[0]


async def many(rows: list[Row]) -> list[Answer]:  # type: ignore[valid-type]
    """Predict all rows of the request with one call."""
    return answer(rows)


async def empty(row: Row) -> Answer:  # type: ignore[valid-type]
    """Predict nothing: what the framework costs."""
    return Answer(prediction="setosa")


# Annotations are text here, so the row's class, which the workload decides, is put in by hand.
for path, function, kind in (
    ("/async", on_the_loop, Row),
    ("/def", in_a_thread, Row),
    ("/many", many, list[Row]),
    ("/empty", empty, Row),
):
    name = "rows" if function is many else "row"
    function.__annotations__ = {
        name: kind,
        "return": list[Answer] if function is many else Answer,
    }
    app.post(path)(function)
