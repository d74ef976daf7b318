"""Rows as a command gets them: inline JSON, key=value pairs, files, standard input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import msgspec

from loopline import codecs
from loopline.errors import FieldError, InvalidInput, Unreadable

TABLES = (".csv", ".jsonl", ".ndjson", ".parquet", ".pq")


class Given(msgspec.Struct):
    """Rows given to a command: a value, or a file with many.

    `text` is whether the values are texts, so that numbers in them are spelled out.
    """

    value: Any = None
    text: bool = False
    path: Path | None = None


class Batch(msgspec.Struct):
    """Some rows of a file; `first` is the number of the first of them, from 1."""

    path: Path
    first: int
    rows: list[Any]
    text: bool

    def located(self, error: InvalidInput) -> InvalidInput:
        """The error with rows counted as in the file."""
        fields = []
        for each in error.fields:
            head, _, rest = each.pointer.removeprefix("/").partition("/")
            if head.isdigit():
                each = FieldError(f"row {self.first + int(head)}/{rest}", each.detail)
            fields.append(each)
        told = [f"{each.pointer.replace('/', ': ')}: {each.detail}" for each in fields[:3]]
        told += [f"and {len(fields) - 3} more"] if len(fields) > 3 else []
        detail = "; ".join(told) or error.detail
        return InvalidInput(f"{self.path.name}: {detail}", fields=fields)


def read_given(inputs: Sequence[str]) -> Given | None:
    """Find out what was given.

    Args:
        inputs: JSON, `@file.json`, `-`, the path of a table, or `name=value` pairs.

    Raises:
        InvalidInput: it is none of these.
    """
    if not inputs:
        return None
    if all("=" in text and text[0] not in "{[@" for text in inputs):
        pairs = (text.partition("=") for text in inputs)
        return Given({name: value for name, _, value in pairs}, text=True)
    if len(inputs) > 1:
        raise InvalidInput(f"{inputs[1]!r} is too much: give one value, file, or name=value pairs")
    (text,) = inputs
    if text == "-":
        return Given(_parse(sys.stdin.buffer.read(), "standard input"))
    if text.startswith("@"):
        return Given(_parse(_bytes(Path(text[1:])), text[1:]))
    if is_table(text):
        if not Path(text).is_file():
            raise InvalidInput(f"there is no file {text}")
        return Given(path=Path(text))
    return Given(_parse(text.encode(), "the input"))


def is_table(text: str) -> bool:
    """Whether a text names a file with rows in it."""
    return suffix(Path(text)) in TABLES


def suffix(path: Path) -> str:
    """What kind of file a path names, compressed or not."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


def _parse(body: bytes, what: str) -> Any:
    """JSON; or else JSON Lines, whose first line is already a value."""
    try:
        return codecs.read_json(body)
    except Unreadable as error:
        if b"\n" not in body.strip():
            detail = f'{what} is not JSON; give a row like {{"TV": 50}}, name=value, or a file'
            raise InvalidInput(detail) from error
        return codecs.read(body, codecs.NDJSON)[0]


def batches(path: Path, size: int, bytes_at_most: int = 8 * 2**20) -> Iterator[Batch]:
    """Read a file in batches of at most `size` rows, in constant memory for CSV and JSON Lines."""
    kind, first = suffix(path), 1
    rows = iter(_rows(path, kind))
    # The size of the first hundred rows tells how many fit into one request.
    head = list(islice(rows, min(size, 100)))
    each = max(1, len(json.dumps(head, default=str)) // max(1, len(head)))
    some = head + list(islice(rows, min(size, max(100, bytes_at_most // each)) - len(head)))
    size = max(1, len(some))
    while some:
        yield Batch(path, first, some, kind == ".csv")
        first += len(some)
        some = list(islice(rows, size))


def _rows(path: Path, kind: str) -> Iterator[Any]:
    if kind in (".parquet", ".pq"):
        yield from codecs.read_table(path).to_dict("records")
        return
    try:
        with _open(path) as file:
            yield from _csv(file, path) if kind == ".csv" else _lines(file, path)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"cannot read {path}: {reason}") from error


def _open(path: Path) -> TextIO:
    raw = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _csv(file: TextIO, path: Path) -> Iterator[dict[str, str]]:
    """Rows by column name; an unnamed first column is dropped, as everywhere."""
    lines = csv.reader(file)
    header = next(lines, [])
    skip = 1 if header[:1] == [""] and len(header) > 1 else 0
    for line in lines:
        if line and len(line) != len(header):
            detail = f"has {len(line)} values, the header {len(header)}"
            raise Unreadable(f"{path.name}: line {lines.line_num} {detail}")
        if line:
            yield dict(zip(header[skip:], line[skip:], strict=True))


def _lines(file: TextIO, path: Path) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            try:
                yield codecs.read_json(line.encode())
            except Unreadable as error:
                raise Unreadable(f"{path.name}: line {number}: {error.detail}") from error


def value_of(text: str) -> Any:
    """A value on the command line: JSON if it is that, else the text itself."""
    try:
        return codecs.read_json(text.encode())
    except Unreadable:
        return text
