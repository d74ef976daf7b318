"""The Open Inference Protocol over HTTP, through tritonclient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loopline.testing.adapter import Driver, Refusal, Row, Said
from tests.clients.bridges import Bridge, Told


class InferenceHttp(Driver):
    """tritonclient.http against a server.

    Args:
        url: of the server, for instance http://127.0.0.1:8000.
        token: sent with every request.
    """

    name = "V2 over HTTP"
    verbs = frozenset({"predict", "null", "ids", "deadline", "describe"})

    def __init__(self, url: str, token: str | None = None) -> None:
        self._bridge = Bridge("triton", "triton_http.py", url.removeprefix("http://"))
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        many = [rows] if isinstance(rows, dict) else rows
        options: dict[str, Any] = {"headers": self._headers}
        inputs = tensors(many)
        if ids is not None:
            inputs.append(["prediction_id", "BYTES", [len(ids)], list(ids), True])
        if version is not None:
            options["model_version"] = str(version)
        if timeout is not None:
            options["timeout"] = int(timeout * 1e6)
        found = self._call("infer", model=model, inputs=inputs, options=options)
        said, outputs = int(found["response"]["model_version"]), found["outputs"]
        pairs = zip(outputs["prediction_id"], outputs["prediction"], strict=True)
        return [Said(id, prediction, said) for id, prediction in pairs]

    def describe(self, model: str) -> Row:
        options = {"headers": self._headers}
        told = self._call("get_model_metadata", args=[model], options=options)
        names = [each["name"] for each in told["inputs"]]
        return {**told, "version": max(map(int, told["versions"]), default=None), "inputs": names}

    def _call(self, call: str, **given: Any) -> Any:
        try:
            return self._bridge(call, **given)
        except Told as error:
            code, _, detail = error.text.partition(": ")
            raise Refusal(code, detail) from error

    def close(self) -> None:
        self._bridge.close()


def tensors(rows: Sequence[Row]) -> list[list[Any]]:
    """One tensor for each field that a row has, of the datatype that its values have."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [_tensor(name, [row.get(name) for row in rows]) for name in names]


def _tensor(name: str, values: list[Any]) -> list[Any]:
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
        datatype = "BOOL"
    elif types == {int} and None not in values:
        datatype = "INT64"
    elif types <= {int, float}:
        datatype = "FP64"
    else:
        # Words beside numbers: only text can hold both, and the schema says what it makes of it.
        datatype, values = "BYTES", [str(value) for value in values]
    return [name, datatype, [len(values)], values, True]
