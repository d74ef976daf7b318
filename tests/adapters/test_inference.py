from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.adapters import inference
from loopline.adapters.inference import (
    DATATYPES,
    Tensor,
    from_json,
    from_raw,
    from_values,
    plain_row,
    rows,
    tensors,
    to_json,
    to_raw,
)
from loopline.asks import Answered
from loopline.errors import InvalidInput
from loopline.fields import Field, Output
from loopline.records import ModelRecord, Prediction
from loopline.schema import Schema

NUMBERS = Schema(
    fields=(Field(name="a", kind="number"), Field(name="b", kind="integer")),
    output=Output(name="y", kind="number"),
)
MIXED = Schema(
    fields=(
        Field(name="age", kind="number"),
        Field(name="job", kind="category", categories=("clerk", "cook")),
        Field(name="member", kind="boolean"),
        Field(name="note", kind="text", nullable=True),
    ),
    output=Output(name="rich", kind="category", categories=("no", "yes")),
)
OPEN = Schema(open=True)
SIZES = {"BOOL": 1, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8}
WIDTHS = {name: SIZES.get(name) or int(name.lstrip("UINT")) // 8 for name in DATATYPES[:-1]}


def refusal(call: Any, *args: Any) -> tuple[str, list[str]]:
    """What a call complains of, and where."""
    with pytest.raises(InvalidInput) as caught:
        call(*args)
    return caught.value.detail, [each.pointer for each in caught.value.fields]


def told(data: Any, shape: Any = None, datatype: Any = "FP64", name: Any = "x") -> dict[str, Any]:
    """A tensor as JSON has it."""
    shape = [len(data)] if shape is None else shape
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def values(datatype: str) -> st.SearchStrategy[Any]:
    """Values that a datatype holds exactly."""
    if datatype == "BYTES":
        return st.text(max_size=8)
    if datatype == "BOOL":
        return st.booleans()
    if datatype in ("FP32", "FP64"):
        return st.floats(
            width=32 if datatype == "FP32" else 64, allow_nan=False, allow_infinity=False
        )
    if datatype in ("FP16", "BF16"):
        return st.integers(-256, 256).map(float)
    bits = int(datatype.lstrip("UINT"))
    signed = not datatype.startswith("U")
    return st.integers(-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1)


@st.composite
def filled(draw: st.DrawFn) -> Tensor:
    """A tensor of any datatype and shape."""
    datatype = draw(st.sampled_from(DATATYPES))
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    count = math.prod(shape)
    data = draw(st.lists(values(datatype), min_size=count, max_size=count))
    return Tensor("x", datatype, shape, data)


def nest(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The same values in nested lists."""
    for size in reversed(shape[1:]):
        data = [data[at : at + size] for at in range(0, len(data), size)]
    return data


@given(tensor=filled())
def test_a_tensor_comes_back_as_it_went(tensor: Tensor) -> None:
    """As bytes, and as JSON with flat or with nested data."""
    name, datatype, shape, data = tensor
    assert from_raw(name, datatype, shape, to_raw(tensor)) == tensor
    text = msgspec.json.decode(msgspec.json.encode(to_json(tensor)))
    assert from_json(text) == tensor
    assert from_json({**text, "data": nest(data, shape)}) == tensor


@pytest.mark.parametrize("datatype", [each for each in DATATYPES if each not in ("BYTES", "BF16")])
def test_bytes_are_those_of_numpy(datatype: str) -> None:
    """Little-endian and row-major, in the type that NumPy has for it."""
    kind = datatype.lower().replace("fp", "float")
    array = np.array([[0, 1, 1], [1, 0, 1]], kind)
    tensor = from_raw("x", datatype, array.shape, array.tobytes())
    assert tensor.data == array.flatten().tolist()
    assert to_raw(tensor) == array.tobytes()


def test_bf16_is_the_upper_half_of_a_float() -> None:
    """What a float loses there is gone."""
    raw = np.array([1.0, -2.5, 3.140625], "<f4").tobytes()
    upper = b"".join(raw[at + 2 : at + 4] for at in range(0, len(raw), 4))
    tensor = from_raw("x", "BF16", [3], upper)
    assert tensor.data == [1.0, -2.5, 3.140625]
    assert to_raw(tensor) == upper


def test_bytes_that_are_no_text_are_for_the_schema() -> None:
    """Which says whose they are."""
    tensor = from_raw("job", "BYTES", [1], b"\x02\x00\x00\x00\xff\xfe")
    assert tensor.data == [b"\xff\xfe"]
    others = [
        from_values(*each)
        for each in (("age", "FP64", [1], [1.0]), ("member", "BOOL", [1], [True]))
    ]
    value, _ = rows(MIXED, [tensor, *others], {})
    assert refusal(MIXED.parse, value)[1] == ["/job"]


def test_what_is_missing_is_nan_or_empty_as_bytes() -> None:
    """JSON has null for it."""
    assert math.isnan(np.frombuffer(to_raw(Tensor("x", "FP64", (1,), [None])), "<f8")[0])
    assert to_raw(Tensor("x", "BYTES", (1,), [None])) == b"\x00" * 4


# What is not right.


@pytest.mark.parametrize(
    ("given", "pointer", "detail"),
    [
        (told([1, 2], [3]), "/data", "input 'x': 2 values where the shape [3] needs 3"),
        (told([1], [10**30, 10**30]), "/data", "1 values where the shape"),
        (told([], [-1]), "/shape", "the number of rows"),
        (told([1], [1, -1]), "/shape", "the number of rows"),
        (told([], [10**9, 0]), "/shape", "sizes of at least 1"),
        (told([1], [1.0]), "/shape", "the number of rows"),
        (told([1], [True]), "/shape", "the number of rows"),
        (told([1], ["1"]), "/shape", "the number of rows"),
        (told([1], [1] * 33), "/shape", "32 numbers at most"),
        (told([[1, 2], [3]], [2, 2]), "/data", "do not nest as the shape [2, 2]"),
        (told([[1, 2], 3], [2, 2]), "/data", "do not nest"),
        (told([[1], [2]], [2]), "/data/0", "an array is not a float"),
        (told([[[1]], [[2]]], [2, 1]), "/data/0", "an array is not a float"),
        (told([[1], [2]], [1, 2]), "/data", "do not nest"),
        (told([[1]], []), "/data", "do not nest"),
        (told(["abc"]), "/data/0", "input 'x': 'abc' is not a float"),
        (told(["5"]), "/data/0", "'5' is text; a number is needed"),
        (told([1.0, True]), "/data/1", "true is not a float"),
        (told([{}]), "/data/0", "an object is not a float"),
        (told([1], datatype="BOOL"), "/data/0", "1 is not a boolean"),
        (told([1.5], datatype="INT32"), "/data/0", "1.5 is not an integer"),
        (told([True], datatype="INT32"), "/data/0", "true is not an integer"),
        (told([300], datatype="INT8"), "/data/0", "300 is outside the range of INT8"),
        (told([-1], datatype="UINT64"), "/data/0", "-1 is outside the range of UINT64"),
        (told([2**64], datatype="UINT64"), "/data/0", "is outside the range of UINT64"),
        (told([5], datatype="BYTES"), "/data/0", "5 is not text"),
        (told([1], datatype="FP8"), "/datatype", "'FP8' is not a datatype; there are BOOL, INT8"),
        (told([1], datatype=None), "/datatype", "an input has a datatype, which is text"),
        (told([1], name=5), "/name", "an input has a name, which is text"),
        (told("abc", [1]), "/data", "an input has a data, which is an array"),
        (told([1], 1), "/shape", "an input has a shape, which is an array"),
        ("x", "/name", "an input has a name"),
        (None, "/name", "an input has a name"),
    ],
)
def test_what_is_wrong_with_json_is_told(given: Any, pointer: str, detail: str) -> None:
    """By input, and by its place in the document."""
    said, pointers = refusal(from_json, given, "/inputs/7")
    assert detail in said
    assert pointers[0] == f"/inputs/7{pointer}"


@pytest.mark.parametrize("shape", [[10**18], [10**9, 10**9, 10**9], [2**63 - 1, 2**63 - 1]])
@pytest.mark.parametrize("datatype", ["FP64", "BYTES", "BOOL"])
def test_a_huge_shape_takes_no_memory(shape: list[int], datatype: str) -> None:
    """It is compared with what came."""
    assert refusal(from_raw, "x", datatype, shape, b"abcd", "/inputs/0")[1] == ["/inputs/0/data"]
    assert refusal(from_values, "x", datatype, shape, [], "/inputs/0")[1] == ["/inputs/0/data"]


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        ([1], b""),
        ([1], b"\x01\x00\x00"),
        ([1], b"\x02\x00\x00\x00a"),
        ([1], b"\xff\xff\xff\xffa"),
        ([1], b"\x01\x00\x00\x00ab"),
        ([1], b"\x01\x00\x00\x00a" * 2),
        ([2], b"\x01\x00\x00\x00a"),
        ([0], b"\x00\x00\x00\x00"),
    ],
)
def test_bytes_have_to_be_as_long_as_they_say(shape: list[int], raw: bytes) -> None:
    """Neither too few nor too many."""
    detail, pointers = refusal(from_raw, "x", "BYTES", shape, raw, "/inputs/0")
    assert "each behind its length" in detail and pointers == ["/inputs/0/data"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    given_=st.fixed_dictionaries(
        {},
        optional={
            "name": ANYTHING | st.just("a"),
            "datatype": ANYTHING | st.sampled_from(DATATYPES),
            "shape": ANYTHING | st.lists(st.integers(-1, 4), max_size=3),
            "data": ANYTHING,
        },
    )
    | ANYTHING
)
def test_no_json_does_more_than_be_refused(given_: Any) -> None:
    """A tensor comes of it or an error that says where."""
    try:
        tensor = from_json(given_, "/inputs/0")
    except InvalidInput as error:
        assert error.fields and all(f.pointer.startswith("/inputs/0/") for f in error.fields)
    else:
        assert math.prod(tensor.shape) == len(tensor.data)


@given(
    datatype=st.sampled_from(DATATYPES) | st.text(max_size=4),
    shape=st.lists(st.integers(-2, 5) | st.integers(), max_size=4),
    raw=st.binary(max_size=60),
)
def test_no_bytes_do_more_than_be_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    """Whatever the shape and the datatype say of them."""
    try:
        tensor = from_raw("x", datatype, shape, raw, "/inputs/0")
    except InvalidInput as error:
        assert error.fields
    else:
        assert math.prod(shape) == len(tensor.data)
        if datatype != "BYTES":
            assert len(raw) == len(tensor.data) * WIDTHS[datatype]


# From tensors to rows.


def columns(count: int, shape: str = "flat") -> list[Tensor]:
    """Good tensors of the mixed schema."""
    size = [count] if shape == "flat" else [count, 1]
    return [
        from_values("age", "FP32", size, [30.0 + i for i in range(count)]),
        from_values("job", "BYTES", size, ["clerk"] * count),
        from_values("member", "BOOL", size, [i % 2 == 0 for i in range(count)]),
        from_values("note", "BYTES", size, [None] * count),
    ]


@pytest.mark.parametrize("shape", ["flat", "upright"])
@pytest.mark.parametrize("count", [1, 3])
def test_each_field_is_a_tensor(shape: str, count: int) -> None:
    """With or without a second dimension of one."""
    found, many = MIXED.parse(rows(MIXED, columns(count, shape), {})[0])
    assert found == [(30.0 + i, "clerk", i % 2 == 0, None) for i in range(count)]
    assert many == (count > 1)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["input-0", "predict", "inputs", ""])
def test_numbers_may_come_as_one_tensor(count: int, name: str) -> None:
    """Under any name that no field has."""
    tensor = from_values(name, "INT32", [count, 2], list(range(2 * count)))
    value, ids = rows(NUMBERS, [tensor], {})
    assert ids is None
    assert NUMBERS.parse(value)[0] == [(2.0 * i, 2 * i + 1) for i in range(count)]


def test_one_tensor_of_a_wrong_width_is_told() -> None:
    """With the fields that there are."""
    value, _ = rows(NUMBERS, [from_values("input-0", "FP64", [1, 3], [1.0, 2.0, 3.0])], {})
    assert "has 3 values; expected 2 (a, b)" in refusal(NUMBERS.parse, value)[0]


def test_a_model_of_one_field_takes_any_name() -> None:
    """One value for a row can stand in one dimension or in two."""
    schema = Schema(fields=(Field(name="TV", kind="number"),))
    for shape in ([3], [3, 1]):
        for name in ("TV", "predict", "inputs"):
            value, _ = rows(schema, [from_values(name, "FP64", shape, [1.0, 2.0, 3.0])], {})
            assert schema.parse(value)[0] == [(1.0,), (2.0,), (3.0,)]
    value, _ = rows(schema, [from_values("TV", "FP64", [1, 3], [1.0, 2.0, 3.0])], {})
    assert "an array is not a float" in refusal(schema.parse, value)[0]


def test_missing_and_strange_fields_are_named() -> None:
    """By the schema, all at once."""
    for count in (1, 2):
        strange = from_values("colour", "BYTES", [count], ["red"] * count)
        value, _ = rows(MIXED, [*columns(count)[1:], strange], {})
        detail = refusal(MIXED.parse, value)[0]
        assert "age: is required" in detail and "colour: is not a field of this model" in detail
    assert "age: is required" in refusal(MIXED.parse, rows(MIXED, [], {})[0])[0]


def test_no_rows_are_too_few() -> None:
    """Under the names of fields, or as one tensor."""
    for given_ in (columns(0), [from_values("input-0", "FP64", [0, 2], [])]):
        schema = MIXED if len(given_) > 1 else NUMBERS
        assert "no rows were sent" in refusal(schema.parse, rows(schema, given_, {})[0])[0]


def test_tensors_have_as_many_rows_as_each_other() -> None:
    """And a name of their own."""
    one, two = from_values("a", "FP64", [2], [1, 2]), from_values("b", "FP64", [3], [1, 2, 3])
    assert refusal(rows, NUMBERS, [one, two], {})[1] == ["/inputs/1/shape"]
    assert refusal(rows, NUMBERS, [one, one], {})[1] == ["/inputs"]


def test_an_open_model_takes_any_tensors() -> None:
    """Rows are objects, whose values may be lists."""
    deep = from_values("deep", "INT64", [2, 2, 2], list(range(8)))
    say = from_values("say", "BYTES", [2, 1], ["a", "b"])
    value, _ = rows(OPEN, [deep, say], {})
    assert value == [
        {"deep": [[0, 1], [2, 3]], "say": "a"},
        {"deep": [[4, 5], [6, 7]], "say": "b"},
    ]
    assert OPEN.parse(value)[0] == [(each,) for each in value]


def test_ids_come_as_a_tensor_or_as_a_parameter() -> None:
    """Unless a field has the name."""
    ids = from_values("prediction_id", "BYTES", [2, 1], ["x", "y"])
    assert rows(MIXED, [*columns(2), ids], {})[1] == ["x", "y"]
    assert rows(MIXED, columns(1), {"prediction_id": "z"})[1] == ["z"]
    assert rows(MIXED, columns(1), {})[1] is None
    field = Schema(fields=(Field(name="prediction_id", kind="text"),))
    value, found = rows(field, [ids], {})
    assert found is None and field.parse(value)[0] == [("x",), ("y",)]


CELLS = st.tuples(
    st.sampled_from(["a", "b", "c", "age", "job", "member", "note", "prediction_id"]),
    st.sampled_from(["FP64", "FP32", "INT64", "INT8", "BOOL", "BYTES", "FP8"]),
    st.sampled_from([[1], [1, 1], [1, 2], [2], [2, 1], [1, 4]]),
    st.lists(st.sampled_from([1.5, 2, True, "clerk", None]), max_size=4)
    | st.sampled_from([[[1, 2]], [[1.5]], [[1], [2]]]),
)


@settings(max_examples=500)
@given(schema=st.sampled_from([NUMBERS, MIXED, OPEN]), cells=st.lists(CELLS, max_size=5))
def test_the_quick_way_says_the_same(schema: Schema, cells: list[Any]) -> None:
    """Or nothing, where a closer look is needed."""
    inputs = [told(data, shape, kind, name) for name, kind, shape, data in cells]
    quick = plain_row(schema, inputs)
    if quick is not None:
        assert (quick, None) == rows(schema, [from_json(each) for each in inputs], {})


@pytest.mark.parametrize("shape", [[1], [1, 1]])
def test_the_quick_way_is_taken(shape: list[int]) -> None:
    """By the requests that most clients send."""
    row = {"age": 30.5, "job": "cook", "member": True, "note": None}
    kinds = ("FP32", "BYTES", "BOOL", "BYTES")
    inputs = [told([v], shape, k, n) for (n, v), k in zip(row.items(), kinds, strict=True)]
    assert plain_row(MIXED, inputs) == row
    assert plain_row(NUMBERS, [told([[1, 2.5]], [1, 2])]) == [[1, 2.5]]
    assert plain_row(NUMBERS, [told([1, 2.5], [1, 2])]) == [[1, 2.5]]


@given(inputs=ANYTHING | st.lists(st.dictionaries(st.sampled_from(["name", "data"]), ANYTHING)))
def test_the_quick_way_survives_anything(inputs: Any) -> None:
    """It leaves it to the long one."""
    assert plain_row(MIXED, inputs) is None


# From answers to tensors.


def answered(*outputs: Any, classes: Any = None, chances: Any = None) -> Answered:
    """An answer with these outputs."""
    predictions = [
        Prediction(id=f"p{i}", model="m", version=3, output=each, at=0.0, probabilities=chances)
        for i, each in enumerate(outputs)
    ]
    return Answered(
        model="m", version=3, predictions=tuple(predictions), many=True, classes=classes
    )


def test_an_answer_has_all_outputs() -> None:
    """Or those that were asked for, in that order."""
    said = answered("no", "yes", classes=("no", "yes"), chances=(0.75, 0.25))
    made = tensors(said, MIXED)
    assert made == [
        Tensor("prediction", "BYTES", (2,), ["no", "yes"]),
        Tensor("probabilities", "FP64", (2, 2), [0.75, 0.25, 0.75, 0.25]),
        Tensor("prediction_id", "BYTES", (2,), ["p0", "p1"]),
    ]
    assert tensors(said, MIXED, ["prediction_id", "prediction"]) == [made[2], made[0]]
    assert inference.version_of(said) == "3"


def test_an_answer_of_long_ago_has_no_probabilities() -> None:
    """Its row holds none, and the others have theirs."""
    classes = ("no", "yes")
    new = answered("no", classes=classes, chances=(0.75, 0.25)).predictions
    old = answered("yes", classes=classes, chances=(0.1, 0.2, 0.7)).predictions
    old = (msgspec.structs.replace(old[0], version=1),)
    said = Answered(model="m", version=3, predictions=new + old, many=True, classes=classes)
    assert tensors(said, MIXED)[1].data == [0.75, 0.25, None, None]
    assert inference.version_of(said) == "3"
    only = Answered(model="m", version=3, predictions=old, many=False, classes=classes)
    assert [each.name for each in tensors(only, MIXED)] == ["prediction", "prediction_id"]
    assert tensors(only, MIXED, ["probabilities"])[0].data == [None, None]
    assert inference.version_of(only) == "1"


@pytest.mark.parametrize(
    ("outputs", "datatype", "data"),
    [
        (["a", "b"], "BYTES", ["a", "b"]),
        ([True, False], "BOOL", [True, False]),
        ([1, 2], "INT64", [1, 2]),
        ([1, 2.5], "FP64", [1, 2.5]),
        ([None, 2.5], "FP64", [None, 2.5]),
        ([1, None], "FP64", [1, None]),
        ([1, True], "BYTES", ["1", "true"]),
        ([{"a": [1]}, "x"], "BYTES", ['{"a":[1]}', "x"]),
        ([2**70], "BYTES", [str(2**70)]),
        ([None], "BYTES", [None]),
    ],
)
def test_an_answer_of_any_type_has_a_datatype(outputs: list[Any], datatype: str, data: Any) -> None:
    """Where none is declared; what no tensor can hold is its JSON."""
    (made, _) = tensors(answered(*outputs), OPEN)
    assert (made.datatype, made.data) == (datatype, data)
    assert from_raw("x", made.datatype, made.shape, to_raw(made)).shape == made.shape


def test_metadata_names_the_fields() -> None:
    """With datatypes, classes and what the model can do."""
    plain = ModelRecord(name="m", schema={}, capabilities=("predict",))
    able = ModelRecord(name="m", schema={}, capabilities=("predict", "predict_proba"), task="x")
    found = inference.metadata(able, MIXED, ("no", "yes"))
    assert [(t["name"], t["datatype"], t["shape"]) for t in found["inputs"]] == [
        ("age", "FP64", [-1]),
        ("job", "BYTES", [-1]),
        ("member", "BOOL", [-1]),
        ("note", "BYTES", [-1]),
    ]
    assert [(t["name"], t["datatype"], t["shape"]) for t in found["outputs"]] == [
        ("prediction", "BYTES", [-1]),
        ("probabilities", "FP64", [-1, 2]),
        ("prediction_id", "BYTES", [-1]),
    ]
    assert found["properties"] == {"task": "x", "classes": '["no","yes"]'}
    found = inference.metadata(plain, NUMBERS)
    assert [t["datatype"] for t in found["inputs"]] == ["FP64", "INT64"]
    assert [t["name"] for t in found["outputs"]] == ["prediction", "prediction_id"]


def test_parameters_are_understood_or_refused() -> None:
    """Microseconds, an hour at most; and what we do not have is said."""
    assert inference.seconds({"timeout": 2_500_000}) == 2.5
    assert inference.seconds({"timeout": 10**30}) == 3600.0
    assert inference.seconds({}) is inference.seconds({"timeout": 0}) is None
    for wrong in (-1, 1.5, "5", True, [1]):
        assert refusal(inference.seconds, {"timeout": wrong})[1] == ["/parameters/timeout"]
    shared = {"shared_memory_region": "r"}
    assert "not offered" in refusal(inference.check_parameters, shared, "/inputs/0")[0]
    plain = ModelRecord(name="m", schema={}, capabilities=("predict",))
    for name in ("nope", "probabilities"):
        where = refusal(inference.check_outputs, plain, ["prediction", name])[1]
        assert where == ["/outputs/1/name"]
