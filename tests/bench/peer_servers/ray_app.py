"""Ray Serve with its batching: up to 64 rows, gathered for at most a millisecond."""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np
import ray
from prepare import load
from ray import serve
from workloads import IRIS

QUIET = {"enable_access_log": False}


@serve.deployment(max_ongoing_requests=256, logging_config=QUIET)
class Predict:
    """The model in one replica."""

    def __init__(self) -> None:
        self.model = load("iris")

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def together(self, rows: list[Any]) -> list[str]:
        """One call for the batch."""
        return [str(each) for each in self.model.predict(np.array(rows))]

    async def __call__(self, request: Any) -> dict[str, str]:
        row = await request.json()
        return {"prediction": await self.together([row[name] for name in IRIS])}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=QUIET)
    serve.run(Predict.bind(), route_prefix="/predict")
    signal.pause()
