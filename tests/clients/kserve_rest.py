"""Calls of kserve's REST client, as JSON lines tell; see `bridges`."""

import asyncio
import json
import logging
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import to_np_dtype


def request(told):
    """The request of `infer`."""
    inputs = []
    for name, datatype, shape, data, binary in told["inputs"]:
        tensor = InferInput(name, shape, datatype, data=None if binary else data)
        if binary:
            array = np.array(data, to_np_dtype(datatype) or np.object_).reshape(shape)
            tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [
        RequestedOutput(name, {"binary_data": binary}) for name, binary in told.get("outputs", [])
    ]
    more = {"request_outputs": outputs} if outputs else {}
    return InferRequest(told["model"], inputs, told.get("id"), **more)


async def call(client, url, told):
    """One call."""
    name = told["call"]
    if name == "infer":
        found = await client.infer(url, request(told), told["model"], headers=told.get("headers"))
        outputs = {each.name: each.as_numpy().tolist() for each in found.outputs}
        return {"id": found.id, "model": found.model_name, "outputs": outputs}
    return await getattr(client, name)(url, *told.get("args", []))


async def main(url):
    """Answer every line."""
    logging.disable()
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        for line in sys.stdin:
            try:
                answer = {"result": await call(client, url, json.loads(line))}
            except httpx.HTTPStatusError as error:
                answer = {"error": str(error), "status": str(error.response.status_code)}
            print(json.dumps(answer, default=str), flush=True)


asyncio.run(main(sys.argv[1]))
