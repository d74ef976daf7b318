"""Where fields come from: a training frame, a typed record, a JSON Schema, a function's signature.

Every declaration is first turned into JSON Schema, so one reader serves them all.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from loopline.errors import InvalidInput
from loopline.fields import Field, Kind, Output, listing, native

if TYPE_CHECKING:
    import pandas as pd

MOST_CATEGORIES = 1_000

_SEEN_AS: dict[Kind, str] = {
    "number": "floating integer mixed-integer-float decimal",
    "boolean": "boolean",
    "text": "datetime64 datetime date time",
    "any": "empty complex bytes",
}
_SEEN = {seen: kind for kind, names in _SEEN_AS.items() for seen in names.split()}
_TYPES: dict[frozenset[Any], Kind] = {
    frozenset(["number"]): "number",
    frozenset(["integer", "number"]): "number",
    frozenset(["integer"]): "integer",
    frozenset(["boolean"]): "boolean",
    frozenset(["string"]): "text",
}


def inferred(
    frame: pd.DataFrame, target: str | None, used: Iterable[str] | None, task: str | None
) -> tuple[tuple[Field, ...], Output | None]:
    """Read the fields and the output off a training frame, for `Schema.infer`."""
    columns = [str(column) for column in frame.columns]
    wanted = set(columns if used is None else used)
    named = [*([] if target is None else [target]), *sorted(wanted)]
    missing = [name for name in named if name not in columns]
    if missing:
        raise InvalidInput(f"no column {listing(missing)}; the columns are {listing(columns)}")
    if len(set(columns)) < len(columns):
        raise InvalidInput(f"a column name appears twice in {listing(columns)}")
    series = {name: frame.iloc[:, i] for i, name in enumerate(columns)}
    output = None if target is None else _seen_output(target, series[target], task)
    fields = (_seen_field(name, series[name], name in wanted) for name in columns if name != target)
    return tuple(fields), output


def _seen_field(name: str, series: pd.Series[Any], used: bool) -> Field:
    values = series.dropna()
    kind, categories = _seen_kind(values)
    field = Field(name=name, kind=kind, nullable=len(values) < len(series), used=used)
    if len(values) and kind != "any":
        example = native(values.iloc[0])
        example = float(example) if kind == "number" else example
        field = msgspec.structs.replace(field, categories=categories, example=example)
    if kind != "number":
        return field
    numbers = [number for number in values.astype("float64").tolist() if math.isfinite(number)]
    # Whole numbers in training do not mean that a later 5.5 is wrong, so they are numbers here;
    # the description keeps what was seen.
    whole = all(number.is_integer() for number in numbers) and "int" in str(series.dtype).lower()
    return msgspec.structs.replace(
        field,
        minimum=min(numbers, default=None),
        maximum=max(numbers, default=None),
        description="whole numbers in training" if whole else "",
    )


def _seen_kind(values: pd.Series[Any]) -> tuple[Kind, tuple[Any, ...] | None]:
    """The kind of a column without its nulls, with its categories where it is one."""
    from pandas.api.types import infer_dtype

    seen = infer_dtype(values, skipna=True)
    if seen in _SEEN:
        return _SEEN[seen], None
    try:
        unique = values.unique().tolist()
    except TypeError:
        return "any", None
    if len(unique) <= min(MOST_CATEGORIES, max(50, len(values) // 20)):
        return "category", _ordered(unique)
    return ("text" if all(isinstance(value, str) for value in unique) else "any"), None


def _ordered(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(map(native, values), key=lambda value: (type(value).__name__, value)))


def _seen_output(name: str, series: pd.Series[Any], task: str | None) -> Output:
    values = series.dropna()
    if task != "classification" and _seen_kind(values)[0] == "number":
        return Output(name=name, kind="number")
    return Output(name=name, kind="category", categories=_ordered(values.unique().tolist()))


def declared(kind: Any) -> tuple[tuple[Field, ...], Output | None]:
    """Read the fields off a declaration; no fields at all mean that any object will do."""
    if inspect.isroutine(kind):
        return _signature(kind)
    root = _json_schema(kind)
    spec = _resolved(root, root)
    if spec.get("type", "object") != "object" or spec.keys() & {"anyOf", "oneOf", "enum", "const"}:
        raise InvalidInput("a declared input must be an object with named fields")
    required = set(spec.get("required", ()))
    properties: Mapping[str, Any] = spec.get("properties", {})
    return tuple(
        _declared_field(name, inner, name in required, root) for name, inner in properties.items()
    ), None


def declared_output(kind: Any) -> Output | None:
    """Read an output off a name, a type or a JSON Schema; a lone property of one is the output."""
    if kind is None or isinstance(kind, Output):
        return kind
    if isinstance(kind, str):
        return Output(name=kind, kind="any")
    root = _json_schema(kind)
    spec, name = _resolved(root, root), "prediction"
    if len(spec.get("properties", ())) == 1:
        ((name, spec),) = spec["properties"].items()
    field = _declared_field(name, spec, True, root)
    return Output(name=name, kind=field.kind, categories=field.categories)


def _json_schema(kind: Any) -> Mapping[str, Any]:
    if isinstance(kind, Mapping):
        return kind
    if hasattr(kind, "model_json_schema"):
        schema: Mapping[str, Any] = kind.model_json_schema()
        return schema
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_field_defaults"):
        defaults: Mapping[str, Any] = kind._field_defaults
        kind = _struct(kind.__name__, typing.get_type_hints(kind, include_extras=True), defaults)
    try:
        return msgspec.json.schema(kind)
    except (TypeError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"cannot read fields from {kind!r}: {reason}") from error


def _struct(name: str, types: Mapping[str, Any], defaults: Mapping[str, Any]) -> type:
    fields = [
        (each, kind, defaults[each]) if each in defaults else (each, kind)
        for each, kind in types.items()
    ]
    try:
        return msgspec.defstruct(name, fields, kw_only=True)
    except TypeError as error:
        raise InvalidInput(f"cannot read the fields of {name}: {error}") from error


def _signature(function: Callable[..., Any]) -> tuple[tuple[Field, ...], Output | None]:
    """The parameters are the fields; a single one that takes a whole row is the row."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError) as error:
        raise InvalidInput(f"cannot read the signature of {function!r}: {error}") from error
    answer = hints.pop("return", None)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: each for name, each in parameters.items() if each.kind not in variadic}
    output = None
    if answer is not Any:
        with suppress(InvalidInput):  # An array type, say, names no output.
            output = declared_output(answer)
    if len(named) == 1 and (whole := _whole_row(hints.get(*named))) is not None:
        return whole, output
    defaults = {n: each.default for n, each in named.items() if each.default is not each.empty}
    types = {name: hints.get(name, Any) for name in named}
    return declared(_struct(function.__name__, types, defaults))[0], output


def _whole_row(hint: Any) -> tuple[Field, ...] | None:
    """The fields of a row passed as one argument; None where the argument is a single field."""
    if hint in (None, Any, dict, Mapping) or typing.get_origin(hint) in (dict, Mapping):
        return ()
    try:
        schema = _json_schema(hint)
    except InvalidInput:
        return ()
    return declared(hint)[0] if "properties" in _resolved(schema, schema) else None


def _resolved(spec: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references within the document, and merge what stands beside them."""
    for _ in range(16):
        if len(spec.get("allOf", ())) == 1:
            spec = {**spec["allOf"][0], **{k: v for k, v in spec.items() if k != "allOf"}}
        if "$ref" not in spec:
            return spec
        found: Any = root
        for step in str(spec["$ref"]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step, {}) if isinstance(found, Mapping) else {}
        spec = {**found, **{k: v for k, v in spec.items() if k != "$ref"}}
    raise InvalidInput("the declared schema refers to itself")


def _declared_field(
    name: str, spec: Mapping[str, Any], required: bool, root: Mapping[str, Any]
) -> Field:
    spec = _resolved(spec, root)
    options = [_resolved(each, root) for each in spec.get("anyOf") or spec.get("oneOf") or [spec]]
    listed: list[Any] = []
    types: set[Any] = set()
    for option in options:
        values = [option["const"]] if "const" in option else option.get("enum")
        listed += values or ()
        given = option.get("type")
        types.update(given if isinstance(given, list) else {given} if values is None else ())
    nullable = "null" in types or None in listed or None in types
    types.discard("null")
    categories = tuple(value for value in listed if value is not None)
    kind: Kind = "category" if categories and not types else _TYPES.get(frozenset(types), "any")
    minimum, maximum = _bounds([spec, *options], kind)
    default = native(spec.get("default"))
    return Field(
        name=name,
        kind=kind,
        nullable=nullable,
        optional=not required,
        default=float(default) if kind == "number" and type(default) is int else default,
        categories=categories if kind == "category" else None,
        minimum=minimum,
        maximum=maximum,
        strict=kind == "category" or minimum is not None or maximum is not None,
        example=next(iter(spec.get("examples", ())), None),
        description=spec.get("description", ""),
    )


def _bounds(specs: Sequence[Mapping[str, Any]], kind: Kind) -> tuple[float | None, float | None]:
    """The declared range, an excluded edge turned into the nearest number that is allowed."""
    if kind not in ("number", "integer"):
        return None, None
    given = {key: value for spec in reversed(specs) for key, value in spec.items()}
    low, high = given.get("minimum"), given.get("maximum")
    over, under = given.get("exclusiveMinimum"), given.get("exclusiveMaximum")
    if isinstance(over, int | float) and not isinstance(over, bool):
        low = math.floor(over) + 1 if kind == "integer" else math.nextafter(over, math.inf)
    if isinstance(under, int | float) and not isinstance(under, bool):
        high = math.ceil(under) - 1 if kind == "integer" else math.nextafter(under, -math.inf)
    return (None if low is None else float(low)), (None if high is None else float(high))
