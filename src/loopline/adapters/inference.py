"""The tensors of the Open Inference Protocol (V2), as HTTP and gRPC carry them alike.

A model takes one tensor for each field of its schema, or all fields as one where all are numbers,
and gives these outputs, with one entry (or row) for each row asked:

    prediction       the answers, of the datatype that the schema's output has
    probabilities    FP64, one column for each class, where the model gives them
    prediction_id    BYTES: what an outcome is told with later

A caller names predictions with an input tensor `prediction_id` (BYTES, one for each row), or a
single one with the request's parameter of that name. The request's own `id` is only echoed:
clients use one again and again, and a prediction's id gets its first answer again.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopline.asks import Answered
from loopline.errors import InvalidInput
from loopline.fields import (
    LARGEST,
    SMALLEST,
    Check,
    Complaints,
    Field,
    Kind,
    Output,
    basis,
    checker,
    escaped,
    listing,
    shown,
)
from loopline.records import ModelRecord
from loopline.schema import Schema

PREDICTION, PROBABILITIES, ID = "prediction", "probabilities", "prediction_id"
MOST_DIMENSIONS = 32

_FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2"}
_WHOLES = {
    f"{kind}INT{8 * size}": f"<{kind.lower() or 'i'}{size}"
    for kind in ("", "U")
    for size in (1, 2, 4, 8)
}
_DTYPES = {"BOOL": "|b1", **_WHOLES, **_FLOATS}
DATATYPES = (*_DTYPES, "BYTES")
_KINDS: dict[str, Kind] = {
    "BOOL": "boolean",
    "BYTES": "text",
    **dict.fromkeys(_WHOLES, "integer"),
    **dict.fromkeys(_FLOATS, "number"),
}
_RANGES = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in _WHOLES.items()
}
_TYPES: dict[str, frozenset[type]] = {
    "boolean": frozenset({bool, NoneType}),
    "integer": frozenset({int, NoneType}),
    "number": frozenset({float, int, NoneType}),
    "text": frozenset({str, bytes, NoneType}),
}
_FITTING = {name: _TYPES[kind] for name, kind in _KINDS.items()}
_CHECKS: dict[str, Check] = {
    name: checker(Field(name="", kind=kind, nullable=True), False) for name, kind in _KINDS.items()
}
_BASES = {"boolean": "BOOL", "integer": "INT64", "number": "FP64"}
_NOT_OFFERED = {
    "shared_memory_region": "shared memory is not offered; send the data with the request",
    "classification": "is not offered; ask for the output `probabilities`",
}

_MEMBERS = (
    ("name", str, "text"),
    ("datatype", str, "text"),
    ("shape", list, "an array"),
    ("data", list, "an array"),
)

Json = dict[str, Any]


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
    for key, kind, noun in _MEMBERS if raw is None else _MEMBERS[:3]:
        if type(told) is not dict or type(told.get(key)) is not kind:
            raise InvalidInput.at(f"an input has {key!r}, which is {noun}", f"{pointer}/{key}")
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
    if _count(name, shape, pointer) != len(values):
        told = f"input {name!r} has {len(values)} values where the shape {_say(shape)} needs "
        raise InvalidInput.at(f"{told}{math.prod(shape)}", f"{pointer}/data")
    fitting = _FITTING.get(datatype)
    if fitting is None:
        raise _unknown(name, datatype, pointer)
    if not fitting.issuperset(map(type, values)) or datatype in _RANGES:
        values = _converted(name, datatype, values, pointer)
    return Tensor(name, datatype, tuple(shape), values if type(values) is list else list(values))


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
    dtype = np.dtype(_DTYPES[datatype])
    if len(raw) != count * dtype.itemsize:
        told = f"input {name!r} has {len(raw)} bytes where {datatype} and the shape {_say(shape)} "
        raise InvalidInput.at(f"{told}need {count * dtype.itemsize}", f"{pointer}/data")
    array = np.frombuffer(raw, np.uint8 if datatype == "BOOL" else dtype)
    if datatype == "BOOL":
        array = array != 0
    elif datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return Tensor(name, datatype, tuple(shape), array.tolist())


def to_raw(tensor: Tensor) -> bytes:
    """A tensor's bytes, as `from_raw` reads them; what is missing is NaN, or empty."""
    name, values = tensor.datatype, tensor.data
    if name == "BYTES":
        encoded = [v if type(v) is bytes else (v or "").encode() for v in values]
        return b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    if name == "BF16":
        return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(values, _DTYPES[name]).tobytes()


def to_json(tensor: Tensor) -> Json:
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
        told = f"the shape of input {name!r} is not one: it is the number of rows, and then at "
        told += f"most {MOST_DIMENSIONS - 1} sizes of at least 1"
        raise InvalidInput.at(told, f"{pointer}/shape")
    return math.prod(shape)


def _flat(name: str, shape: Sequence[int], data: list[Any], pointer: str) -> list[Any]:
    """Nested lists as one, after a look whether they nest as the shape says."""
    right, level = len(data) == shape[0] if shape else False, data
    for size in shape[1:]:
        right = right and all(type(each) is list and len(each) == size for each in level)
        level = [value for each in level for value in each] if right else []
    if not right:
        told = f"input {name!r}: the lists do not nest as the shape {_say(shape)} says"
        raise InvalidInput.at(told, f"{pointer}/data")
    return level


def _converted(name: str, datatype: str, values: Sequence[Any], pointer: str) -> list[Any]:
    """The values one by one; what does not fit the datatype is told in the schema's own words."""
    complaints, check, found = Complaints(), _CHECKS[datatype], []
    low, high = _RANGES.get(datatype, (-math.inf, math.inf))
    for index, value in enumerate(values):
        try:
            if type(value) is not bytes:
                whole = datatype == "UINT64" and type(value) is int
                value = value if whole else check(value)
            if type(value) is int and not low <= value <= high:
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
        told = f"input {name!r}: its bytes are not {count} elements, each behind its length"
        raise InvalidInput.at(told, f"{pointer}/data")
    return pieces


def _unknown(name: str, datatype: str, pointer: str) -> InvalidInput:
    told = f"input {name!r}: {shown(datatype)} is not a datatype; there are {listing(DATATYPES)}"
    return InvalidInput.at(told, f"{pointer}/datatype")


def _say(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(shown, shape))}]"


def metadata(
    record: ModelRecord, schema: Schema, classes: Sequence[Any] | None = None
) -> dict[str, list[Json]]:
    """The tensors that a model takes and gives: {"inputs", "outputs"} of name, datatype, shape.

    Args:
        classes: in the order of the probabilities, where the model has a version.
    """
    inputs = [(f.name, _datatype(f.kind, f.categories), [-1]) for f in schema.fields]
    outputs = [(PREDICTION, _answers(schema.output), [-1])]
    if "predict_proba" in record.capabilities:
        outputs.append((PROBABILITIES, "FP64", [-1, len(classes) if classes else -1]))
    outputs.append((ID, "BYTES", [-1]))
    keys = ("name", "datatype", "shape")
    return {
        "inputs": [dict(zip(keys, each, strict=True)) for each in inputs],
        "outputs": [dict(zip(keys, each, strict=True)) for each in outputs],
    }


def _datatype(kind: Kind, categories: tuple[Any, ...] | None) -> str:
    return _BASES.get(basis(kind, categories), "BYTES")


def _answers(output: Output | None) -> str:
    return _datatype(output.kind, output.categories) if output else "BYTES"


def rows(
    schema: Schema, tensors: Sequence[Tensor], parameters: Mapping[str, Any] | None = None
) -> tuple[Any, Sequence[Any] | None]:
    """What a request asks: the `value` and the `ids` of an `Ask`.

    Raises:
        InvalidInput: a tensor is there twice, or has other rows than the first. Whether they are
            the model's fields is for its schema to say.
    """
    names = {field.name for field in schema.fields}
    count = _rows(tensors)
    given = {tensor.name: tensor for tensor in tensors}
    ids: Sequence[Any] | None = None
    if ID in given and ID not in names:
        ids = given.pop(ID).data
    elif parameters and ID in parameters:
        ids = [parameters[ID]]
    if len(given) == 1 and schema.numeric and not names & given.keys():
        (only,) = given.values()
        width = math.prod(only.shape[1:])
        if len(only.shape) == 2 or (width == 1 and len(names) == 1):
            return [only.data[at : at + width] for at in range(0, count * width, width)], ids
    if any(len(tensor.data) != count for tensor in given.values()):
        columns = {name: _nested(tensor) for name, tensor in given.items()}
    else:
        columns = {name: tensor.data for name, tensor in given.items()}
        if count == 1:
            return {name: values[0] for name, values in columns.items()}, ids
        if columns.keys() <= names and all(field.kind != "any" for field in schema.fields):
            return columns, ids
    return [
        dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)
    ], ids


def _rows(tensors: Sequence[Tensor]) -> int:
    """How many rows all tensors have."""
    complaints, count = Complaints(), 1
    for index, (name, _, shape, _) in enumerate(tensors):
        size = shape[0] if shape else 1
        count = size if index == 0 else count
        if size != count:
            told = f"input {name!r} has {size} rows where {tensors[0].name!r} has {count}"
            complaints.add(f"/inputs/{index}/shape", told)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        complaints.add("/inputs", "two inputs have the same name")
    complaints.settle()
    return count


def _nested(tensor: Tensor) -> list[Any]:
    """A tensor's rows: scalars, or lists as the shape says."""
    values = tensor.data
    if math.prod(tensor.shape[1:]) > 1:
        for size in reversed(tensor.shape[1:]):
            values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def seconds(parameters: Mapping[str, Any] | None) -> float | None:
    """The deadline that a request's parameter `timeout` sets, which is in microseconds."""
    given = parameters.get("timeout") if parameters else None
    if given is None:
        return None
    if type(given) is not int or given < 0:
        told = "the timeout is a whole number of microseconds"
        raise InvalidInput.at(told, "/parameters/timeout")
    return min(given / 1e6, 3600.0) or None


def check_parameters(parameters: Mapping[str, Any] | None, pointer: str) -> None:
    """Refuse parameters of a tensor that ask for what would change the answer."""
    for name in _NOT_OFFERED.keys() & (parameters or {}).keys():
        where = f"{pointer}/parameters/{escaped(name)}"
        raise InvalidInput.at(f"{name}: {_NOT_OFFERED[name]}", where)


def check_outputs(record: ModelRecord, wanted: Sequence[str]) -> None:
    """Refuse names that are not outputs of the model."""
    able = "predict_proba" in record.capabilities
    known = [PREDICTION, *([PROBABILITIES] if able else []), ID]
    for index, name in enumerate(wanted):
        if name not in known:
            told = f"{shown(name)} is not an output of this model; there are {listing(known)}"
            raise InvalidInput.at(told, f"/outputs/{index}/name")


def tensors(answered: Answered, schema: Schema, wanted: Sequence[str] = ()) -> list[Tensor]:
    """The outputs of an answer.

    Args:
        wanted: their names, in order; all where there are none.
    """
    found, classes = answered.predictions, answered.classes
    shape = (len(found),)
    datatype, outputs = _typed([each.output for each in found], _answers(schema.output))
    made = {PREDICTION: Tensor(PREDICTION, datatype, shape, outputs)}
    if classes and (PROBABILITIES in wanted or any(each.probabilities for each in found)):
        # An id that another version answered before keeps that answer, which has none.
        none, width = (None,) * len(classes), len(classes)
        known = [p.probabilities or none for p in found]
        chances = [value for each in known for value in (each if len(each) == width else none)]
        made[PROBABILITIES] = Tensor(PROBABILITIES, "FP64", (len(found), width), chances)
    made[ID] = Tensor(ID, "BYTES", shape, [each.id for each in found])
    return [made[name] for name in wanted if name in made] if wanted else list(made.values())


def version_of(answered: Answered) -> str:
    """The version that answered; for ids answered before, the one that did so then."""
    versions = {prediction.version for prediction in answered.predictions}
    return str(versions.pop() if len(versions) == 1 else answered.version)


def _typed(values: list[Any], declared: str) -> tuple[str, list[Any]]:
    """The datatype of answers: the declared one, or that which they turn out to have."""
    types = set(map(type, values))
    small = int not in types or all(
        SMALLEST <= value <= LARGEST for value in values if type(value) is int
    )
    for each in dict.fromkeys((declared, "BOOL", "INT64", "FP64")):
        whole = each not in ("FP64", "BYTES") and NoneType in types
        if types <= _FITTING[each] and small and not whole:
            return each, values
    return "BYTES", [v if type(v) is str else msgspec.json.encode(v).decode() for v in values]
