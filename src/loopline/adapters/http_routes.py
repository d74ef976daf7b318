"""The table of HTTP routes: the one source of the router and of the documentation."""

from __future__ import annotations

from importlib import resources

import msgspec

from loopline import codecs
from loopline.adapters import http_inference as inference
from loopline.adapters import http_verbs as verbs
from loopline.adapters.http_contract import asyncapi, bundle
from loopline.adapters.http_openapi import (
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Json,
    Route,
    document,
    many,
    maybe,
    obj,
    predicted,
)
from loopline.adapters.http_predict import PATIENCE, QUERIES, VERSION
from loopline.adapters.http_stream import predict
from loopline.adapters.http_verbs import verb
from loopline.adapters.http_wire import Answer, Desk, Query
from loopline.client import Client
from loopline.loop import Loop
from loopline.records import Decision, JobState, OutcomeStatus, WorkerRecord

WAIT = Query("wait", "number", 0, PATIENCE, description="Seconds to wait for the job's end.")
SPAN = (
    Query("from", "time", into="since", description="ISO 8601, or seconds since 1970."),
    Query("to", "time", into="until", description="The first moment that is out."),
)
JOBS = (
    Query("model", "text"),
    Query("state", "text", choices=tuple(state.value for state in JobState)),
    Query("most", "integer", 1, 1000),
)
FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
_PROTO = "text/x-protobuf; charset=utf-8"
CONTRACTS: dict[str, tuple[str, str, Json, str]] = {
    "openapi": ("/openapi.json", codecs.JSON, OBJECT, "OpenAPI 3.1, with every model's fields."),
    "asyncapi": ("/asyncapi.json", codecs.JSON, OBJECT, "AsyncAPI 3: WebSockets and job events."),
    "jsonschema": ("/schema.json", codecs.JSON, OBJECT, "JSON Schemas of all rows and answers."),
    "proto": ("/service.proto", _PROTO, TEXT, "The typed gRPC service of every model."),
}
"""The forms of the contract: where each is, its content type and schema, and what it is."""
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"


_json = msgspec.json.encode


def _record(kind: type, **more: Json) -> Json:
    """The schema of a record as it is sent, every field of it."""
    (_, parts) = msgspec.json.schema_components([kind])
    properties = {**parts[kind.__name__]["properties"], **more}
    return {"type": "object", "properties": properties, "required": list(properties)}


_METRICS: Json = {"type": "object", "additionalProperties": NUMBER}
_DECISION = _record(Decision)
_ENTRY = obj(name=TEXT, ready=FLAG, champion=maybe(WHOLE), task=TEXT, capabilities=many(TEXT))
_MODELS = obj(models=many(_ENTRY))
_MODEL = obj(name=TEXT, ready=FLAG, champion=maybe(WHOLE), schema=OBJECT, columns=many(TEXT))
_VERSION = obj(model=TEXT, version=WHOLE, created=NUMBER, metrics=_METRICS, aliases=many(TEXT))
_STATE: Json = {"type": "string", "enum": [state.value for state in JobState]}
_TICKET = obj(job=TEXT, state=_STATE)
_JOB = obj(job=TEXT, state=_STATE, kind=TEXT, model=maybe(TEXT), attempt=WHOLE, created=NUMBER)
_TRAINED = obj(version=maybe(WHOLE), metrics=_METRICS, decision=maybe(_DECISION), job=TEXT)
_STATUS: Json = {"type": "string", "enum": [status.value for status in OutcomeStatus]}
_COUNTS = {status.value: WHOLE for status in OutcomeStatus}
_OUTCOMES = obj(**_COUNTS, results=many(obj(id=TEXT, status=_STATUS)))
_LEARNED = obj(accepted=WHOLE, rows=maybe(WHOLE), summary=maybe(OBJECT))
_SCORED = obj(model=TEXT, version=WHOLE, on=TEXT, rows=WHOLE, metrics=_METRICS)
_REPORT = obj(model=TEXT, version=WHOLE, report={})
_PREDICTION = obj(id=TEXT, model=TEXT, version=WHOLE, prediction={}, at=NUMBER, input={})
_WORKERS = obj(workers=many(_record(WorkerRecord)))
_READY = obj(ready=FLAG, reasons={"type": "object", "additionalProperties": TEXT})
_TOKEN = obj(name=TEXT, scopes=many(TEXT), created=NUMBER, revoked=FLAG)
_FRESH = obj(name=TEXT, scopes=many(TEXT), token=TEXT)
_ISSUE = obj(name=TEXT, scopes={**many(TEXT), "minItems": 1})
_PROMOTION = obj(version={**WHOLE, "minimum": 1, "maximum": 2**31 - 1})
_TRAINING: Json = {"type": "object", "properties": {"parameters": OBJECT, "reason": TEXT}}
_DEFINITION: Json = {
    "type": "object",
    "properties": {
        "estimator": {**TEXT, "examples": ["sklearn.linear_model.LogisticRegression"]},
        "model": {**TEXT, "enum": ["linear", "polynomial"]},
        "formula": {**TEXT, "examples": ["Sales ~ TV"]},
        "parameters": OBJECT,
        "data": {"anyOf": [TEXT, many(OBJECT)], "description": "Rows, or a path on the server."},
        "target": TEXT,
        "task": {**TEXT, "enum": ["classification", "regression"]},
        "description": TEXT,
    },
}
_STATES = ("not-ready", "wrong-state")
_SCORING = (*_STATES, "model-failed")
_PREDICTING = ("not-ready", "overloaded", "timeout", "model-failed")


def contract(loop: Loop, form: str, prefix: str = "", host: str = "") -> Json | str:
    """The contract of the whole service, as of the models that are there.

    Args:
        form: one of `CONTRACTS`.
        prefix: the path under which the outside world sees the application, at the `host`.

    Raises:
        MissingExtra: `.proto` needs what gRPC needs.
    """
    models = [service.record for service in loop.serving.services()]
    if form == "proto":
        from loopline.adapters.grpc_messages import render_proto

        return str(render_proto(models))
    if form == "asyncapi":
        return asyncapi(models, prefix, host)
    return document(ROUTES, models, prefix) if form == "openapi" else bundle(models)


def fetch(client: Client, form: str) -> bytes:
    """The same from wherever a client has its models, for people to read too."""
    told = client.read(CONTRACTS[form][0], lambda loop: contract(loop, form))
    return told.encode() if isinstance(told, str) else msgspec.json.format(_json(told)) + b"\n"


def _contract(form: str, summary: str) -> verbs.Handler:
    async def handle(desk: Desk) -> Answer:
        host = desk.header("host") or ""
        told = await desk.crossing.run(contract, desk.loop, form, desk.prefix, host)
        body = told.encode() if isinstance(told, str) else _json(told)
        return Answer(body, 200, CONTRACTS[form][1])

    handle.__doc__ = summary
    return handle


async def docs(desk: Desk) -> Answer:
    """A page that renders /openapi.json; it loads nothing from elsewhere."""
    name, media_type = FILES[desk.path["file"]]
    body = (resources.files("loopline.adapters") / "docs" / name).read_bytes()
    safe = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
    return Answer(body, 200, media_type, safe)


def _route(
    method: str,
    path: str,
    handler: verbs.Handler,
    answer: Json | None,
    *query: Query,
    status: int = 200,
    answers: dict[int, Json | None] | None = None,
    also: tuple[str, ...] = (),
    body: Json | None = None,
    rows: str = "",
    media_type: str = codecs.JSON,
) -> Route:
    return Route(
        method=method,
        path=path,
        handler=handler,
        answers={status: answer, **(answers or {})},
        also=also,
        query=query,
        body=body,
        rows=rows,
        media_type=media_type,
    )


_M = "/v1/models/{model}"
_J = "/v1/jobs/{id}"

ROUTES: tuple[Route, ...] = (
    _route("POST", f"{_M}/predict", predict, predicted({}), *QUERIES, also=_PREDICTING, rows="row"),
    _route("POST", f"{_M}/outcomes", verbs.outcomes, _OUTCOMES, rows="outcome"),
    _route("POST", f"{_M}/learn", verbs.learn, _LEARNED, status=202, also=_STATES, rows="labelled"),
    _route(
        *("POST", f"{_M}/train", verbs.train, _TICKET, WAIT),
        status=202,
        answers={200: _TRAINED},
        also=("wrong-state", "model-failed"),
        body=_TRAINING,
    ),
    _route("POST", f"{_M}/score", verbs.score, _SCORED, VERSION, also=_SCORING, rows="labelled"),
    _route("POST", f"{_M}/promote", verbs.promote, _DECISION, also=_STATES, body=_PROMOTION),
    _route("POST", f"{_M}/rollback", verb(Loop.rollback, "model"), _DECISION, also=_STATES),
    _route("GET", "/v1/models", verb(Loop.models, under="models"), _MODELS),
    _route("GET", _M, verb(Loop.describe, "model"), _MODEL),
    _route("PUT", _M, verbs.define, _MODEL, answers={201: _MODEL}, also=_STATES, body=_DEFINITION),
    _route("DELETE", _M, verb(Loop.remove, "model"), None, status=204),
    _route(
        "GET",
        f"{_M}/versions",
        verb(Loop.versions, "model", under="versions"),
        obj(versions=many(_VERSION)),
    ),
    _route("GET", f"{_M}/versions/{{version}}", verb(Loop.version, "model", "version"), _VERSION),
    _route(
        "GET",
        f"{_M}/decisions",
        verb(Loop.decisions, "model", under="decisions"),
        obj(decisions=many(_DECISION)),
    ),
    _route("GET", f"{_M}/scores", verb(Loop.scores, "model"), OBJECT),
    _route(
        "GET",
        f"{_M}/report",
        verbs.report,
        _REPORT,
        VERSION,
        Query("format", "text", choices=("html", "json")),
        also=_STATES,
    ),
    _route("GET", f"{_M}/predictions", verbs.predictions, TEXT, *SPAN, media_type=codecs.NDJSON),
    _route("GET", f"{_M}/predictions/{{id}}", verb(Loop.prediction, "model", "id"), _PREDICTION),
    _route("GET", "/v1/jobs", verb(Loop.jobs), obj(jobs=many(_JOB), figures=OBJECT), *JOBS),
    _route("GET", _J, verbs.job, _JOB, WAIT),
    _route("POST", f"{_J}/cancel", verb(Loop.cancel, "id"), _JOB),
    _route(
        "GET",
        f"{_J}/events",
        verbs.job_events,
        TEXT,
        Query("after", "integer", 0, 2**53),
        answers={204: None},
        media_type="text/event-stream",
    ),
    _route("GET", "/v1/workers", verb(Loop.workers, under="workers"), _WORKERS),
    _route("GET", "/v1/tokens", verbs.tokens, obj(tokens=many(_TOKEN))),
    _route("POST", "/v1/tokens", verbs.issue_token, _FRESH, status=201, also=_STATES, body=_ISSUE),
    _route("DELETE", "/v1/tokens/{name}", verbs.revoke_token, None, status=204),
    _route("GET", "/livez", verbs.live, obj(live=FLAG)),
    _route("GET", "/readyz", verbs.ready, _READY, answers={503: _READY}),
    _route("GET", "/ping", verbs.ping, TEXT, media_type="text/plain"),
    _route("GET", "/metrics", verbs.metrics, TEXT, media_type="text/plain"),
    *(
        _route("GET", path, _contract(form, summary), schema, media_type=kind.partition(";")[0])
        for form, (path, kind, schema, summary) in CONTRACTS.items()
    ),
    *inference.ROUTES,
)
HIDDEN = tuple(_route("GET", path, docs, None) for path in FILES)
"""Routes that the documentation does not list: the page that shows it."""
