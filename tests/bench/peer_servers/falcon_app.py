"""Falcon under gunicorn's sync worker: one call of the model per request."""

from __future__ import annotations

from typing import Any

import falcon
from prepare import load
from workloads import IRIS

model = load("iris")


class Predict:
    """The one resource."""

    def on_post(self, request: Any, response: Any) -> None:
        """Predict one row."""
        row = request.get_media()
        found = model.predict([[row[name] for name in IRIS]])
        response.media = {"prediction": str(found[0])}


app = falcon.App()
app.add_route("/predict", Predict())
