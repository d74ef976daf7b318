"""Properties of the schema over generated schemas and rows."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from loopline.errors import InvalidInput
from loopline.schema import Field, Output, Schema
from tests.tables import quick_array

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": FLOATS | INTEGERS | st.integers(-(2**70), 2**70),
    "integer": INTEGERS | st.integers(-(2**40), 2**40).map(float),
    "boolean": st.booleans(),
    "text": TEXTS,
    "category": TEXTS,
}
CATEGORIES: list[tuple[Any, ...] | None] = [("a", "b"), None, (1, 2), (0.5, 2), (True, False)]
JSON = st.recursive(
    st.none() | st.booleans() | FLOATS | st.integers(-(10**25), 10**25) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    """One field of any kind but `any`."""
    kind = draw(st.sampled_from(sorted(VALUES)))
    strict = draw(st.booleans()) and kind in ("number", "integer")
    return Field(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        nullable=draw(st.booleans()),
        used=draw(st.booleans()),
        categories=draw(st.sampled_from(CATEGORIES)) if kind == "category" else None,
        minimum=-1e6 if strict else None,
        strict=strict,
    )


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """A schema with up to five fields and a target."""
    names = draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    made = tuple(draw(fields(name)) for name in names[1:])
    return Schema(fields=made, output=Output(name=names[0], kind="number"))


def value_for(field: Field) -> st.SearchStrategy[Any]:
    """Values that mostly fit a field."""
    known = st.sampled_from(field.categories) if field.categories else VALUES[field.kind]
    return known | VALUES[field.kind] | (st.none() if field.nullable else st.nothing())


@st.composite
def schemas_and_objects(draw: st.DrawFn) -> tuple[Schema, dict[str, Any]]:
    """A schema with an object that often is a row of it, in any order of the names."""
    schema = draw(schemas())
    names = draw(st.permutations([field.name for field in schema.fields]))
    by_name = {field.name: field for field in schema.fields}
    value = {name: draw(value_for(by_name[name])) for name in names}
    for name in draw(st.lists(st.sampled_from(names), max_size=1)):
        if draw(st.booleans()):
            value[name] = draw(JSON)
        else:
            del value[name]
    return schema, value


def row_or_none(schema: Schema, value: Any) -> tuple[Any, ...] | None:
    """The row, or None where it is refused; anything but a refusal fails the test."""
    try:
        return schema.row(value)
    except InvalidInput as error:
        assert error.fields
        return None


def same(left: Any, right: Any) -> bool:
    """Equality that also asks for the same types and the same sign of zero."""
    return repr(left) == repr(right)


@RELAXED
@given(schemas_and_objects())
def test_decoder_agrees_with_row(case: tuple[Schema, dict[str, Any]]) -> None:
    """The quick decoder gives what `row` gives, and accepts nothing that `row` refuses."""
    schema, value = case
    decode = schema.decoder()
    assume(decode is not None)
    assert decode is not None
    body = json.dumps(value).encode()
    expected = row_or_none(schema, json.loads(body))
    try:
        decoded = decode(body)
    except msgspec.DecodeError:
        return
    assert expected is not None
    assert same(decoded, ([expected], False))
    assert same(decode(b"[%b, %b]" % (body, body)), ([expected, expected], True))


@RELAXED
@given(st.data())
def test_decoder_takes_canonical_rows(data: st.DataObject) -> None:
    """Rows in the plain types of their fields never need the slow way."""
    schema = data.draw(schemas())
    decode = schema.decoder()
    assume(decode is not None)
    assert decode is not None
    plain = {
        "number": FLOATS.filter(lambda number: number >= -1e6),
        "integer": st.integers(-(10**6), 10**6),
        "boolean": st.booleans(),
        "text": TEXTS,
    }
    value = {
        field.name: data.draw(
            st.sampled_from(field.categories) if field.categories else plain.get(field.kind, TEXTS)
        )
        for field in schema.fields
    }
    assert same(decode(msgspec.json.encode(value)), ([schema.row(value)], False))
    assert same(decode(msgspec.json.encode([value] * 3)), ([schema.row(value)] * 3, True))


@RELAXED
@given(schemas_and_objects())
def test_shapes_agree(case: tuple[Schema, dict[str, Any]]) -> None:
    """A row is the same alone, among others, as a list, in an envelope and as columns."""
    schema, value = case
    row = row_or_none(schema, value)
    assume(row is not None)
    assert same(schema.parse([value, value])[0], [row, row])
    if "inputs" not in schema.columns:
        assert same(schema.parse({"inputs": [value]})[0], [row])
    if len(value) == len(schema.fields):
        assert same(schema.row([value[field.name] for field in schema.fields]), row)
        columns = {name: [each, each] for name, each in value.items()}
        if set(columns) != {"inputs"}:
            assert same(schema.parse(columns)[0], [row, row])


@RELAXED
@given(schemas_and_objects())
def test_rows_are_rows_again(case: tuple[Schema, dict[str, Any]]) -> None:
    """What came out of the schema goes through it unchanged, and can be stored."""
    schema, value = case
    row = row_or_none(schema, value)
    assume(row is not None)
    assert row is not None
    assert same(schema.row(list(row)), row)
    assert same(tuple(msgspec.msgpack.decode(msgspec.msgpack.encode(row))), row)


@RELAXED
@given(schemas_and_objects())
def test_text_agrees_with_values(case: tuple[Schema, dict[str, Any]]) -> None:
    """Numbers and booleans spelled as text give the row that the values give."""
    schema, value = case
    row = row_or_none(schema, value)
    assume(row is not None and None not in value.values())
    spelled = {name: each if isinstance(each, str) else str(each) for name, each in value.items()}
    empty = any(each == "" for each in spelled.values())
    assume(not empty and all(f.categories or f.kind != "category" for f in schema.fields))
    assert same(schema.row(spelled, text=True), row)


@RELAXED
@given(schemas(), JSON, st.booleans())
def test_anything_is_read_or_refused(schema: Schema, value: Any, text: bool) -> None:
    """Whatever is sent, it is read or refused with pointers into it."""
    for read in (schema.parse, schema.labelled, schema.label):
        try:
            read(value, text=text)
        except InvalidInput as error:
            assert error.fields
            for field in error.fields:
                assert not field.pointer or field.pointer.startswith("/")


@RELAXED
@given(schemas())
def test_schema_is_plain_data(schema: Schema) -> None:
    """Every schema can be written down and read back."""
    plain = msgspec.json.decode(msgspec.json.encode(schema))
    assert msgspec.convert(plain, Schema) == schema


@RELAXED
@given(st.lists(st.tuples(FLOATS, st.none() | FLOATS), max_size=5))
def test_array_keeps_numbers(rows: list[tuple[Any, ...]]) -> None:
    """An array holds the numbers of the rows, and NaN for null."""
    schema = Schema(
        fields=(Field(name="a", kind="number"), Field(name="b", kind="number", nullable=True))
    )
    array = quick_array(schema, rows)
    assert array.shape == (len(rows), 2)
    for row, kept in zip(rows, array.tolist(), strict=True):
        assert kept[0] == row[0]
        assert math.isnan(kept[1]) if row[1] is None else kept[1] == row[1]
