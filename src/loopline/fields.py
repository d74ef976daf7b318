"""One field of a schema, and the check a value passes before it stands in a row.

A check takes one value and returns the scalar to keep, or raises `ValueError` with a sentence
about the value. Checks are built once per field, so that reading a row never asks for its kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from enum import Enum
from math import inf, isfinite
from typing import Any, Literal

from loopline.errors import FieldError, InvalidInput
from loopline.records import Record

Kind = Literal["number", "integer", "boolean", "text", "category", "any"]
Check = Callable[[Any], Any]

LONGEST_TEXT = 10_000
MOST_COMPLAINTS = 100
DEEPEST = 64
SMALLEST, LARGEST = -(2**63), 2**63 - 1

_NUMBER = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE
)
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_BASES = (("boolean", {bool}), ("integer", {int}), ("number", {int, float}), ("text", {str}))
_NOUNS = {list: "an array", tuple: "an array", dict: "an object", type(None): "null"}


class Field(Record, frozen=True):
    """One input column.

    `used` says whether the model looks at it. `optional` means that it may be left out and is
    then `default`; a nullable field may be left out too. `minimum`, `maximum` and `categories`
    are what training saw, and are enforced only where they were declared (`strict`).
    """

    name: str
    kind: Kind
    nullable: bool = False
    used: bool = True
    optional: bool = False
    default: Any = None
    categories: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    strict: bool = False
    example: Any = None
    description: str = ""


class Output(Record, frozen=True):
    """What the model answers; `categories` are the classes, in training order."""

    name: str
    kind: Kind
    categories: tuple[Any, ...] | None = None


class Complaints:
    """Collects the field errors of one request, so that all of them are told at once."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self.count = 0

    def add(self, pointer: str, detail: str) -> None:
        """Note an error; past the first hundred they are only counted."""
        self.count += 1
        if self.count <= MOST_COMPLAINTS:
            self.errors.append(FieldError(pointer, detail))

    def settle(self) -> None:
        """Raise `InvalidInput` if there was anything to complain about."""
        if not self.count:
            return
        told = "; ".join(
            f"{error.pointer or 'the body'}: {error.detail}" for error in self.errors[:3]
        )
        if self.count > 3:
            told += f"; and {self.count - 3} more"
        if self.count > MOST_COMPLAINTS:
            told += f" (the first {MOST_COMPLAINTS} of {self.count} are listed)"
        raise InvalidInput(told, fields=self.errors)


def escaped(name: str) -> str:
    """One step of a JSON Pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def listing(values: Iterable[Any], most: int = 20) -> str:
    """Values in a sentence, the long tail only counted."""
    texts = [value if isinstance(value, str) else shown(value) for value in values]
    tail = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + tail


def shown(value: Any) -> str:
    """A value as an error message may quote it: short, in JSON's words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of that size"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    return _NOUNS.get(type(value), f"a value of type {type(value).__name__}")


def native(value: Any) -> Any:
    """The plain Python scalar behind a NumPy or pandas one, a date, a decimal or an enum member."""
    if value is None or type(value) in (float, int, str, bool, dict, list):
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Enum):
        value = value.value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    return float(value) if isinstance(value, Decimal) else value


def basis(kind: Kind, categories: tuple[Any, ...] | None) -> str:
    """The type of a field's values: its kind, or for a category that of the known ones."""
    if kind != "category":
        return kind
    types = {type(value) for value in categories or ()}
    for base, among in _BASES:
        if types and types <= among:
            return base
    return "scalar"


def checker(field: Field, text: bool) -> Check:
    """Build the check of one field.

    Args:
        field: what the value has to be.
        text: whether the transport knows only text, so that numbers are spelled in it.
    """
    base = basis(field.kind, field.categories)
    convert, spelled, nullable = _CONVERT[base], _speller(field, base), field.nullable
    obey = _rule(field) if field.strict else None

    def check(value: Any) -> Any:
        value = native(value)
        if text and type(value) is str:
            value = spelled(value)
        if value is None or (type(value) is float and value != value):
            if nullable:
                return None
            raise ValueError("must not be null" if value is None else "NaN is not allowed")
        value = convert(value)
        if obey is not None:
            obey(value)
        return value

    return _quick(base, check) if obey is None else check


def _quick(base: str, check: Check) -> Check:
    """Let the common good values through before the full check is asked."""

    def number(value: Any) -> Any:
        if type(value) is float and -inf < value < inf:
            return value
        if type(value) is int and SMALLEST <= value <= LARGEST:
            return float(value)
        return check(value)

    def string(value: Any) -> Any:
        if type(value) is str and value.isascii() and 0 < len(value) <= LONGEST_TEXT:
            return value
        return check(value)

    return {"number": number, "text": string}.get(base, check)


def _speller(field: Field, base: str) -> Check:
    """How a text transport spells this field's values; empty text is null."""
    known = {str(each): each for each in field.categories or () if base == "scalar"}
    keeps_empty = field.kind in ("text", "any") and not field.nullable
    blank_is_empty = base in ("number", "integer", "boolean")

    def spelled(text: str) -> Any:
        if not (text.strip() if blank_is_empty else text):
            return text if keeps_empty else None
        if base == "boolean":
            return _TRUTH.get(text.strip().lower(), text)
        return _numeric(text) if blank_is_empty else known.get(text, text)

    return spelled


def _numeric(text: str) -> Any:
    """The number that a text spells, or the text itself."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if len(text) < 400 and text.lstrip("+-").isdigit() else float(text)


def _rule(field: Field) -> Callable[[Any], None]:
    """What was declared beyond the type: the categories or the range."""
    low, high = field.minimum, field.maximum
    allowed = field.categories and {(type(each) is bool, each) for each in field.categories}

    def obey(value: Any) -> None:
        if allowed is not None and (type(value) is bool, value) not in allowed:
            names = listing(shown(each) for each in field.categories or ())
            raise ValueError(f"{shown(value)} is not one of {names}")
        if low is not None and value < low:
            raise ValueError(f"{shown(value)} is too small; it must be at least {shown(low)}")
        if high is not None and value > high:
            raise ValueError(f"{shown(value)} is too large; it must be at most {shown(high)}")

    return obey


def _mismatch(value: Any, needed: str) -> ValueError:
    if type(value) is str and needed in ("a float", "an integer"):
        number = _numeric(value)
        if type(number) is int or (type(number) is float and isfinite(number)):
            return ValueError(f"{shown(value)} is text; a number is needed")
    return ValueError(f"{shown(value)} is not {needed}")


def _to_float(value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise _mismatch(value, "a float")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{shown(value)} is too large for a float") from None
    if not isfinite(number):
        raise ValueError("NaN is not allowed" if number != number else "infinity is not allowed")
    return number


def _to_integer(value: Any) -> int:
    if type(value) is float and (value.is_integer() or not isfinite(value)):
        value = int(_to_float(value))
    if type(value) is not int:
        raise _mismatch(value, "an integer")
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{shown(value)} is outside the range of 64-bit integers")
    return value


def _to_boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _mismatch(value, "a boolean")
    return value


def _to_text(value: Any) -> str:
    if type(value) is not str:
        raise _mismatch(value, "text")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"is longer than {LONGEST_TEXT:,} characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{shown(value)} is not valid Unicode") from None
    return value


def _to_scalar(value: Any) -> Any:
    convert = _SCALARS.get(type(value))
    if convert is None:
        raise _mismatch(value, "a single value")
    return convert(value)


def _to_any(value: Any, depth: int = 0) -> Any:
    """Any JSON value that can be stored; a nested one is copied with plain scalars in it."""
    value = native(value)
    if value is None:
        return None
    if depth > DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("holds a key that is not text")
        return {_to_text(key): _to_any(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_any(inner, depth + 1) for inner in value]
    return _to_scalar(value)


_SCALARS: dict[type, Check] = {bool: bool, str: _to_text, int: _to_integer, float: _to_float}
_CONVERT: dict[str, Check] = {
    "number": _to_float,
    "integer": _to_integer,
    "boolean": _to_boolean,
    "text": _to_text,
    "scalar": _to_scalar,
    "any": _to_any,
}
