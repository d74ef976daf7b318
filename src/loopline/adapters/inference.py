"""The tensors of the Open Inference Protocol (V2), as HTTP and gRPC carry them alike.

A model takes one tensor for each field of its schema, or all fields as one where all are numbers,
and gives these outputs, with one entry for each row:

    prediction       the answers, of the datatype that the schema's output has
    probabilities    FP64, one column for each class, where the model gives them
    prediction_id    BYTES: what an outcome is told with later

A caller names predictions with an input tensor `prediction_id` (BYTES), or a single one with the
request's parameter of that name. The request's own `id` is only echoed: clients use one again and
again, and who asks for a prediction's id again gets its first answer again.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import NoneType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopline.asks import Answered
from loopline.errors import InvalidInput
from loopline.fields import (
    LARGEST,
    SMALLEST,
    Complaints,
    Field,
    Kind,
    Output,
    basis,
    checker,
    listing,
    shown,
)
from loopline.records import ModelRecord
from loopline.schema import Schema

PREDICTION, PROBABILITIES, ID = "prediction", "probabilities", "prediction_id"
MOST_DIMENSIONS = 32
LONGEST = 3600.0
"""Seconds that the parameter `timeout` can ask for."""

_WHOLES = {
    f"{sign}INT{8 * size}": f"<{kind}{size}"
    for sign, kind in (("", "i"), ("U", "u"))
    for size in (1, 2, 4, 8)
}
_FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2"}
_DTYPES = {"BOOL": "|b1", **_WHOLES, **_FLOATS}
_RANGES = {name: np.iinfo(dtype) for name, dtype in _WHOLES.items()}
DATATYPES = (*_DTYPES, "BYTES")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_WHOLES, "integer"),
    **dict.fromkeys(_FLOATS, "number"),
    "BOOL": "boolean",
    "BYTES": "text",
}
_TYPES: dict[str, set[type]] = {
    "boolean": {bool, NoneType},
    "integer": {int, NoneType},
    "number": {float, int, NoneType},
    "text": {str, bytes, NoneType},
}
_FITTING = {name: frozenset(_TYPES[kind]) for name, kind in _KINDS.items()}
_PLAIN = {name: _FITTING[name] - {bytes} for name in ("BOOL", "INT64", "FP32", "FP64", "BYTES")}
_CHECKS = {
    name: checker(Field(name="", kind=kind, nullable=True), False) for name, kind in _KINDS.items()
}
_NEEDED = {"name": (str, "text"), "datatype": (str, "text"), "shape": (list, "an array")}
_NOT_OFFERED = {
    "shared_memory_region": "shared memory is not offered; send the data with the request",
    "classification": "is not offered; ask for the output `probabilities`",
}

Parameters = Mapping[str, Any]


class Tensor(NamedTuple):
    """A named tensor: plain Python scalars in one list, row by row, None where one is missing.

    BYTES are texts, or bytes where they are not UTF-8, which no field takes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


def from_json(told: Any, pointer: str = "", raw: bytes | None = None) -> Tensor:
    """Read a tensor that JSON describes.

    Args:
        told: an object with `name`, `datatype`, `shape`, and `data` as a flat or a nested list.
        pointer: where it stands in the caller's document, for instance `/inputs/0`.
        raw: its bytes, where they came instead of `data`.

    Raises:
        InvalidInput: it is not one.
    """
    needed = _NEEDED if raw is not None else {**_NEEDED, "data": (list, "an array")}
    for key, (kind, noun) in needed.items():
        if type(told) is not dict or type(told.get(key)) is not kind:
            raise InvalidInput.at(f"an input has a {key}, which is {noun}", f"{pointer}/{key}")
    name, datatype, shape = told["name"], told["datatype"], told["shape"]
    if raw is not None:
        return from_raw(name, datatype, shape, raw, pointer)
    data = told["data"]
    if list in map(type, data):
        _count(name, shape, pointer)
        data = _flat(name, shape, data, pointer)
    return from_values(name, datatype, shape, data, pointer)


def from_values(
    name: str, datatype: str, shape: Sequence[int], values: Sequence[Any], pointer: str = ""
) -> Tensor:
    """Make a tensor of its values in row-major order.

    Raises:
        InvalidInput: the shape does not fit their number, or the datatype one of them.
    """
    count = _count(name, shape, pointer)
    if count != len(values):
        told = f"{len(values)} values where the shape {_say(shape)} needs {count}"
        raise _wrong(name, told, pointer, "data")
    if datatype not in _KINDS:
        raise _unknown(name, datatype, pointer)
    if datatype in _RANGES or not _FITTING[datatype].issuperset(map(type, values)):
        values = _converted(name, datatype, values, pointer)
    return Tensor(name, datatype, tuple(shape), list(values))


def from_raw(
    name: str, datatype: str, shape: Sequence[int], raw: bytes, pointer: str = ""
) -> Tensor:
    """Read a tensor's bytes: little-endian, row-major, each of BYTES behind its length.

    Raises:
        InvalidInput: the bytes are not as many as the shape and the datatype say.
    """
    count = _count(name, shape, pointer)
    if datatype == "BYTES":
        return Tensor(name, datatype, tuple(shape), texts(_pieces(name, count, raw, pointer)))
    if datatype not in _DTYPES:
        raise _unknown(name, datatype, pointer)
    dtype = np.dtype("u1" if datatype == "BOOL" else _DTYPES[datatype])
    if len(raw) != count * dtype.itemsize:
        told = f"{len(raw)} bytes where {datatype} and the shape {_say(shape)} need "
        raise _wrong(name, f"{told}{count * dtype.itemsize}", pointer, "data")
    array = np.frombuffer(raw, dtype)
    if datatype == "BOOL":
        array = array != 0
    elif datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return Tensor(name, datatype, tuple(shape), array.tolist())


def to_raw(tensor: Tensor) -> bytes:
    """A tensor's bytes, as `from_raw` reads them; what is missing is NaN, or empty."""
    values = tensor.data
    if tensor.datatype == "BYTES":
        encoded = [v if type(v) is bytes else (v or "").encode() for v in values]
        return b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    if tensor.datatype == "BF16":
        return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(values, _DTYPES[tensor.datatype]).tobytes()


def to_json(tensor: Tensor) -> dict[str, Any]:
    """A tensor as an object; its `data` is flat."""
    name, datatype, shape, data = tensor
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def texts(pieces: Iterable[bytes]) -> list[Any]:
    """The elements of BYTES as texts; what is no text stays as it is, for the schema to refuse."""
    found: list[Any] = []
    for piece in pieces:
        try:
            found.append(piece.decode())
        except UnicodeDecodeError:
            found.append(piece)
    return found


def _count(name: str, shape: Sequence[int], pointer: str) -> int:
    """How many values a shape holds."""
    right = len(shape) <= MOST_DIMENSIONS and all(type(size) is int for size in shape)
    if not right or (shape and (shape[0] < 0 or min(shape[1:], default=1) < 1)):
        told = "its shape is the number of rows, and then sizes of at least 1, "
        raise _wrong(name, f"{told}{MOST_DIMENSIONS} numbers at most", pointer, "shape")
    return math.prod(shape)


def _flat(name: str, shape: Sequence[int], data: list[Any], pointer: str) -> list[Any]:
    """Nested lists as one, after a look whether they nest as the shape says."""
    right, level = shape[:1] == [len(data)], data
    for size in shape[1:]:
        right = right and all(type(each) is list and len(each) == size for each in level)
        level = [value for each in level for value in each] if right else []
    if not right:
        raise _wrong(name, f"the lists do not nest as the shape {_say(shape)}", pointer, "data")
    return level


def _converted(name: str, datatype: str, values: Sequence[Any], pointer: str) -> list[Any]:
    """The values one by one; what does not fit the datatype is told in the schema's own words."""
    complaints, check, limits = Complaints(), _CHECKS[datatype], _RANGES.get(datatype)
    found = []
    for index, value in enumerate(values):
        try:
            if type(value) is not int or limits is None:
                value = value if type(value) is bytes else check(value)
            if type(value) is int and limits and not limits.min <= value <= limits.max:
                raise ValueError(f"{shown(value)} is outside the range of {datatype}")
            found.append(value)
        except ValueError as error:
            complaints.add(f"{pointer}/data/{index}", f"input {name!r}: {error}")
    complaints.settle()
    return found


def _pieces(name: str, count: int, raw: bytes, pointer: str) -> list[bytes]:
    pieces: list[bytes] = []
    at = 0
    while at + 4 <= len(raw) and len(pieces) < count:
        start = at + 4
        at = start + struct.unpack_from("<I", raw, at)[0]
        pieces.append(raw[start:at])
    if at != len(raw) or len(pieces) != count:
        told = f"its bytes are not {count} elements, each behind its length"
        raise _wrong(name, told, pointer, "data")
    return pieces


def _wrong(name: str, told: str, pointer: str, key: str) -> InvalidInput:
    return InvalidInput.at(f"input {name!r}: {told}", f"{pointer}/{key}")


def _unknown(name: str, datatype: str, pointer: str) -> InvalidInput:
    told = f"{shown(datatype)} is not a datatype; there are {listing(DATATYPES)}"
    return _wrong(name, told, pointer, "datatype")


def _say(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(shown, shape))}]"


def metadata(
    record: ModelRecord, schema: Schema, classes: Sequence[Any] | None = None
) -> dict[str, Any]:
    """What a model takes and gives: `inputs` and `outputs` as name, datatype and shape.

    Args:
        classes: in the order of the probabilities, where the model has a version.

    Returns:
        Beside them `properties`: texts by name, the classes as a JSON array.
    """

    def tensor(name: str, datatype: str, *more: int) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": [-1, *more]}

    outputs = [tensor(PREDICTION, _answers(schema.output)), tensor(ID, "BYTES")]
    if "predict_proba" in record.capabilities:
        outputs.insert(1, tensor(PROBABILITIES, "FP64", len(classes) if classes else -1))
    told = {"classes": msgspec.json.encode(classes).decode()} if classes else {}
    return {
        "inputs": [tensor(f.name, _datatype(f.kind, f.categories)) for f in schema.fields],
        "outputs": outputs,
        "properties": {"task": record.task, **told},
    }


def _datatype(kind: Kind, categories: tuple[Any, ...] | None) -> str:
    bases = {"boolean": "BOOL", "integer": "INT64", "number": "FP64"}
    return bases.get(basis(kind, categories), "BYTES")


@lru_cache
def _answers(output: Output | None) -> str:
    return _datatype(output.kind, output.categories) if output else "BYTES"


def plain_row(schema: Schema, inputs: Any) -> Any:
    """What `rows` would make of one good row in JSON, the quick way; None for a closer look."""
    try:
        if len(inputs) == 1 and inputs[0]["name"] not in schema.columns:
            return _plain_matrix(schema, **inputs[0])
        row = {}
        for each in inputs:
            name, (value,) = each["name"], each["data"]
            if type(value) not in _PLAIN[each["datatype"]] or name not in schema.columns:
                return None
            if len(each) != 4 or (each["shape"] != [1] and each["shape"] != [1, 1]):
                return None
            row[name] = value
    except (KeyError, TypeError, ValueError):
        return None
    return row if row and len(row) == len(inputs) else None


def _plain_matrix(schema: Schema, *, name: Any, datatype: str, shape: Any, data: Any) -> Any:
    values = data[0] if len(data) == 1 and type(data[0]) is list else data
    good = _PLAIN[datatype].issuperset(map(type, values)) and shape == [1, len(values)]
    known = type(name) is str and name != ID
    return [values] if good and known and schema.numeric and values else None


def rows(
    schema: Schema, tensors: Sequence[Tensor], parameters: Parameters
) -> tuple[Any, Sequence[Any] | None]:
    """What a request asks: the `value` and the `ids` of an `Ask`.

    Raises:
        InvalidInput: a tensor is there twice, or has other rows than the first. Whether they are
            the model's fields is for its schema to say.
    """
    names = {field.name for field in schema.fields}
    count = _rows(tensors)
    given = {tensor.name: tensor for tensor in tensors}
    ids: Sequence[Any] | None = [parameters[ID]] if ID in parameters else None
    if ID in given and ID not in names:
        ids = given.pop(ID).data
    if len(given) == 1 and schema.numeric and not names & given.keys():
        (only,) = given.values()
        width = math.prod(only.shape[1:])
        if len(only.shape) == 2 or (width == 1 and len(names) == 1):
            return [only.data[at : at + width] for at in range(0, count * width, width)], ids
    flat = all(len(tensor.data) == count for tensor in given.values())
    columns = {name: _nested(tensor) for name, tensor in given.items()}
    if flat and count == 1:
        return {name: values[0] for name, values in columns.items()}, ids
    if flat and columns.keys() <= names and all(field.kind != "any" for field in schema.fields):
        return columns, ids
    return [
        dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)
    ], ids


def _rows(tensors: Sequence[Tensor]) -> int:
    """How many rows all tensors have."""
    complaints, count = Complaints(), None
    for index, (name, _, shape, _) in enumerate(tensors):
        size = shape[0] if shape else 1
        count = size if count is None else count
        if size != count:
            told = f"input {name!r} has {size} rows where {tensors[0].name!r} has {count}"
            complaints.add(f"/inputs/{index}/shape", told)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        complaints.add("/inputs", "two inputs have the same name")
    complaints.settle()
    return 1 if count is None else count


def _nested(tensor: Tensor) -> list[Any]:
    """A tensor's rows: scalars, or lists as the shape says."""
    values = tensor.data
    if math.prod(tensor.shape[1:]) > 1:
        for size in reversed(tensor.shape[1:]):
            values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def seconds(parameters: Parameters) -> float | None:
    """The deadline that a request's parameter `timeout` sets, which is in microseconds."""
    given = parameters.get("timeout") or 0
    if type(given) is not int or given < 0:
        raise InvalidInput.at("a timeout is a whole number of microseconds", "/parameters/timeout")
    return min(given / 1e6, LONGEST) or None


def check_parameters(parameters: Parameters, pointer: str) -> None:
    """Refuse parameters of a tensor that ask for what would change the answer."""
    for name in _NOT_OFFERED.keys() & parameters.keys():
        raise InvalidInput.at(f"{name}: {_NOT_OFFERED[name]}", f"{pointer}/parameters/{name}")


def check_outputs(record: ModelRecord, wanted: Sequence[str]) -> None:
    """Refuse names that are not outputs of the model."""
    able = "predict_proba" in record.capabilities
    known = [PREDICTION, PROBABILITIES, ID] if able else [PREDICTION, ID]
    for index, name in enumerate(wanted):
        if name not in known:
            told = f"{shown(name)} is not an output of this model; there are {listing(known)}"
            raise InvalidInput.at(told, f"/outputs/{index}/name")


def tensors(answered: Answered, schema: Schema, wanted: Sequence[str] = ()) -> list[Tensor]:
    """The outputs of an answer.

    Args:
        wanted: their names, in order; all where there are none.
    """
    found, shape = answered.predictions, (len(answered.predictions),)
    datatype, outputs = _typed([each.output for each in found], _answers(schema.output))
    made = {PREDICTION: Tensor(PREDICTION, datatype, shape, outputs)}
    if answered.classes and (not wanted or PROBABILITIES in wanted):
        # An id that another version answered before keeps that answer; its classes may be others.
        version, none = answered.version, (None,) * len(answered.classes)
        known = [each.probabilities if each.version == version else None for each in found]
        if wanted or any(known):
            chances = [value for each in known for value in each or none]
            made[PROBABILITIES] = Tensor(PROBABILITIES, "FP64", (*shape, len(none)), chances)
    made[ID] = Tensor(ID, "BYTES", shape, [each.id for each in found])
    return [made[name] for name in wanted if name in made] if wanted else list(made.values())


def version_of(answered: Answered) -> str:
    """The version that answered; for ids answered before, the one that did so then."""
    versions = {prediction.version for prediction in answered.predictions}
    return str(answered.version if len(versions) > 1 else versions.pop())


def _typed(values: list[Any], declared: str) -> tuple[str, list[Any]]:
    """The datatype of answers: the declared one, or that which they turn out to have."""
    types = set(map(type, values))
    if int in types and not all(SMALLEST <= v <= LARGEST for v in values if type(v) is int):
        types = {object}
    for each in (declared, "BOOL", "INT64", "FP64"):
        if types <= _FITTING[each] and (NoneType not in types or each in ("FP64", "BYTES")):
            return each, values
    return "BYTES", [v if type(v) is str else msgspec.json.encode(v).decode() for v in values]
