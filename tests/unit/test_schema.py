"""The schema's rules: what is a row, what is refused, and how the refusal names it."""

from __future__ import annotations

import copy
import enum
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import jsonschema_rs
import msgspec
import numpy as np
import pandas as pd
import pytest

from loopline.errors import InvalidInput
from loopline.schema import Field, Output, Schema, declare
from tests.tables import quick_array, quick_frame

ADVERTISING = Schema(
    fields=(
        Field(name="TV", kind="number", example=230.1),
        Field(name="Radio", kind="number", used=False, example=37.8),
        Field(name="Newspaper", kind="number", used=False, example=69.2),
    ),
    output=Output(name="Sales", kind="number"),
    columns=("TV", "Radio", "Newspaper", "Sales"),
)
PERSON = Schema(
    fields=(
        Field(name="age", kind="integer"),
        Field(name="job", kind="category", nullable=True, categories=("clerk", "cook")),
        Field(name="member", kind="boolean"),
        Field(name="note", kind="text"),
    ),
    output=Output(name="income", kind="category", categories=("<=50K", ">50K")),
)
ROW = {"age": 30, "job": "cook", "member": False, "note": "x"}


def refusal(call: Callable[[], Any]) -> dict[str, str]:
    """The pointers and sentences of the refusal that a call ends in."""
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.fields
    return {error.pointer: error.detail for error in caught.value.fields}


def read(schema: Schema, value: Any) -> Any:
    """What `parse` gives, compared with literals whose types are narrower than its own."""
    return schema.parse(value)


def single(kind: Any, **more: Any) -> Schema:
    """A schema with one field `x`."""
    return Schema(fields=(Field(name="x", kind=kind, **more),))


@pytest.mark.parametrize(
    ("kind", "value", "row"),
    [
        ("number", 5, 5.0),
        ("number", 0.0, 0.0),
        ("number", 0, 0.0),
        ("integer", 5.0, 5),
        ("integer", 0, 0),
        ("boolean", False, False),
        ("text", "", ""),
        ("text", "é🙂", "é🙂"),
        ("any", {"a": [1, None]}, {"a": [1, None]}),
        ("number", np.float64(2.5), 2.5),
        ("number", np.int32(2), 2.0),
        ("boolean", np.bool_(True), True),
        ("text", pd.Timestamp("2024-01-02"), "2024-01-02T00:00:00"),
    ],
)
def test_accepted_values(kind: str, value: Any, row: Any) -> None:
    """A value that fits is kept in the plain Python type of its field."""
    (kept,) = single(kind).row({"x": value})
    assert kept == row and type(kept) is type(row)


@pytest.mark.parametrize(
    ("kind", "value", "detail"),
    [
        ("number", "abc", "'abc' is not a float"),
        ("number", "5", "'5' is text; a number is needed"),
        ("number", True, "true is not a float"),
        ("number", [1], "an array is not a float"),
        ("number", math.nan, "NaN is not allowed"),
        ("number", math.inf, "infinity is not allowed"),
        ("number", -math.inf, "infinity is not allowed"),
        ("number", 10**400, "a number of that size is too large for a float"),
        ("number", None, "must not be null"),
        ("integer", 5.5, "5.5 is not an integer"),
        ("integer", "abc", "'abc' is not an integer"),
        ("integer", "5", "'5' is text; a number is needed"),
        ("integer", True, "true is not an integer"),
        ("integer", math.inf, "infinity is not allowed"),
        ("integer", 2**63, "9223372036854775808 is outside the range of 64-bit integers"),
        pytest.param(
            "integer",
            10**5000,
            "a number of that size is outside the range of 64-bit integers",
            id="huge",
        ),
        ("boolean", 1, "1 is not a boolean"),
        ("boolean", "true", "'true' is not a boolean"),
        ("text", 5, "5 is not text"),
        ("text", "x" * 10_001, "is longer than 10,000 characters"),
        ("text", "\ud800", "'\\ud800' is not valid Unicode"),
        ("category", {"a": 1}, "an object is not a single value"),
        ("any", {"a": [math.nan]}, "NaN is not allowed"),
        ("any", {1: 2}, "holds a key that is not text"),
        ("any", b"x", "a value of type bytes is not a single value"),
    ],
)
def test_refused_values(kind: str, value: Any, detail: str) -> None:
    """A value that does not fit is refused with a sentence about it."""
    assert refusal(lambda: single(kind).row({"x": value})) == {"/x": detail}


def test_deeply_nested_value_is_refused() -> None:
    """A field that takes anything still has a bottom."""
    value: Any = 1
    for _ in range(200):
        value = [value]
    assert refusal(lambda: single("any").row({"x": value})) == {
        "/x": "is nested more than 64 levels deep"
    }


@pytest.mark.parametrize(
    ("kind", "value", "row"),
    [
        ("number", "3.14", 3.14),
        ("number", " 5 ", 5.0),
        ("number", "1e3", 1000.0),
        ("number", 5, 5.0),
        ("integer", "5", 5),
        ("integer", "-5.0", -5),
        ("boolean", "true", True),
        ("boolean", "False", False),
        ("boolean", "1", True),
        ("boolean", "0", False),
        ("text", "5", "5"),
        ("text", "", ""),
    ],
)
def test_text_values(kind: str, value: Any, row: Any) -> None:
    """A transport that only knows text may spell numbers and booleans in it."""
    (kept,) = single(kind).row({"x": value}, text=True)
    assert kept == row and type(kept) is type(row)


@pytest.mark.parametrize(
    ("kind", "value", "detail"),
    [
        ("number", "abc", "'abc' is not a float"),
        ("number", "1_0", "'1_0' is not a float"),
        ("number", "nan", "NaN is not allowed"),
        ("number", "-inf", "infinity is not allowed"),
        ("number", "9" * 5000, "infinity is not allowed"),
        ("number", "", "must not be null"),
        ("integer", "5.5", "5.5 is not an integer"),
        ("integer", "abc", "'abc' is not an integer"),
        ("boolean", "yes", "'yes' is not a boolean"),
        ("category", "", "must not be null"),
    ],
)
def test_refused_text_values(kind: str, value: Any, detail: str) -> None:
    """Text that spells no value of the field is refused."""
    assert refusal(lambda: single(kind).row({"x": value}, text=True)) == {"/x": detail}


def test_null_where_allowed() -> None:
    """Null, NaN, empty text and absence all mean null in a nullable field, infinity does not."""
    schema = single("number", nullable=True)
    for value in (None, math.nan, np.float64("nan"), pd.NA, pd.NaT):
        assert schema.row({"x": value}) == (None,)
    assert schema.row({}) == (None,)
    assert schema.row({"x": ""}, text=True) == (None,)
    assert refusal(lambda: schema.row({"x": math.inf})) == {"/x": "infinity is not allowed"}


def test_all_errors_at_once() -> None:
    """Unknown, missing, null and wrong fields are all named in one refusal."""
    value = {"age": "abc", "member": None, "a/b~c": 1}
    assert refusal(lambda: PERSON.row(value)) == {
        "/age": "'abc' is not an integer",
        "/member": "must not be null",
        "/note": "is required",
        "/a~1b~0c": "is not a field of this model; its fields are age, job, member, note",
    }


def test_detail_names_fields() -> None:
    """The sentence of the whole refusal names the first fields and counts the others."""
    with pytest.raises(InvalidInput, match=r"^/TV: 'abc' is not a float$"):
        ADVERTISING.parse({"TV": "abc"})
    with pytest.raises(InvalidInput, match=r"and 1 more$"):
        ADVERTISING.parse([{"TV": "a"}] * 4)


def test_errors_are_capped() -> None:
    """A hundred errors are listed and the others counted."""
    with pytest.raises(InvalidInput, match=r"the first 100 of 250 are listed") as caught:
        ADVERTISING.parse([{"TV": "abc"}] * 250)
    assert len(caught.value.fields) == 100


def test_used_fields_are_enough() -> None:
    """A prediction needs the used fields only; the others are validated when they are given."""
    assert ADVERTISING.row({"TV": 50}) == (50.0, None, None)
    assert ADVERTISING.row({"Newspaper": 1, "TV": 50, "Radio": None}) == (50.0, None, 1.0)
    assert refusal(lambda: ADVERTISING.row({"TV": 50, "Radio": "x"})) == {
        "/Radio": "'x' is not a float"
    }
    assert refusal(lambda: ADVERTISING.row({"Radio": 1})) == {"/TV": "is required"}


def test_target_is_refused_in_a_prediction() -> None:
    """The target column has no place in a row to predict."""
    assert refusal(lambda: ADVERTISING.row({"TV": 50, "Sales": 3})) == {
        "/Sales": "is the target; leave it out"
    }


@pytest.mark.parametrize(
    ("value", "rows", "many"),
    [
        ({"TV": 50}, [50.0], False),
        ([{"TV": 50}, {"TV": 60}], [50.0, 60.0], True),
        ([[50], [60]], [50.0, 60.0], True),
        ([[50, 1, 2]], [50.0], True),
        ([[50], {"TV": 60}], [50.0, 60.0], True),
        ({"TV": [50, 100]}, [50.0, 100.0], True),
        ({"TV": [50]}, [50.0], True),
        ({"inputs": [{"TV": 50}]}, [50.0], True),
        ({"inputs": {"TV": 50}}, [50.0], False),
        ({"inputs": {"TV": [50, 60]}}, [50.0, 60.0], True),
        (pd.DataFrame({"TV": [50.0, 60.0]}), [50.0, 60.0], True),
        (np.array([[50.0], [60.0]]), [50.0, 60.0], True),
    ],
)
def test_request_shapes(value: Any, rows: list[float], many: bool) -> None:
    """Every shape of a request gives the same rows, and says whether a list is expected back."""
    parsed, parsed_many = ADVERTISING.parse(value)
    assert [row[0] for row in parsed] == rows
    assert parsed_many is many


@pytest.mark.parametrize(
    ("value", "pointer", "detail"),
    [
        ({"TV": "abc"}, "/TV", "'abc' is not a float"),
        ([{"TV": 1}, {"TV": "abc"}], "/1/TV", "'abc' is not a float"),
        ([[1, 2, "abc"]], "/0/2", "'abc' is not a float"),
        ([["abc"]], "/0/0", "'abc' is not a float"),
        ([[1, 2]], "/0", "has 2 values; expected 3 (TV, Radio, Newspaper) or 1 (TV)"),
        ({"TV": [1, "abc"]}, "/TV/1", "'abc' is not a float"),
        ({"TV": [1, 2], "Radio": [1]}, "/Radio", "has 1 values where the longest column has 2"),
        ({"TV": 1, "Radio": [1]}, "/Radio", "an array is not a float"),
        ({"inputs": [{"TV": "abc"}]}, "/inputs/0/TV", "'abc' is not a float"),
        ({"inputs": {"TV": ["abc"]}}, "/inputs/TV/0", "'abc' is not a float"),
        ({"Radio": [1, 2]}, "/TV", "is required"),
        ([{"TV": 1}, 5], "/1", "5 is not a row; send an object or an array"),
        (5, "", "5 is not a row; send an object or an array"),
        (None, "", "null is not a row; send an object or an array"),
        ([], "", "no rows were sent"),
        ({"TV": []}, "", "no rows were sent"),
        ({"inputs": []}, "/inputs", "no rows were sent"),
    ],
)
def test_pointers(value: Any, pointer: str, detail: str) -> None:
    """A pointer leads to the value in the body as the caller wrote it."""
    assert refusal(lambda: ADVERTISING.parse(value)) == {pointer: detail}


def test_flat_list_is_ambiguous() -> None:
    """A flat list of scalars is refused with a hint about how to write it."""
    (detail,) = refusal(lambda: ADVERTISING.parse([50])).values()
    assert "write [[...]] for one row" in detail


def test_flat_list_of_a_form_is_a_row() -> None:
    """In a form the member `data` is one row."""
    assert ADVERTISING.parse({"data": ["50"]}, text=True) == ([(50.0, None, None)], False)


def test_columns_with_unknown_names() -> None:
    """An unknown column is named once, not once per row."""
    errors = refusal(lambda: ADVERTISING.parse({"TV": [1, 2], "TB": [1, 2]}))
    assert list(errors) == ["/TB"]


def test_inputs_may_be_a_field() -> None:
    """A field of the name `inputs` is not taken for an envelope."""
    schema = Schema(fields=(Field(name="inputs", kind="number"),))
    assert schema.parse({"inputs": 3}) == ([(3.0,)], False)
    assert schema.parse({"inputs": [3, 4]}) == ([(3.0,), (4.0,)], True)


def test_field_of_lists_is_not_columnar() -> None:
    """A list for a field that takes anything is that row's value."""
    assert read(single("any"), {"x": [1, 2]}) == ([([1, 2],)], False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([3.14, 34.6, 12.2, 8.4], False),
        ({"Sales": 8.4, "TV": 3.14, "Newspaper": 12.2, "Radio": 34.6}, False),
        ({"data": ["3.14", "34.6", "12.2", "8.4"]}, True),
        (["3.14", "34.6", "12.2", "8.4"], True),
        ([[3.14, 34.6, 12.2, 8.4]], False),
        ({"TV": [3.14], "Radio": [34.6], "Newspaper": [12.2], "Sales": [8.4]}, False),
    ],
)
def test_labelled_shapes(value: Any, text: bool) -> None:
    """However a labelled row is written, it is the same row."""
    assert ADVERTISING.labelled(value, text=text) == [((3.14, 34.6, 12.2), 8.4)]


@pytest.mark.parametrize(
    ("value", "errors"),
    [
        ([1, 2], {"": "has 2 values; expected 4 (TV, Radio, Newspaper, Sales)"}),
        ([1, 2, 3, "abc"], {"/3": "'abc' is not a float"}),
        ([[1, 2, 3, 4], [1, 2, 3, None]], {"/1/3": "must not be null"}),
        ({"TV": 1, "Radio": 2, "Newspaper": 3}, {"/Sales": "is required"}),
        ({"TV": 1, "Sales": 3}, {"/Radio": "is required", "/Newspaper": "is required"}),
        ([1, 2, 3, math.nan], {"/3": "NaN is not allowed"}),
        ([], {"": "no rows were sent"}),
    ],
)
def test_refused_labelled_rows(value: Any, errors: dict[str, str]) -> None:
    """A labelled row needs every column, and a bad one is refused with its pointer."""
    assert refusal(lambda: ADVERTISING.labelled(value)) == errors


def test_target_in_the_middle() -> None:
    """A target that is not the last column is taken out of a list row where it stands."""
    output = Output(name="y", kind="number")
    schema = Schema(fields=ADVERTISING.fields[:2], output=output, columns=("TV", "y", "Radio"))
    assert schema.labelled([1, 2, 3]) == [((1.0, 3.0), 2.0)]
    assert schema.labelled({"y": 2, "TV": 1, "Radio": 3}) == [((1.0, 3.0), 2.0)]
    assert refusal(lambda: schema.labelled([1, "abc", 3])) == {"/1": "'abc' is not a float"}


def test_labels() -> None:
    """A label is a finite number, or a class in the type of the known ones, new ones included."""
    assert ADVERTISING.label(5) == 5.0
    assert PERSON.label(">50K") == ">50K"
    assert PERSON.label("unheard of") == "unheard of"
    coded = Schema(output=Output(name="y", kind="category", categories=(0, 1)))
    assert coded.label("1", text=True) == 1
    assert coded.label(1.0) == 1
    assert coded.label(7) == 7
    assert refusal(lambda: coded.label("1")) == {"/value": "'1' is text; a number is needed"}
    assert refusal(lambda: PERSON.label(3, pointer="/0/value")) == {"/0/value": "3 is not text"}
    assert refusal(lambda: ADVERTISING.label(None)) == {"/value": "must not be null"}
    assert refusal(lambda: ADVERTISING.label(math.nan)) == {"/value": "NaN is not allowed"}


def test_schema_without_target_cannot_learn() -> None:
    """Labelled rows are refused where nothing says which column is the label."""
    with pytest.raises(InvalidInput, match="no target"):
        single("number").labelled([[1]])


def test_unseen_categories_are_counted() -> None:
    """A category that training did not see is a good value, and counted."""
    rows, _ = PERSON.parse([ROW, {**ROW, "job": "pilot"}, {**ROW, "job": None}])
    assert rows[1][1] == "pilot"
    assert PERSON.unseen(rows) == {"job": 1}


def test_coded_categories() -> None:
    """The values of a category have the type of the known ones."""
    schema = single("category", categories=(1, 2))
    assert schema.row({"x": "7"}, text=True) == (7,)
    assert refusal(lambda: schema.row({"x": "seven"})) == {"/x": "'seven' is not an integer"}
    mixed = single("category", categories=(1, "a", True))
    assert mixed.row({"x": "1"}, text=True) == (1,)
    assert mixed.row({"x": "zzz"}, text=True) == ("zzz",)


def test_open_schema() -> None:
    """Without declared fields any object is a row."""
    schema = Schema(open=True)
    assert read(schema, {"a": [1, 2]}) == ([({"a": [1, 2]},)], False)
    assert read(schema, [{"a": 1}, {}]) == ([({"a": 1},), ({},)], True)
    assert read(schema, {"inputs": [{"a": 1}]}) == ([({"a": 1},)], True)
    assert schema.decoder() is None
    assert schema.numeric is False
    assert refusal(lambda: schema.parse([[1]])) == {"/0": "an array is not a row; send an object"}
    assert refusal(lambda: schema.parse({"a": math.nan})) == {"": "NaN is not allowed"}


def test_open_schema_learns() -> None:
    """An open schema with an output takes the label out of the object."""
    schema = Schema(open=True, output=Output(name="y", kind="number"))
    labelled: Any = schema.labelled({"a": 1, "y": 2})
    assert labelled == [(({"a": 1},), 2.0)]
    assert refusal(lambda: schema.labelled([{"a": 1}])) == {"/0/y": "is required"}


def test_columns_must_be_the_fields() -> None:
    """A schema whose columns are not its fields in order can't be made."""
    with pytest.raises(InvalidInput, match="not the fields"):
        Schema(fields=ADVERTISING.fields, output=ADVERTISING.output, columns=("Sales", "TV"))


def test_round_trip() -> None:
    """A schema survives being stored as plain data, copied and pickled, with its caches warm."""
    for schema in (ADVERTISING, PERSON, Schema(open=True), declare(House)):
        schema.decoder()
        schema.parse({"TV": 1}) if schema is ADVERTISING else None
        plain = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(schema)))
        assert msgspec.convert(plain, Schema) == schema
        assert pickle.loads(pickle.dumps(schema)) == schema
        assert copy.copy(schema) == schema
    with pytest.raises(AttributeError):
        ADVERTISING.open = True  # type: ignore[misc]


def test_decoder() -> None:
    """The quick decoder gives one row or many, or raises for whatever needs a closer look."""
    decode = PERSON.decoder()
    assert decode is not None
    body, row = b'{"note": "n", "age": 3, "member": true}', (3, None, True, "n")
    assert decode(body) == ([row], False)
    assert decode(b"[%b, %b]" % (body, body)) == ([row, row], True)
    for body in (
        b'{"note": 1}',
        b'[{"note": "n"}, 1]',
        b'{"inputs": []}',
        b"[]",
        b"nonsense",
        b'{"note": "\xff"}',
        b"[" * 10_000,
    ):
        with pytest.raises(msgspec.DecodeError):
            decode(body)


def test_decoder_enforces_declarations() -> None:
    """Declared ranges and choices hold on the quick path too."""
    decode = declare(Room).decoder()
    assert decode is not None
    assert decode(b'{"size": 20}') == ([(20.0, "attic")], False)
    with pytest.raises(msgspec.DecodeError, match="too large"):
        decode(b'[{"size": 20}, {"size": 100}]')
    with pytest.raises(msgspec.DecodeError, match="not one of"):
        decode(b'{"size": 1, "kind": "stable"}')


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "é b", "class", ""])
def test_any_column_name(name: str) -> None:
    """Every text is a good field name, on the quick path or off it."""
    schema = Schema(fields=(Field(name=name, kind="number"),))
    assert schema.row({name: 1}) == (1.0,)
    decode = schema.decoder()
    if decode is not None:
        assert decode(msgspec.json.encode({name: 1})) == ([(1.0,)], False)


def test_frame() -> None:
    """A frame has the model's columns with their own types."""
    rows = [PERSON.row(ROW), PERSON.row({**ROW, "job": None})]
    frame = quick_frame(PERSON, rows)
    assert [str(kind) for kind in frame.dtypes] == ["int64", "object", "bool", "object"]
    assert frame["job"].tolist() == ["cook", None]
    assert list(quick_frame(ADVERTISING, [(1.0, None, None)])) == ["TV"]
    assert quick_frame(ADVERTISING, []).shape == (0, 1)
    nulls = quick_frame(single("integer", nullable=True), [(1,), (None,)])
    assert str(nulls["x"].dtype) == "float64" and math.isnan(nulls["x"][1])


def test_array() -> None:
    """A numeric schema's rows become float64 with null as NaN."""
    assert ADVERTISING.numeric and not PERSON.numeric
    array = quick_array(ADVERTISING, [(1.0, None, None), (2.0, 3.0, None)])
    assert array.dtype == np.float64 and array.tolist() == [[1.0], [2.0]]
    flags = Schema(fields=(Field(name="a", kind="boolean"), Field(name="b", kind="number")))
    assert quick_array(flags, [(True, 2.0)]).tolist() == [[1.0, 2.0]]
    assert np.isnan(quick_array(single("number", nullable=True), [(None,)])).all()
    assert quick_array(ADVERTISING, []).shape == (0, 1)


def test_json_schema_agrees() -> None:
    """The JSON Schema is valid and judges examples as the schema does."""
    document = ADVERTISING.json_schema()
    jsonschema_rs.meta.validate(document)
    judge = jsonschema_rs.validator_for(document)
    assert document["examples"] and judge.is_valid(document["examples"][0])
    for value in ({"TV": 1}, {"TV": "1"}, {"TV": 1, "Sales": 1}, {"Radio": 1}, {"TV": None}):
        try:
            ADVERTISING.row(value)
            fits = True
        except InvalidInput:
            fits = False
        assert judge.is_valid(value) is fits
    labelled = ADVERTISING.row_json_schema(labelled=True)
    assert labelled["required"] == ["TV", "Radio", "Newspaper", "Sales"]


def frame_of_everything() -> pd.DataFrame:
    """Seventy rows with a column of every kind."""
    n = 70
    return pd.DataFrame(
        {
            "real": np.linspace(0.5, 7.0, n),
            "whole": np.arange(n),
            "flag": [True, False] * 35,
            "maybe": [True, None] * 35,
            "color": ["red", "blue"] * 35,
            "name": [f"person {i}" for i in range(n)],
            "coded": pd.Categorical([1, 2] * 35),
            "day": pd.date_range("2024-01-01", periods=n),
            "gap": [1.0, None] * 35,
            "nested": [[1], [2]] * 35,
            "void": pd.Series([None] * n, dtype=object),
        }
    )


def test_inferred_fields() -> None:
    """The kind, categories, range, nulls and example of each column are read off the frame."""
    schema = Schema.infer(frame_of_everything())
    fields = {field.name: field for field in schema.fields}
    assert {name: field.kind for name, field in fields.items()} == {
        "real": "number",
        "whole": "number",
        "flag": "boolean",
        "maybe": "boolean",
        "color": "category",
        "name": "text",
        "coded": "category",
        "day": "text",
        "gap": "number",
        "nested": "any",
        "void": "any",
    }
    assert [name for name, field in fields.items() if field.nullable] == ["maybe", "gap", "void"]
    assert fields["color"].categories == ("blue", "red")
    assert fields["coded"].categories == (1, 2)
    assert (fields["real"].minimum, fields["real"].maximum) == (0.5, 7.0)
    assert fields["day"].example == "2024-01-01T00:00:00"
    assert fields["whole"].description == "whole numbers in training"
    plain = msgspec.json.decode(msgspec.json.encode(schema))
    assert msgspec.convert(plain, Schema) == schema


def test_inferred_ranges_are_not_enforced() -> None:
    """What training saw does not limit what is asked, and a whole column takes 5.5."""
    schema = Schema.infer(pd.DataFrame({"dose": [0, 5, 10]}))
    assert schema.row({"dose": 5.5}) == (5.5,)
    assert schema.row({"dose": 1000}) == (1000.0,)


@pytest.mark.parametrize(
    ("target", "task", "kind", "categories"),
    [
        ("real", None, "number", None),
        ("whole", None, "number", None),
        ("flag", None, "category", (False, True)),
        ("color", None, "category", ("blue", "red")),
        ("coded", None, "category", (1, 2)),
        ("whole", "classification", "category", tuple(range(70))),
        ("gap", "classification", "category", (1.0,)),
    ],
)
def test_inferred_output(target: str, task: str | None, kind: str, categories: Any) -> None:
    """The output is a number, or a category with its classes in order."""
    schema = Schema.infer(frame_of_everything(), target, task=task)
    assert schema.output == Output(name=target, kind=kind, categories=categories)  # type: ignore[arg-type]
    assert target in schema.columns and target not in [field.name for field in schema.fields]


def test_infer_marks_used_fields() -> None:
    """Only the named columns are asked for."""
    schema = Schema.infer(frame_of_everything(), "real", used=["flag"])
    assert [field.name for field in schema.fields if field.used] == ["flag"]


def test_infer_refuses_unknown_columns() -> None:
    """A target or a used column that is not there is named, and so is a doubled column."""
    frame = pd.DataFrame({"a": [1], "b": [2]})
    with pytest.raises(InvalidInput, match=r"no column c; the columns are a, b"):
        Schema.infer(frame, "c")
    with pytest.raises(InvalidInput, match="no column d"):
        Schema.infer(frame, used=["d"])
    with pytest.raises(InvalidInput, match="twice"):
        Schema.infer(pd.concat([frame, frame], axis=1))


def test_infer_many_categories_is_text() -> None:
    """Past the limit of categories a column is text."""
    few = pd.DataFrame({"x": [f"c{i % 50}" for i in range(200)]})
    many = pd.DataFrame({"x": [f"c{i % 51}" for i in range(200)]})
    assert Schema.infer(few).fields[0].kind == "category"
    assert Schema.infer(many).fields[0].kind == "text"


def test_infer_advertising(shared_data: Path) -> None:
    """The Advertising data give numbers in file order."""
    frame = pd.read_csv(shared_data / "Advertising.csv", index_col=0)
    schema = Schema.infer(frame, "Sales", used=["TV"])
    assert schema.columns == ("TV", "Radio", "Newspaper", "Sales")
    assert schema.parse({"TV": [50]}) == ([(50.0, None, None)], True)
    labelled = schema.labelled(frame)
    assert len(labelled) == 200 and labelled[0] == ((230.1, 37.8, 69.2), 22.1)


class Color(enum.Enum):
    """Two colours."""

    RED = "red"
    BLUE = "blue"


class House(msgspec.Struct):
    """A house with every kind of declaration."""

    rooms: Annotated[int, msgspec.Meta(ge=1, le=20, description="how many")]
    kind: Literal["flat", "villa"]
    price: Annotated[float, msgspec.Meta(gt=0)] | None = None
    color: Color = Color.RED
    floor: int | float = 1
    extra: Any = None
    name: str = ""


class Room(msgspec.Struct):
    """A room whose declarations the quick decoder can carry."""

    size: Annotated[float, msgspec.Meta(le=50)]
    kind: Literal["attic", "cellar"] = "attic"


@dataclass
class Flower:
    """Two numbers."""

    length: float
    width: float = 1.5


class Point(NamedTuple):
    """A point in the plane."""

    x: float
    y: float = 0.0


class Loose(TypedDict):
    """A mapping with a field that may be left out."""

    x: int
    y: NotRequired[str]


class Duck:
    """What a pydantic model looks like from outside."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """The schema as pydantic writes it."""
        return {
            "title": "Duck",
            "type": "object",
            "properties": {
                "x": {"exclusiveMinimum": 0, "title": "X", "type": "integer"},
                "y": {"anyOf": [{"type": "number", "maximum": 3}, {"type": "null"}]},
                "c": {"allOf": [{"$ref": "#/$defs/C"}], "default": "a", "description": "one"},
                "k": {"const": "only"},
            },
            "required": ["x", "k"],
            "$defs": {"C": {"enum": ["a", "b"], "type": "string"}},
        }


def area(length: float, width: float = 2.0) -> float:
    """Length times width."""
    return length * width


def whole(row: dict[str, Any]) -> Any:
    """Takes a whole row."""
    return row


def of_flower(flower: Flower) -> Literal["big", "small"]:
    """Takes a declared row."""
    return "big" if flower.length > 1 else "small"


def test_declared_struct() -> None:
    """Types, ranges, choices, defaults and descriptions of a Struct are carried over."""
    schema = declare(House, output=float)
    fields = {field.name: field for field in schema.fields}
    assert [field.kind for field in schema.fields] == [
        "integer",
        "category",
        "number",
        "category",
        "number",
        "any",
        "text",
    ]
    assert fields["rooms"].description == "how many"
    assert fields["price"].nullable and fields["price"].optional
    assert fields["color"].categories == ("blue", "red")
    assert schema.output == Output(name="prediction", kind="number")
    assert schema.row({"rooms": 3, "kind": "flat"}) == (3, "flat", None, "red", 1.0, None, "")
    assert refusal(lambda: schema.row({"rooms": 0, "kind": "tent", "price": 0})) == {
        "/rooms": "0 is too small; it must be at least 1",
        "/kind": "'tent' is not one of 'flat', 'villa'",
        "/price": "0 is too small; it must be at least 5e-324",
    }


@pytest.mark.parametrize("kind", [Flower, Point, Loose, area, of_flower])
def test_declared_by_other_types(kind: Any) -> None:
    """Every way of declaring two fields, the second of them optional, is understood."""
    schema = declare(kind)
    first, second = schema.fields
    assert schema.row({first.name: 3}) == (3, second.default)
    assert set(refusal(lambda: schema.row({"z": 1}))) == {f"/{first.name}", "/z"}


def test_declared_json_schema() -> None:
    """A JSON Schema is read with its references, alternatives, defaults and excluded edges."""
    schema = Schema.declare(Duck)
    assert schema == Schema.declare(Duck.model_json_schema())
    assert schema.row({"x": 1, "k": "only"}) == (1, None, "a", "only")
    assert set(refusal(lambda: schema.row({"x": 0, "y": 4, "c": "z", "k": "?"}))) == {
        "/x",
        "/y",
        "/c",
        "/k",
    }
    assert refusal(lambda: schema.row({"y": None, "k": None})) == {
        "/x": "is required",
        "/k": "must not be null",
    }
    jsonschema_rs.meta.validate(schema.json_schema())


def test_declared_functions() -> None:
    """A function's parameters are the fields and its answer the output, unless it takes a row."""
    assert declare(area).output == Output(name="prediction", kind="number")
    assert declare(whole).open and declare(whole).output is None
    answer = declare(of_flower).output
    assert answer is not None and answer.categories == ("big", "small")


def test_declared_outputs() -> None:
    """An output is a type, a schema with one property, a record, or the name of a field."""
    one = {"type": "object", "properties": {"species": {"enum": ["a", "b"]}}}
    assert declare(Flower, one).output == Output(
        name="species", kind="category", categories=("a", "b")
    )
    given = Output(name="y", kind="text")
    assert declare(Flower, given).output is given
    named = declare(Flower, "width")
    assert named.columns == ("length", "width") and len(named.fields) == 1
    assert named.labelled([1, 2]) == [((1.0,), 2.0)]


@pytest.mark.parametrize("kind", [float, object(), int | None, {"$ref": "#"}, {"type": "array"}])
def test_refused_declarations(kind: Any) -> None:
    """What names no fields is not a declaration."""
    with pytest.raises(InvalidInput):
        declare(kind)


def test_import_is_light() -> None:
    """The schema and the codecs are usable without NumPy and pandas being loaded."""
    code = (
        "import sys, loopline.schema as s, loopline.codecs\n"
        "s.declare({'properties': {'x': {'type': 'number'}}}).parse({'x': 1})\n"
        "assert not {'numpy', 'pandas', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
