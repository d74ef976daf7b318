"""The contract of the service in its other forms: AsyncAPI 3, JSON Schema, and `.proto`.

All are written from the same schemas as OpenAPI's document, whose parts they share.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from loopline import __version__
from loopline.adapters.http_openapi import (
    NUMBER,
    OBJECT,
    REF,
    TEXT,
    WHOLE,
    Json,
    label_of,
    maybe,
    obj,
    option,
    outcomes,
    predicted,
    shapes,
)
from loopline.adapters.http_predict import QUERIES
from loopline.adapters.http_socket import PROTOCOL, Message
from loopline.adapters.http_wire import Problem
from loopline.asks import MAX_ID
from loopline.records import ModelRecord
from loopline.schema import Schema

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_ID: Json = {"type": ["string", "integer"], "description": "Echoed; made where there is none."}


def bundle(models: Iterable[ModelRecord]) -> Json:
    """JSON Schemas of what every model takes and gives, in one document.

    `$defs` has for each model `NAME.row`, `NAME.input` (all shapes in which rows may come),
    `NAME.output`, and with a target `NAME.labelled`, `NAME.learn` and `NAME.outcome`.
    """
    told = {"$schema": DRAFT, "title": f"Loopline {__version__}", "$defs": _definitions(models)}
    # OpenAPI and AsyncAPI keep the same definitions in another place.
    text = msgspec.json.encode(told).replace(b'"#/components/schemas/', b'"#/$defs/')
    found: Json = msgspec.json.decode(text)
    return found


def _definitions(models: Iterable[ModelRecord]) -> Json:
    found = msgspec.json.schema_components([Problem], ref_template=REF)[1]
    for record in models:
        name, schema = record.name, msgspec.convert(record.schema, Schema)
        label = label_of(schema)
        found[f"{name}.row"] = schema.row_json_schema()
        found[f"{name}.input"] = shapes(name, schema, "row")
        found[f"{name}.output"] = predicted(label)
        if schema.output is not None:
            found[f"{name}.labelled"] = schema.row_json_schema(labelled=True)
            found[f"{name}.learn"] = shapes(name, schema, "labelled")
            found[f"{name}.outcome"] = outcomes(label)
    return found


def asyncapi(models: Iterable[ModelRecord], prefix: str = "", host: str = "") -> Json:
    """AsyncAPI 3: a WebSocket for each model, and the events of a job.

    Args:
        prefix: the path under which the outside world sees the application.
        host: where it sees it, as in the `Host` header.
    """
    models = list(models)
    channels: Json = {"jobEvents": _JOB_EVENTS}
    operations: Json = {"followJob": _operation("send", "jobEvents", "event")}
    for record in models:
        name = f"{record.name}Socket"
        channels[name] = _socket(record)
        operations[f"{record.name}Ask"] = {
            **_operation("receive", name, "request"),
            "reply": _operation("", name, "answer", "error"),
        }
    servers = {
        name: {"host": host or "localhost", "protocol": name, "pathname": prefix or "/"}
        for name in ("ws", "http")
    }
    token = {"type": "http", "scheme": "bearer", "description": "Where tokens are required."}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Loopline", "version": __version__},
        "defaultContentType": "application/json",
        "servers": servers,
        "channels": channels,
        "operations": operations,
        "components": {"schemas": _definitions(models), "securitySchemes": {"token": token}},
    }


def _operation(action: str, channel: str, *messages: str) -> Json:
    where = f"#/channels/{channel}"
    named = [{"$ref": f"{where}/messages/{name}"} for name in messages]
    told: Json = {"channel": {"$ref": where}, "messages": named}
    return {"action": action, **told} if action else told


def _socket(record: ModelRecord) -> Json:
    """The channel of a model."""
    name = record.name

    def ref(part: str) -> Json:
        return {"$ref": REF.format(name=f"{name}.{part}")}

    requests = [_request("predict", ref("input"))]
    if msgspec.convert(record.schema, Schema).output is not None:
        requests += [_request("outcome", ref("outcome")), _request("learn", ref("learn"))]
    answer = {"anyOf": [ref("output"), OBJECT]} if len(requests) > 1 else ref("output")
    problem = {"allOf": [{"$ref": REF.format(name="Problem")}, obj(*_AFTER, **_AFTER)]}
    return {
        "address": f"/v1/models/{name}/socket",
        "description": f"Requests in, answers in any order out; sub-protocol {PROTOCOL}.",
        "servers": [{"$ref": "#/servers/ws"}],
        "bindings": {"ws": {"method": "GET"}},
        "messages": {
            "request": {"payload": {"anyOf": requests}},
            "answer": {"payload": obj(id=_ID, answer=answer)},
            "error": {"payload": obj(id=maybe(_ID), error=problem)},
        },
    }


_AFTER = {"retry_after": {**WHOLE, "description": "Seconds after which to ask again."}}


def _request(verb: str, inputs: Json) -> Json:
    """A message of one verb; only predictions have options."""
    options = {query.name: option(query) for query in QUERIES} if verb == "predict" else {}
    if options:
        options["ids"] = {"type": "array", "items": {**TEXT, "minLength": 1, "maxLength": MAX_ID}}
    which = {"const": verb}
    told = obj("id", *options, inputs=inputs, id=_ID, verb=which, **options)
    told["required"] = [n for n in told["required"] if n != "verb" or verb != "predict"]
    assert told["properties"].keys() <= {"inputs", *Message.__struct_fields__}
    return {**told, "additionalProperties": False}


_JOB_EVENTS: Json = {
    "address": "/v1/jobs/{id}/events",
    "description": "Server-sent events, up to the job's last one.",
    "servers": [{"$ref": "#/servers/http"}],
    "parameters": {"id": {"description": "The job's id."}},
    "messages": {
        "event": {"contentType": "text/event-stream", "payload": obj(job=TEXT, at=NUMBER)}
    },
}
