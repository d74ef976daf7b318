"""Bytes to values and back: JSON, NDJSON, MessagePack, forms, CSV; and data sets as bytes.

What a body says is decided here, what it means in the schema. Bad bytes are `Unreadable`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from loopline.errors import InvalidInput, MissingExtra, Unreadable
from loopline.fields import DEEPEST, native

if TYPE_CHECKING:
    import pandas as pd

JSON = "application/json"
MSGPACK = "application/msgpack"
NDJSON = "application/x-ndjson"
CSV = "text/csv"
FORM = "application/x-www-form-urlencoded"
TABLE_FORMAT = "table/1"

_KNOWN_AS = {
    JSON: "json text/json text/plain application/octet-stream",
    MSGPACK: "msgpack application/x-msgpack application/vnd.msgpack",
    NDJSON: "ndjson application/ndjson application/jsonl application/x-jsonlines",
    CSV: "csv application/csv",
}
_ALIASES = {alias: kind for kind, names in _KNOWN_AS.items() for alias in names.split()}
_BEYOND = re.compile(rb"NaN|Infinity|[0-9][eE]\+?[0-9]{3}")
_ITEM = re.compile(r"\[\d*\]$")


def kind_of(content_type: str | None) -> str:
    """The content type without parameters and under its one name; JSON where none is given."""
    kind = (content_type or "").partition(";")[0].strip().lower() or JSON
    return JSON if kind.endswith("+json") else _ALIASES.get(kind, kind)


def read(body: bytes, content_type: str | None = None) -> tuple[Any, bool]:
    """Decode a request's body.

    Args:
        body: the bytes as they came, already decompressed.
        content_type: the header; JSON when there is none.

    Returns:
        The value, and whether it came as text, so that numbers in it are spelled out.

    Raises:
        Unreadable: the bytes are not what the content type says.
    """
    kind = kind_of(content_type)
    if kind not in _READERS:
        raise Unreadable(f"cannot read {kind!r}; send one of {', '.join(_READERS)}")
    if not body or body.isspace():
        raise Unreadable("the body is empty")
    return _READERS[kind](body), kind in (FORM, CSV)


def write(value: Any, kind: str = JSON) -> bytes:
    """Encode an answer; `kind` is a content type or its short name (json, msgpack, csv, ndjson).

    CSV and NDJSON take a list; CSV's header is the keys of its objects in order of appearance.
    NaN becomes null in JSON.
    """
    kind = kind_of(kind)
    if kind == MSGPACK:
        return msgspec.msgpack.encode(value)
    if kind == NDJSON:
        return b"".join(msgspec.json.encode(item) + b"\n" for item in value)
    return _write_csv(value) if kind == CSV else msgspec.json.encode(value)


def read_json(body: bytes) -> Any:
    """Decode JSON. NaN and Infinity pass as floats, so that the schema can say whose they are."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, RecursionError) or not _BEYOND.search(body):
            raise Unreadable(f"the body is not JSON: {_reason(error)}") from error
        return _lenient_json(body, error)
    # A body with few brackets cannot be deep, and most have few.
    if body.count(b"[") + body.count(b"{") > DEEPEST:
        _check_depth(value)
    return value


def _lenient_json(body: bytes, first: Exception) -> Any:
    try:
        value = json.loads(body.decode())
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Unreadable(f"the body is not JSON: {_reason(first)}") from first
    _check_depth(value)
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested more than {DEEPEST} levels deep"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _check_depth(value: Any) -> None:
    """Refuse nesting beyond the limit, and keys that JSON could not have, level by level."""
    level = [value]
    for _ in range(DEEPEST + 1):
        holders = [each for each in level if type(each) is dict or type(each) is list]
        if not holders:
            return
        level = []
        for holder in holders:
            if type(holder) is dict and not all(type(key) is str for key in holder):
                raise Unreadable("the body is not usable MessagePack: a map key is not text")
            level += holder.values() if type(holder) is dict else holder
    raise Unreadable(f"the body is nested more than {DEEPEST} levels deep")


def _read_msgpack(body: bytes) -> Any:
    try:
        value = msgspec.msgpack.decode(body, ext_hook=_refuse_extension)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise Unreadable(f"the body is not MessagePack: {_reason(error)}") from error
    _check_depth(value)
    return value


def _refuse_extension(code: int, data: memoryview) -> Any:
    raise Unreadable(f"the body holds a MessagePack extension of type {code}, which is not known")


def _read_lines(lines: Iterable[bytes]) -> list[Any]:
    values = []
    for number, line in enumerate(lines, start=1):
        if line and not line.isspace():
            try:
                values.append(read_json(line))
            except Unreadable as error:
                raise Unreadable(f"line {number}: {error.detail}") from error
    return values


def _text(body: bytes, what: str) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"the {what} is not UTF-8") from error


def _read_form(body: bytes) -> Any:
    """Names with `[]` or used more than once hold lists, the others single texts."""
    # What curl sends with -d and no header is called a form, and is nearly always JSON.
    if body.lstrip()[:1] in (b"{", b"["):
        try:
            return read_json(body)
        except Unreadable:
            pass
    text = _text(body, "form")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise Unreadable("the form is not UTF-8 behind its percent signs") from error
    values: dict[str, Any] = {}
    for name, value in pairs:
        plain = _ITEM.sub("", name)
        if plain in values:
            held = values[plain]
            values[plain] = [*held, value] if isinstance(held, list) else [held, value]
        else:
            values[plain] = value if plain == name else [value]
    return values


def _read_csv(body: bytes) -> list[dict[str, str]]:
    reader = csv.reader(io.StringIO(_text(body, "CSV"), newline=""), strict=True)
    try:
        lines = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:
        raise Unreadable(f"line {reader.line_num}: {error}") from error
    if not lines:
        raise Unreadable("the CSV has no header line")
    header = lines[0][1]
    start = 1 if header[0] == "" and len(header) > 1 else 0
    names = header[start:]
    if len(set(names)) < len(names):
        raise Unreadable("the CSV's header names a column twice")
    rows = []
    for number, line in lines[1:]:
        if len(line) != len(header):
            detail = f"line {number} has {len(line)} values, the header {len(header)}"
            raise Unreadable(f"the CSV is uneven: {detail}")
        rows.append(dict(zip(names, line[start:], strict=True)))
    return rows


def _write_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


_READERS: dict[str, Callable[[bytes], Any]] = {
    JSON: read_json,
    NDJSON: lambda body: _read_lines(body.split(b"\n")),
    MSGPACK: _read_msgpack,
    FORM: _read_form,
    CSV: _read_csv,
}


def pack_table(columns: Sequence[str], data: Sequence[Sequence[Any]]) -> bytes:
    """Encode a table in a numbered, deterministic format: equal tables give equal bytes.

    Args:
        columns: the names, in file order.
        data: one sequence of values per column, all equally long; missing values and NaN are
            kept as null, dates as ISO text.

    Raises:
        InvalidInput: the columns are not equally long, or hold what is not a single value.
    """
    if len(columns) != len(data) or len({len(values) for values in data}) > 1:
        raise InvalidInput("a table needs one list of values per column, all equally long")
    cells = [[_cell(value) for value in values] for values in data]
    try:
        return msgspec.msgpack.encode((TABLE_FORMAT, list(columns), cells))
    except (OverflowError, TypeError, UnicodeEncodeError) as error:
        raise InvalidInput(f"the table holds a value that cannot be kept: {error}") from error


def unpack_table(body: bytes) -> tuple[list[str], list[list[Any]]]:
    """Decode what `pack_table` made: the column names, and one list of values per column.

    Raises:
        Unreadable: the bytes are not a table, or one of a format this program does not know.
    """
    try:
        form, columns, data = msgspec.msgpack.decode(
            body, type=tuple[str, list[str], list[list[Any]]]
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable("the bytes are not a packed table") from error
    if form != TABLE_FORMAT:
        raise Unreadable(f"the table's format is {form!r}; this program reads {TABLE_FORMAT!r}")
    if len(columns) != len(data):
        raise Unreadable("the packed table names more or fewer columns than it holds")
    return columns, data


def _cell(value: Any) -> Any:
    value = native(value)
    return None if type(value) is float and value != value else value


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, JSON Lines, JSON (each also gzipped) or Parquet file into a data frame.

    An unnamed first index column of a CSV is dropped.

    Raises:
        InvalidInput: there is no such file.
        Unreadable: the file is not what its name says.
        MissingExtra: Parquet without pyarrow.
    """
    import pandas as pd

    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            return pd.read_parquet(path, engine="pyarrow")
        if suffix in (".jsonl", ".ndjson", ".json"):
            with gzip.open(path) if packed else path.open("rb") as file:
                return pd.DataFrame(
                    read_json(file.read()) if suffix == ".json" else _read_lines(file)
                )
        frame = pd.read_csv(path, low_memory=False)
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no file {str(path)!r}") from error
    except ImportError as error:
        raise MissingExtra("Parquet needs pyarrow: pip install 'loopline[parquet]'") from error
    except (Unreadable, ValueError, OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"cannot read {path.name}: {error}") from error
    return frame.iloc[:, 1:] if str(frame.columns[0]) == "Unnamed: 0" else frame
