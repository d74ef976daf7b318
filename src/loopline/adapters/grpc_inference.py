"""The Open Inference Protocol (V2) over gRPC: parse, one verb of the loop, render.

A request whose tensors come as bytes is answered with bytes, one with typed contents with those.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec

from loopline import __version__, access
from loopline.adapters import inference
from loopline.adapters.grpc_call import Call, Method
from loopline.adapters.grpc_messages import File, add_service, add_table, class_of, parse, pool_of
from loopline.adapters.inference import Tensor
from loopline.errors import InvalidInput, LooplineError, NotReady, UnknownVersion, WrongState
from loopline.schema import Schema

PACKAGE, NAME = "inference", "GRPCInferenceService"
SERVICE = f"{PACKAGE}.{NAME}"
EXTENSIONS = ("model_repository", "schedule_policy")

# See `grpc_messages` for how to read it; the numbers are those of the public specification.
MESSAGES = """
ServerLiveRequest:
ServerLiveResponse: bool live
ServerReadyRequest:
ServerReadyResponse: bool ready
ModelReadyRequest: string name, string version
ModelReadyResponse: bool ready
ServerMetadataRequest:
ServerMetadataResponse: string name, string version, string* extensions
ModelMetadataRequest: string name, string version
ModelMetadataResponse: string name, string* versions, string platform, \
ModelMetadataResponse.TensorMetadata* inputs, ModelMetadataResponse.TensorMetadata* outputs, \
string{} properties
ModelMetadataResponse.TensorMetadata: string name, string datatype, int64* shape
InferParameter parameter_choice: bool bool_param, int64 int64_param, string string_param, \
double double_param, uint64 uint64_param
InferTensorContents: bool* bool_contents, int32* int_contents, int64* int64_contents, \
uint32* uint_contents, uint64* uint64_contents, float* fp32_contents, double* fp64_contents, \
bytes* bytes_contents
ModelInferRequest: string model_name, string model_version, string id, \
InferParameter{} parameters, ModelInferRequest.InferInputTensor* inputs, \
ModelInferRequest.InferRequestedOutputTensor* outputs, bytes* raw_input_contents
ModelInferRequest.InferInputTensor: string name, string datatype, int64* shape, \
InferParameter{} parameters, InferTensorContents contents
ModelInferRequest.InferRequestedOutputTensor: string name, InferParameter{} parameters
ModelInferResponse: string model_name, string model_version, string id, \
InferParameter{} parameters, ModelInferResponse.InferOutputTensor* outputs, \
bytes* raw_output_contents
ModelInferResponse.InferOutputTensor: string name, string datatype, int64* shape, \
InferParameter{} parameters, InferTensorContents contents
ModelStreamInferResponse: string error_message, ModelInferResponse infer_response
ModelRepositoryParameter parameter_choice: bool bool_param, int64 int64_param, \
string string_param, bytes bytes_param
RepositoryIndexRequest: string repository_name, bool ready
RepositoryIndexResponse: RepositoryIndexResponse.ModelIndex* models
RepositoryIndexResponse.ModelIndex: string name, string version, string state, string reason
RepositoryModelLoadRequest: string repository_name, string model_name, \
ModelRepositoryParameter{} parameters
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: string repository_name, string model_name, \
ModelRepositoryParameter{} parameters
RepositoryModelUnloadResponse:
"""
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def describe() -> File:
    """The service, as far as it is served here, as a file of descriptors."""
    file = File(name="inference.proto", package=PACKAGE, syntax="proto3")
    add_table(file, MESSAGES)
    ends = {name: f"{name}Request {name}Response" for name in _VERBS}
    stream = "stream ModelInferRequest ModelStreamInferResponse"
    add_service(file, NAME, ends | {"ModelStreamInfer": stream})
    return file


class Inference:
    """The methods of the service, with their messages."""

    def __init__(self) -> None:
        self.pool = pool_of(describe())
        self.methods = {
            name: Method(self.message(f"{name}Request"), getattr(self, verb))
            for name, verb in _VERBS.items()
        }
        takes = self.message("ModelInferRequest")
        self.methods["ModelStreamInfer"] = Method(takes, self.stream_infer)

    def message(self, name: str) -> Any:
        """The class of a message."""
        return class_of(self.pool, f"{PACKAGE}.{name}")

    async def server_live(self, call: Call, request: Any) -> Any:
        """Whether the process lives."""
        return self.message("ServerLiveResponse")(live=True)

    async def server_ready(self, call: Call, request: Any) -> Any:
        """Whether every model can answer."""
        return self.message("ServerReadyResponse")(ready=call.loop.ready()[0])

    async def model_ready(self, call: Call, request: Any) -> Any:
        """Whether a model, or one of its versions, can answer."""
        access.check(call.caller, "predict")
        told, serving = self.message("ModelReadyResponse"), call.loop.serving
        try:
            await call.work(serving.loaded, request.name, _version(request.version))
        except NotReady:
            return told(ready=False)
        return told(ready=serving.service(request.name).why_not() is None)

    async def server_metadata(self, call: Call, request: Any) -> Any:
        """The server's name, version and extensions."""
        told = self.message("ServerMetadataResponse")
        return told(name="loopline", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, call: Call, request: Any) -> Any:
        """The tensors that a model takes and gives, and its versions."""
        name, number = request.name, _version(request.version)
        if number is not None:
            await call.run(call.loop.version, name, number)
        versions = await call.run(call.loop.versions, name)
        service = call.loop.serving.service(name)
        schema = msgspec.convert(service.record.schema, Schema)
        classes = service.champion.adopted.classes if service.champion else None
        return self.message("ModelMetadataResponse")(
            name=name,
            versions=[str(each["version"]) for each in versions],
            platform="loopline",
            **inference.metadata(service.record, schema, classes),
        )

    async def infer(self, call: Call, request: Any) -> Any:
        """Predict one row or many, as tensors."""
        access.check(call.caller, "predict")
        service = call.loop.serving.service(request.model_name)
        champion, record = service.champion, service.record
        schema = champion.schema if champion else msgspec.convert(record.schema, Schema)
        parameters, size = _parameters(request.parameters), request.ByteSize()
        found = await call.work(_tensors, request, size=size)
        value, ids = inference.rows(schema, found, parameters)
        for index, each in enumerate(request.outputs):
            inference.check_parameters(_parameters(each.parameters), f"/outputs/{index}")
        wanted = [each.name for each in request.outputs]
        inference.check_outputs(record, wanted)
        version, limit = _version(request.model_version), inference.seconds(parameters)
        answered = await call.predict(record.name, value, ids, limit, version=version)
        told = self.message("ModelInferResponse")(
            model_name=answered.model,
            model_version=inference.version_of(answered),
            id=request.id or answered.predictions[0].id,
        )
        outputs = inference.tensors(answered, schema, wanted)
        await call.work(_put, told, outputs, bool(request.raw_input_contents), size=size)
        return told

    def stream_infer(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Predict by each request of a stream; one that is refused does not end it."""

        async def answer(request: bytes) -> Any:
            told = self.message("ModelStreamInferResponse")()
            try:
                asked = parse(self.message("ModelInferRequest"), request)
                told.infer_response.id = asked.id
                told.infer_response.CopyFrom(await self.infer(call, asked))
            except LooplineError as error:
                told.error_message = f"{error.code}: {error.detail}"
            return told

        return call.each(requests, answer)

    async def index(self, call: Call, request: Any) -> Any:
        """All models with their champion and state, or only those that are ready."""
        told = self.message("RepositoryIndexResponse")()
        for each in await call.run(call.loop.models):
            if each["ready"] or not request.ready:
                told.models.add(
                    name=each["name"],
                    version=str(each["champion"] or ""),
                    state="READY" if each["ready"] else "UNAVAILABLE",
                    reason=call.loop.serving.service(each["name"]).why_not(),
                )
        return told

    async def load(self, call: Call, request: Any) -> Any:
        """Look whether there is a newer version of a model to serve."""
        access.check(call.caller, "admin")
        if request.parameters:
            told = "a model is defined at PUT /v1/models/{model}"
            raise InvalidInput.at(told, "/parameters")
        await call.work(call.loop.serving.refresh, True)
        await call.work(call.loop.serving.loaded, request.model_name)
        return self.message("RepositoryModelLoadResponse")()

    async def unload(self, call: Call, request: Any) -> Any:
        """Refuse to: a model is served as long as it exists."""
        access.check(call.caller, "admin")
        model = call.loop.serving.service(request.model_name).record.name
        told = f"a model is served as long as it exists; DELETE /v1/models/{model} removes it"
        raise WrongState(told)


_VERBS = {
    "ServerLive": "server_live",
    "ServerReady": "server_ready",
    "ModelReady": "model_ready",
    "ServerMetadata": "server_metadata",
    "ModelMetadata": "model_metadata",
    "ModelInfer": "infer",
    "RepositoryIndex": "index",
    "RepositoryModelLoad": "load",
    "RepositoryModelUnload": "unload",
}


def _version(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and 0 < len(text) < 10):
        raise UnknownVersion(f"{text[:50]!r} is not a version's number")
    return int(text) if text else None


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found


def _tensors(request: Any) -> list[Tensor]:
    """The tensors of a request: all of them as bytes, or all with typed contents."""
    pieces, found = request.raw_input_contents, []
    if pieces and len(pieces) != len(request.inputs):
        told = f"there are {len(pieces)} raw contents for {len(request.inputs)} inputs"
        raise InvalidInput.at(told, "/raw_input_contents")
    for index, each in enumerate(request.inputs):
        pointer, about = f"/inputs/{index}", (each.name, each.datatype, list(each.shape))
        inference.check_parameters(_parameters(each.parameters), pointer)
        if pieces and each.HasField("contents"):
            told = "contents and raw_input_contents are not to be mixed in one request"
            raise InvalidInput.at(told, f"{pointer}/contents")
        if pieces:
            found.append(inference.from_raw(*about, pieces[index], pointer))
        elif each.datatype in ("FP16", "BF16"):
            told = f"{each.datatype} has no typed contents; send raw_input_contents"
            raise InvalidInput.at(told, f"{pointer}/datatype")
        else:
            values = list(getattr(each.contents, _CONTENTS.get(each.datatype, "int_contents")))
            values = inference.texts(values) if each.datatype == "BYTES" else values
            found.append(inference.from_values(*about, values, pointer))
    return found


def _put(told: Any, outputs: Iterable[Tensor], raw: bool) -> None:
    """Put tensors into an answer: as bytes, or as typed contents, where missing is NaN or empty."""
    for tensor in outputs:
        name, datatype, shape, values = tensor
        output = told.outputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            told.raw_output_contents.append(inference.to_raw(tensor))
            continue
        if datatype == "BYTES":
            values = [v if type(v) is bytes else (v or "").encode() for v in values]
        else:
            values = [math.nan if value is None else value for value in values]
        getattr(output.contents, _CONTENTS[datatype]).extend(values)
