"""Calls of tritonclient.http, synchronous or asyncio's, as JSON lines tell; see `bridges`."""

import asyncio
import json
import sys

import ml_dtypes
import numpy as np
import tritonclient.http as threaded
import tritonclient.http.aio as awaited
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

KINDS = {"BYTES": np.object_, "BF16": ml_dtypes.bfloat16}


def wished(kind, told):
    """The arguments of `infer`."""
    inputs = []
    for name, datatype, shape, data, binary in told["inputs"]:
        tensor = kind.InferInput(name, shape, datatype)
        dtype = KINDS.get(datatype) or triton_to_np_dtype(datatype)
        tensor.set_data_from_numpy(np.array(data, dtype).reshape(shape), binary_data=binary)
        inputs.append(tensor)
    outputs = None
    if told.get("outputs") is not None:
        outputs = [
            kind.InferRequestedOutput(name, binary_data=binary) for name, binary in told["outputs"]
        ]
    return {"inputs": inputs, "outputs": outputs, **told.get("options", {})}


def shown(result):
    """The whole answer, and the outputs as arrays."""
    response = result.get_response()
    arrays = {each["name"]: result.as_numpy(each["name"]) for each in response["outputs"]}
    kinds = {name: str(array.dtype) for name, array in arrays.items()}
    values = {name: array.tolist() for name, array in arrays.items()}
    return {"response": response, "outputs": values, "dtypes": kinds}


def text(value):
    """Bytes, for JSON."""
    return value.decode() if isinstance(value, bytes) else str(value)


def call(url, told):
    """One call of the client that blocks."""
    with threaded.InferenceServerClient(url, concurrency=4) as client:
        name = told["call"]
        if name == "infer":
            return shown(client.infer(told["model"], **wished(threaded, told)))
        if name == "async_infer":
            waiting = [
                client.async_infer(told["model"], **wished(threaded, each)) for each in told["many"]
            ]
            return [shown(each.get_result()) for each in waiting]
        return getattr(client, name)(*told.get("args", []), **told.get("options", {}))


async def acall(url, told):
    """One call of asyncio's client."""
    async with awaited.InferenceServerClient(url) as client:
        name = told["call"]
        if name == "infer":
            return shown(await client.infer(told["model"], **wished(awaited, told)))
        return await getattr(client, name)(*told.get("args", []), **told.get("options", {}))


def main(url):
    """Answer every line."""
    for line in sys.stdin:
        told = json.loads(line)
        try:
            if told.pop("how", "sync") == "aio":
                answer = {"result": asyncio.run(acall(url, told))}
            else:
                answer = {"result": call(url, told)}
        except InferenceServerException as error:
            answer = {"error": str(error.message()), "status": str(error.status())}
        print(json.dumps(answer, default=text), flush=True)


main(sys.argv[1])
