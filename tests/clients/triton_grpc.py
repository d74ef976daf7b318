"""Runs where `tritonclient` is installed: JSON lines in, one call of its gRPC client each, out."""

import asyncio
import base64
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

CALLS = (
    "is_server_live is_server_ready is_model_ready get_server_metadata get_model_metadata "
    "get_model_repository_index load_model unload_model get_inference_statistics get_model_config"
).split()


class Bridge:
    """One client, and its stream while there is one."""

    def __init__(self, address):
        self.address = address
        self.client = triton.InferenceServerClient(address)
        self.answers = queue.Queue()

    def answer(self, ask):
        """Do what a line asks."""
        do, options = ask.pop("do"), ask
        try:
            if do in CALLS:
                found = getattr(self.client, do)(**options)
                return {"found": found if isinstance(found, bool | type(None)) else _plain(found)}
            return getattr(self, do)(**options)
        except InferenceServerException as error:
            return failure(error)

    def infer(self, **options):
        """One request."""
        return shown(self.client.infer(**asked(triton, **options)))

    def aio(self, times=1, **options):
        """The same by the asynchronous client, several times at once."""

        async def run():
            async with triton_aio.InferenceServerClient(self.address) as client:
                one = asked(triton_aio, **options)
                return await asyncio.gather(*(client.infer(**one) for _ in range(times)))

        return {"found": [shown(each) for each in asyncio.run(run())]}

    def start(self, headers=None):
        """Begin a stream."""
        answers = self.answers = queue.Queue()

        def hear(result, error):
            answers.put((result, error))

        self.client.start_stream(hear, headers=headers)
        return {}

    def send(self, **options):
        """Send one request on the stream."""
        self.client.async_stream_infer(**asked(triton, **options))
        return {}

    def receive(self):
        """The next answer of the stream."""
        result, error = self.answers.get(timeout=30)
        return failure(error) if error else shown(result)

    def end(self, cancel=False):
        """End the stream."""
        self.client.stop_stream(cancel_requests=cancel)
        return {}


def asked(library, model, inputs, outputs=None, version="", id="", **options):
    """The arguments of `infer`."""
    tensors = []
    for name, datatype, shape, data in inputs:
        dtype = triton_to_np_dtype(datatype)
        array = np.array(data, dtype=dtype).reshape(shape)
        tensors.append(library.InferInput(name, shape, datatype))
        tensors[-1].set_data_from_numpy(array)
    wanted = [library.InferRequestedOutput(name) for name in outputs or ()] or None
    return {
        "model_name": model,
        "inputs": tensors,
        "outputs": wanted,
        "model_version": version,
        "request_id": id,
        **{key: value for key, value in options.items() if value is not None},
    }


def shown(result):
    """An answer as plain data."""
    told = result.get_response()
    outputs = {}
    for each in told.outputs:
        array = result.as_numpy(each.name)
        values = [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]
        outputs[each.name] = [each.datatype, list(each.shape), values]
    return {"id": told.id, "version": told.model_version, "outputs": outputs}


def failure(error):
    """An error with the details that stand behind it."""
    cause, details = error.__context__, b""
    if cause is not None and hasattr(cause, "trailing_metadata"):
        details = dict(cause.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    details = base64.b64encode(details).decode()
    return {"error": error.message(), "status": error.status(), "details": details}


def _plain(message):
    from google.protobuf import json_format

    return json_format.MessageToDict(message, preserving_proto_field_name=True)


bridge = Bridge(sys.argv[1])
for line in sys.stdin:
    print(json.dumps(bridge.answer(json.loads(line))), flush=True)
bridge.end(cancel=True)
bridge.client.close()
