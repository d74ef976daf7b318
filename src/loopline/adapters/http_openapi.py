"""The OpenAPI 3.1 document, written from the routes and from every model's real fields."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from loopline import __version__, codecs
from loopline.adapters.http_wire import PROBLEM, Answer, Desk, Problem, Query
from loopline.adapters.status import HTTP, HTTP_ONLY
from loopline.records import ModelRecord, Record
from loopline.schema import Schema

Json = dict[str, Any]

REF = "#/components/schemas/{name}"

ALWAYS = ("unauthorized", "forbidden", "unavailable")
"""What every route can end with."""
BODY = ("unreadable", "too-large", "unsupported-media-type", "invalid-input")
"""What every route with a body can end with."""
TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
WHOLE: Json = {"type": "integer"}
FLAG: Json = {"type": "boolean"}
OBJECT: Json = {"type": "object"}
TIME: Json = {"type": ["number", "string"], "description": "Seconds since 1970, or ISO 8601."}
_KINDS = {"number": "number", "integer": "integer", "boolean": "boolean"}


class Route(Record, frozen=True, kw_only=True):
    """One operation: where it is, what answers it, and what there is to know about it.

    The first line of the handler's docstring is its summary. `answers` are the good statuses with
    the schema of their body (None for no body), `also` the error codes beside those that follow
    from the rest. `rows` names what the body holds of a model's rows: "row", "labelled" or
    "outcome"; such routes are written out for every model. `refusal` is the content of an error
    where it is not problem details.
    """

    method: str
    path: str
    handler: Callable[[Desk], Awaitable[Answer]]
    answers: dict[int, Json | None]
    also: tuple[str, ...] = ()
    query: tuple[Query, ...] = ()
    body: Json | None = None
    rows: str = ""
    media_type: str = codecs.JSON
    refusal: Json | None = None

    @property
    def name(self) -> str:
        """The operation's id: method and path as one word."""
        words = re.findall(r"[a-z0-9_]+", self.path.removeprefix("/v1"))
        return "_".join([self.method.lower(), *words])

    @property
    def codes(self) -> Iterable[str]:
        """Every error code that it can end with, once."""
        found = [*self.also, *ALWAYS]
        if "{model}" in self.path and self.method != "PUT":
            found.append("unknown-model")
        if "{id}" in self.path:
            found.append("unknown-job" if "/jobs/" in self.path else "unknown-prediction")
        if "version" in self.path or "version" in {query.name for query in self.query}:
            found.append("unknown-version")
        if self.query:
            found.append("invalid-input")
        if self.rows or self.body is not None:
            found.extend(BODY)
        return dict.fromkeys(found)


def obj(*optional: str, **properties: Json) -> Json:
    """The schema of an object with these properties, required unless named as optional."""
    needed = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": needed}


def many(items: Json) -> Json:
    """The schema of a list."""
    return {"type": "array", "items": items}


def maybe(schema: Json) -> Json:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def document(routes: Iterable[Route], models: Iterable[ModelRecord], prefix: str = "") -> Json:
    """Describe the routes, and for every model those that take its rows.

    Args:
        prefix: the path under which the outside world sees the application.
    """
    schemas = msgspec.json.schema_components([Problem], ref_template=REF)[1]
    paths: dict[str, Json] = {}
    for route in routes:
        general = _operation(route, route.name, _general(route))
        paths.setdefault(route.path, {})[route.method.lower()] = general
    for record in models:
        schema = msgspec.convert(record.schema, Schema)
        schemas[f"{record.name}.row"] = schema.row_json_schema()
        if schema.output is not None:
            schemas[f"{record.name}.labelled"] = schema.row_json_schema(labelled=True)
        for route in routes:
            if route.rows and (route.rows == "row" or schema.output is not None):
                path = route.path.replace("{model}", record.name)
                paths[path] = {"post": _for_model(route, path, record.name, schema)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Loopline", "version": __version__},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # The empty requirement says that a server may be open.
        "security": [{"token": []}, {}],
    }


def _general(route: Route) -> Json | None:
    """The body of a route as it is for any model."""
    if not route.rows:
        return route.body
    if route.rows == "outcome":
        return outcomes({})
    return {"anyOf": [OBJECT, {**many({}), "minItems": 1}]}


def _operation(route: Route, name: str, body: Json | None) -> Json:
    told: Json = {
        "operationId": name,
        "summary": (route.handler.__doc__ or "").partition("\n")[0],
        "parameters": [
            *(_path(name) for name in re.findall(r"{(\w+)}", route.path)),
            *map(_query, route.query),
        ],
        "responses": _responses(route),
    }
    if body is not None:
        told["requestBody"] = {
            "required": bool(body.get("required")) or bool(route.rows),
            "content": {codecs.JSON: {"schema": body}},
        }
    return told


def _path(name: str) -> Json:
    schema = {"type": "integer", "minimum": 1} if name == "version" else TEXT
    return {"name": name, "in": "path", "required": True, "schema": schema}


def option(query: Query) -> Json:
    """The schema of a query parameter."""
    schema: Json = {"type": "string" if query.kind in ("text", "time") else query.kind}
    if query.choices:
        schema["enum"] = list(query.choices)
    if math.isfinite(query.low):
        schema |= {"minimum": query.low, "maximum": query.high}
    return schema


def _query(query: Query) -> Json:
    told = {"name": query.name, "in": "query", "description": query.description}
    return {**told, "schema": option(query)}


def _responses(route: Route) -> Json:
    found: Json = {}
    for status, schema in route.answers.items():
        found[str(status)] = {"description": HTTPStatus(status).phrase}
        if schema is not None:
            found[str(status)]["content"] = {route.media_type: {"schema": schema}}
    statuses = {**HTTP, **HTTP_ONLY}
    refusal = route.refusal or {PROBLEM: {"schema": {"$ref": REF.format(name="Problem")}}}
    for code in route.codes:
        told = found.setdefault(str(statuses[code]), {"description": "", "content": {}})
        told["description"] = ", ".join(filter(None, [told["description"], code]))
        told["content"] = {**told.get("content", {}), **refusal}
    return dict(sorted(found.items()))


def _for_model(route: Route, path: str, model: str, schema: Schema) -> Json:
    """The operation with the model's own fields."""
    label = label_of(schema)
    body = outcomes(label) if route.rows == "outcome" else shapes(model, schema, route.rows)
    told = _operation(route, f"{model}_{path.rpartition('/')[2]}", body)
    told["parameters"] = [each for each in told["parameters"] if each["in"] == "query"]
    told["tags"] = [model]
    if route.rows != "outcome" and not schema.open:
        form = {
            name: TEXT for name in schema.row_json_schema(route.rows == "labelled")["properties"]
        }
        told["requestBody"]["content"][codecs.FORM] = {"schema": obj(**form)}
    if route.rows == "row":
        told["responses"]["200"]["content"] = {codecs.JSON: {"schema": predicted(label)}}
    return told


def shapes(model: str, schema: Schema, rows: str) -> Json:
    """Every shape in which a model's rows may come."""
    labelled = rows == "labelled"
    row = {"$ref": f"#/components/schemas/{model}.{rows}"}
    if schema.open:
        return {"anyOf": [row, {"type": "array", "minItems": 1, "items": row}]}
    shape = schema.row_json_schema(labelled)
    names = schema.columns if labelled else [f.name for f in schema.fields if f.used]
    listed = {
        "type": "array",
        "description": f"In this order: {', '.join(names)}.",
        "prefixItems": [shape["properties"][name] for name in names],
        "minItems": len(names),
        "maxItems": len(names),
    }
    rows_of = {"type": "array", "minItems": 1, "items": {"anyOf": [row, listed]}}
    columns = {name: many(field) for name, field in shape["properties"].items()}
    columnar = {**shape, "properties": columns, "description": "A list for each field."}
    columnar.pop("examples", None)
    envelope = obj("ids", inputs={"anyOf": [row, rows_of]}, ids=many(TEXT))
    return {"anyOf": [row, rows_of, columnar, *([] if labelled else [envelope])]}


def label_of(schema: Schema) -> Json:
    """What is predicted; classes are examples, because new ones can be learnt."""
    output = schema.output
    if output is None:
        return {}
    found: Json = {"title": output.name}
    if output.kind in _KINDS:
        found["type"] = _KINDS[output.kind]
    return found | ({"examples": list(output.categories)} if output.categories else {})


def outcomes(label: Json) -> Json:
    """The schema of one outcome, or of a list of them."""
    one = obj("at", id={**TEXT, "minLength": 1, "maxLength": 200}, outcome=label, at=TIME)
    return {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}


def predicted(label: Json) -> Json:
    """The schema of an answer to a prediction request, one row's or many's."""
    item = {"id": TEXT, "prediction": label, "probabilities": OBJECT, "version": WHOLE}
    each = obj("probabilities", "version", **item)
    one = obj("probabilities", **item, model=TEXT)
    return {"anyOf": [one, obj(model=TEXT, version=WHOLE, predictions=many(each))]}
