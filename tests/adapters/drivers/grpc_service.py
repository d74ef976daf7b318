"""Our own gRPC service, spoken to with the messages that its reflection describes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from loopline.testing.adapter import Driver, Refusal, Row, Said

VERBS = "predict ids deadline stream null learn outcome train describe"


class GrpcService(Driver):
    """A client of the typed services of one server.

    Args:
        address: HOST:PORT.
        token: sent with every call, where given.
    """

    name = "gRPC"
    verbs = frozenset(VERBS.split())

    def __init__(self, address: str, token: str | None = None) -> None:
        self.channel = grpc.insecure_channel(address)
        if token is not None:
            self.channel = grpc.intercept_channel(self.channel, _Bearer(token))
        self._pools: dict[str, DescriptorPool] = {}

    def method(self, model: str, name: str) -> tuple[str, Any, Any]:
        """The path of a method, and the classes of what it takes and gives."""
        full = service_of(model)
        if model not in self._pools:
            self._pools[model] = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        try:
            with refusals():
                found = self._pools[model].FindServiceByName(full).FindMethodByName(name)
        except KeyError:
            # A client without a contract can still call by name; it is told that there is none.
            del self._pools[model]
            return f"/{full}/{name}", None, None
        kinds = (found.input_type, found.output_type)
        takes, gives = (message_factory.GetMessageClass(kind) for kind in kinds)
        return f"/{full}/{name}", takes, gives

    def call(
        self,
        model: str,
        name: str,
        request: Any,
        timeout: float | None = None,
        described: bool = True,
    ) -> Any:
        """Call a unary method with a message, or with bytes and perhaps no description of it."""
        path = f"/{service_of(model)}/{name}"
        gives = self.method(model, name)[2] if described else None
        invoke = self.channel.unary_unary(path, _bytes, gives and gives.FromString)
        with refusals():
            return invoke(request, timeout=timeout or 30)

    def row(self, kind: Any, row: Row) -> Any:
        """A row as a message; a value of another type stands in it as another contract's."""
        if kind.DESCRIPTOR.full_name == "google.protobuf.Struct":
            return json_format.ParseDict(row, kind())
        names = {field.json_name: field for field in kind.DESCRIPTOR.fields}
        message, strays = kind(), b""
        for name, value in row.items():
            field = names.get(name)
            if field is None:
                told = f"the contract has no field {name!r}"
                raise Refusal("invalid-input", told, [f"/{name}"])
            if value is None:
                continue
            try:
                if field.message_type is not None:
                    json_format.ParseDict(value, getattr(message, field.name))
                else:
                    setattr(message, field.name, value)
            except (TypeError, ValueError):
                strays += stray(field.number, value)
        return kind.FromString(message.SerializeToString() + strays)

    def request(self, model: str, row: Row, **options: Any) -> Any:
        """The request for one row's prediction; options that are None are left out."""
        _, takes, _ = self.method(model, "Predict")
        if takes is None:
            return b""
        request = takes(**{key: value for key, value in options.items() if value is not None})
        kind = message_factory.GetMessageClass(takes.DESCRIPTOR.fields_by_name["row"].message_type)
        request.row.CopyFrom(self.row(kind, row))
        return request

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        if isinstance(rows, dict):
            request = self.request(model, rows, id=ids[0] if ids else None, version=version)
            return [said(self.call(model, "Predict", request, timeout))]
        _, takes, _ = self.method(model, "PredictMany")
        request = b""
        if takes is not None:
            request = takes(ids=ids or (), rows=self.rows(takes, rows))
            if version is not None:
                request.version = version
        return [
            said(each) for each in self.call(model, "PredictMany", request, timeout).predictions
        ]

    def rows(self, takes: Any, rows: Iterable[Row]) -> list[Any]:
        """The rows of a message that has many."""
        kind = message_factory.GetMessageClass(takes.DESCRIPTOR.fields_by_name["rows"].message_type)
        return [self.row(kind, row) for row in rows]

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        path, _, gives = self.method(model, "PredictStream")
        invoke = self.channel.stream_stream(path, _bytes, gives.FromString)
        requests = (self.request(model, row) for row in rows)
        with refusals():
            call = invoke(requests)
            try:
                for reply in call:
                    if reply.WhichOneof("result") == "problem":
                        told = reply.problem
                        pointers = [each.pointer for each in told.errors]
                        raise Refusal(told.code, told.detail, pointers)
                    yield said(reply.prediction)
            finally:
                call.cancel()

    def learn(self, model: str, rows: Sequence[Row]) -> int:
        _, takes, _ = self.method(model, "Learn")
        request = takes(rows=self.rows(takes, rows)) if takes else b""
        accepted: int = self.call(model, "Learn", request).accepted
        return accepted

    def outcome(self, model: str, items: Sequence[Row]) -> list[str]:
        _, takes, _ = self.method(model, "Outcome")
        request: Any = b""
        if takes is not None:
            request = takes()
            kind = message_factory.GetMessageClass(
                takes.DESCRIPTOR.fields_by_name["outcomes"].message_type
            )
            request.outcomes.extend(self.row(kind, item) for item in items)
        return [each.status for each in self.call(model, "Outcome", request).results]

    def train(self, model: str) -> int:
        _, takes, _ = self.method(model, "Train")
        request = takes(wait=60.0) if takes else b""
        version: int = self.call(model, "Train", request, 90.0).version
        return version

    def describe(self, model: str) -> Row:
        told = json_format.MessageToDict(self.call(model, "Describe", b""))
        row = self.request(model, {}).DESCRIPTOR.fields_by_name["row"].message_type
        inputs = [field.json_name for field in row.fields]
        return {"name": told["name"], "version": int(told["champion"] or 0), "inputs": inputs}

    def close(self) -> None:
        self.channel.close()


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc,type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc,type-arg]
):
    """Sends a token with every call."""

    def __init__(self, token: str) -> None:
        self._metadata = [("authorization", f"Bearer {token}")]

    def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
        return go_on(details._replace(metadata=self._metadata), request)

    intercept_stream_stream = intercept_unary_unary


def service_of(model: str) -> str:
    """The full name of a model's service."""
    words = re.sub("(?:^|_)([a-z])", lambda found: found[1].upper(), model)
    return f"loopline.v1.{words}Service"


def _bytes(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def said(prediction: Any) -> Said:
    """A prediction's message as all protocols' clients show it."""
    value = prediction.prediction if prediction.HasField("prediction") else None
    if not isinstance(value, str | int | float | bool | None):
        value = json_format.MessageToDict(value)
    return Said(prediction.id, value, prediction.version)


def stray(number: int, value: Any) -> bytes:
    """A value on the wire in the type that it has itself, whatever the contract says."""
    if isinstance(value, float):
        return key(number, 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return key(number, 0) + varint(value % 2**64)
    data = str(value).encode()
    return key(number, 2) + varint(len(data)) + data


def key(number: int, wire_type: int) -> bytes:
    """What stands before a field's value."""
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    """A number, seven bits in each byte."""
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


@contextmanager
def refusals() -> Iterator[None]:
    """Raise the errors of gRPC as refusals, by the details that programs read."""
    try:
        yield
    except grpc.RpcError as error:
        raise refusal(error) from error


def refusal(error: Any) -> Refusal:
    """An error of gRPC by its details, or by its status where it has none."""
    status = rpc_status.from_call(error)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for each in status.details if status else ():
        each.Unpack(info)
        each.Unpack(request)
    code = info.reason or {"DEADLINE_EXCEEDED": "timeout", "RESOURCE_EXHAUSTED": "too-large"}.get(
        error.code().name, error.code().name
    )
    return Refusal(code, error.details(), [each.field for each in request.field_violations])
