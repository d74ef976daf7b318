"""How the stores write the nested parts of records: JSON text, MessagePack, and private copies."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar

import msgspec

from loopline.errors import InvalidInput
from loopline.records import Record

R = TypeVar("R", bound=Record)

_PLAIN = (str, int, float, bool, type(None))


def to_builtins(value: Any) -> Any:
    """Rebuild a value from dicts, lists and scalars only.

    Raises:
        InvalidInput: something in it has no plain form.
    """
    try:
        return msgspec.to_builtins(value, enc_hook=_hook, str_keys=True)
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidInput(f"this cannot be kept in the store: {error}") from error


def to_text(value: Any) -> str:
    """Write a value as JSON text.

    Raises:
        InvalidInput: something in it has no plain form.
    """
    # msgspec writes NaN as null, which would make a version with an undefined metric unreadable.
    return json.dumps(to_builtins(value), ensure_ascii=False, separators=(",", ":"))


def from_text(text: str, shape: Any) -> Any:
    """Read back what `to_text` wrote, as a value of the type `shape`."""
    return msgspec.convert(json.loads(text), shape)


def pack(value: Any) -> bytes:
    """Write a value as MessagePack.

    Raises:
        InvalidInput: something in it has no plain form.
    """
    try:
        return msgspec.msgpack.encode(value, enc_hook=_hook)
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidInput(f"this cannot be kept in the store: {error}") from error


def unpack(data: bytes) -> Any:
    """Read back what `pack` wrote, as dicts, lists and scalars."""
    return msgspec.msgpack.decode(data)


def copied(record: R) -> R:
    """Copy a record so that nobody who holds the original can change the copy.

    Values of fields typed `Any`, and of mappings, come out in the plain form a file would give.
    """
    values = {
        name: value if type(value) in _PLAIN else _copy(value, loose)
        for name, loose in _fields(type(record))
        for value in (getattr(record, name),)
    }
    return type(record)(**values)


def _copy(value: Any, loose: bool) -> Any:
    if isinstance(value, Record):
        return copied(value)
    if isinstance(value, tuple) and not loose:
        return tuple(_copy(item, False) for item in value)
    if isinstance(value, dict) and not loose:
        return {str(key): _copy(item, True) for key, item in value.items()}
    if isinstance(value, str):
        return value
    return to_builtins(value)


@cache
def _fields(kind: type[Record]) -> tuple[tuple[str, bool], ...]:
    return tuple((field.name, field.type is Any) for field in msgspec.structs.fields(kind))


def _hook(value: Any) -> Any:
    """Let NumPy's scalars and arrays pass without importing NumPy."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise TypeError(f"a {type(value).__name__} has no plain form")
    return tolist()
