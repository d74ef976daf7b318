"""The Open Inference Protocol over gRPC, by `tritonclient` in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.rpc import error_details_pb2, status_pb2

from loopline.testing.adapter import Driver, Refusal, Row, Said
from tests import clients

_DATATYPES = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


class InferenceGrpc(Driver):
    """A client of the tensors of one server.

    Args:
        address: HOST:PORT.
        token: sent with every call, where given.
    """

    name = "V2 over gRPC"
    verbs = frozenset("predict ids deadline stream describe".split())

    def __init__(self, address: str, token: str | None = None) -> None:
        script = clients.HERE / "triton_grpc.py"
        self._headers = {"authorization": f"Bearer {token}"} if token else None
        self._process = subprocess.Popen(
            [clients.python("triton"), script, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ask(self, do: str, **options: Any) -> Any:
        """Let the client make one call; what it raises is a refusal."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._headers and do not in ("send", "receive", "end"):
            options["headers"] = self._headers
        self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise refusal(answer)
        return answer

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        return said(
            self.ask(
                "infer",
                model=model,
                inputs=tensors([rows] if isinstance(rows, dict) else rows, ids),
                version="" if version is None else str(version),
                client_timeout=timeout,
            )
        )

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        self.ask("start")
        try:
            for row in rows:
                self.ask("send", model=model, inputs=tensors([row], None))
                yield from said(self.ask("receive"))
        finally:
            self.ask("end", cancel=True)

    def describe(self, model: str) -> Row:
        found = self.ask("get_model_metadata", model_name=model)["found"]
        names = [each["name"] for each in found.get("inputs", ())]
        version = max(map(int, found["versions"]))
        return {"name": found["name"], "version": version, "inputs": names}

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._process, contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
            self._process.wait(30)


def tensors(rows: Sequence[Row], ids: Sequence[str] | None) -> list[Any]:
    """Rows as tensors, each of the datatype that its values have."""
    if any(None in row.values() for row in rows):
        raise NotImplementedError("a tensor has no null")
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        kind = float if kinds <= {int, float} and len(kinds) != 1 else kinds.pop()
        missing = {float: float("nan"), str: ""}.get(kind, 0)
        data = [missing if value is None else value for value in values]
        if kinds:
            kind, data = str, [str(value) for value in data]
        found.append([name, _DATATYPES[kind], [len(rows)], data])
    if ids is not None:
        found.append(["prediction_id", "BYTES", [len(ids)], list(ids)])
    return found


def said(answer: Any) -> list[Said]:
    """An answer's rows as all protocols' clients show them."""
    outputs, version = answer["outputs"], int(answer["version"])
    pairs = zip(outputs["prediction_id"][2], outputs["prediction"][2], strict=True)
    return [Said(id, value, version) for id, value in pairs]


def refusal(answer: Any) -> Refusal:
    """An error by its details; by the words in front of it, where it came on a stream."""
    status = status_pb2.Status.FromString(base64.b64decode(answer["details"]))
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for each in status.details:
        each.Unpack(info)
        each.Unpack(request)
    code, detail = info.reason, answer["error"]
    if not code and answer["status"] is None:
        code, _, detail = detail.partition(": ")
    late = answer["status"] == "StatusCode.DEADLINE_EXCEEDED"
    code = code or ("timeout" if late else str(answer["status"]))
    return Refusal(code, detail, [each.field for each in request.field_violations])
