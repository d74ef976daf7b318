"""LitServe with its batching: up to 64 rows, gathered for at most a millisecond."""

import sys
from typing import Any

import litserve
import numpy as np
from prepare import load
from workloads import IRIS


class Predict(litserve.LitAPI):  # type: ignore[misc]
    """The model behind LitServe's steps."""

    def setup(self, device: str) -> None:
        """Load the model in the inference process."""
        self.model = load("iris")

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """From JSON to a row; it reads meaning into an annotation."""
        return [request[name] for name in IRIS]

    def batch(self, inputs: list[list[float]]) -> Any:
        """From rows to one array."""
        return np.array(inputs)

    def predict(self, x: Any) -> Any:
        """One call for the batch."""
        return self.model.predict(x)

    def unbatch(self, output: Any) -> list[Any]:
        """From one array to answers."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, str]:
        """From an answer to JSON."""
        return {"prediction": str(output)}


if __name__ == "__main__":
    api = Predict(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
