"""Predict over the Open Inference Protocol: `pip install 'tritonclient[all]'`."""

import os

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

FLOWERS = np.array([[1.1, 1.2, 1.4, 1.5], [6.3, 3.3, 6.0, 2.5]])
HTTP = os.environ.get("URL", "http://127.0.0.1:8000").removeprefix("http://")
GRPC = os.environ.get("GRPC", "127.0.0.1:8002")


def species(triton, client, model="iris"):
    """Ask for the species of all flowers in one tensor."""
    tensor = triton.InferInput("input-0", FLOWERS.shape, "FP64")
    tensor.set_data_from_numpy(FLOWERS)
    answer = client.infer(model, [tensor])
    found = [each.decode() for each in answer.as_numpy("prediction")]
    print(found, "ids", [each.decode() for each in answer.as_numpy("prediction_id")])


with tritonclient.http.InferenceServerClient(HTTP) as client:
    print("over HTTP")
    species(tritonclient.http, client)

with tritonclient.grpc.InferenceServerClient(GRPC) as client:
    print("over gRPC")
    species(tritonclient.grpc, client)
    try:
        species(tritonclient.grpc, client, "nobody")
    except InferenceServerException as error:
        print("refused:", error.status(), error.message())
