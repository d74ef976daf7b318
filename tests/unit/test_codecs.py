"""Bytes to values: every content type, what is refused, and data sets as bytes."""

from __future__ import annotations

import gzip
import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopline.codecs import pack_table, read, read_table, unpack_table, write
from loopline.errors import InvalidInput, MissingExtra, Unreadable
from loopline.schema import Field, Schema

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORM = "application/x-www-form-urlencoded"
TYPES = ["application/json", "application/msgpack", FORM, "text/csv", "application/x-ndjson"]


@pytest.mark.parametrize(
    ("body", "kind", "value", "text"),
    [
        (b'{"TV": 50}', None, {"TV": 50}, False),
        (b"[1.5, null]", "application/json; charset=utf-8", [1.5, None], False),
        (b'{"a": 1}', "application/problem+json", {"a": 1}, False),
        (b'{"a": 1, "a": 2}', "application/json", {"a": 2}, False),
        (b"\x81\xa1a\x01", "application/msgpack", {"a": 1}, False),
        (b"\x81\xa1a\x01", "Application/X-MsgPack", {"a": 1}, False),
        (b"TV=50&Radio=1.5", FORM, {"TV": "50", "Radio": "1.5"}, True),
        (b"data[]=3.14&data[]=8.4", FORM, {"data": ["3.14", "8.4"]}, True),
        (b"data%5B%5D=3.14", FORM, {"data": ["3.14"]}, True),
        (b"data[0]=1&data[1]=2", FORM, {"data": ["1", "2"]}, True),
        (b"TV=1&TV=2&TV=3", FORM, {"TV": ["1", "2", "3"]}, True),
        (b"note=a+b%26&empty=", FORM, {"note": "a b&", "empty": ""}, True),
        (b'{"TV": 50}', FORM, {"TV": 50}, True),
        (
            b"TV,Radio\n1,2\n\n3,4\n",
            "text/csv",
            [{"TV": "1", "Radio": "2"}, {"TV": "3", "Radio": "4"}],
            True,
        ),
        (b",TV\r\n1,2\r\n", "text/csv", [{"TV": "2"}], True),
        (b'\xef\xbb\xbfa,b\n"x,y",\n', "text/csv", [{"a": "x,y", "b": ""}], True),
        (b"TV\n", "text/csv", [], True),
        (b'{"a": 1}\n\n{"a": 2}\r\n', "application/x-ndjson", [{"a": 1}, {"a": 2}], False),
    ],
)
def test_readable_bodies(body: bytes, kind: str | None, value: Any, text: bool) -> None:
    """Each content type gives its value, and says whether numbers in it are text."""
    assert read(body, kind) == (value, text)


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"", None, "the body is empty"),
        (b" \n", "text/csv", "the body is empty"),
        (b"{", None, "the body is not JSON"),
        (b"nonsense NaN", None, "the body is not JSON"),
        (b'"\xff"', None, "it is not UTF-8"),
        (b'{"x": NaN, "y": "\\ud800"}', None, "the body is not JSON"),
        (b"1" * 5000, None, "out of range"),
        (b"[" * 65 + b"]" * 65, None, "nested more than 64 levels"),
        (b"[" * 100_000, None, "nested more than 64 levels"),
        (b"[NaN," + b"[" * 65 + b"]" * 66, None, "nested more than 64 levels"),
        (b"\x91" * 65 + b"\x01", "application/msgpack", "nested more than 64 levels"),
        (b"\x91" * 100_000, "application/msgpack", "nested more than 64 levels"),
        (b"\x81\x01\x01", "application/msgpack", "key is not text"),
        (b"\x91\x81\x90\x01", "application/msgpack", "key is not text"),
        (b"\x81\x91\x80\x01", "application/msgpack", "not MessagePack"),
        (b"\xd4\x05\x01", "application/msgpack", "extension of type 5"),
        (b"\xa1\xff", "application/msgpack", "it is not UTF-8"),
        (b"\xdd\xff\xff\xff\xff", "application/msgpack", "truncated"),
        (b"a=%ff", FORM, "not UTF-8"),
        (b"a=\xff", FORM, "not UTF-8"),
        (b"a,b\n1\n", "text/csv", "line 2 has 1 values, the header 2"),
        (b"a,a\n1,2\n", "text/csv", "twice"),
        (b'a\n"x', "text/csv", "line 2"),
        (b"a\n\xff", "text/csv", "not UTF-8"),
        (b'{"a": 1}\n{"a"', "application/x-ndjson", "line 2"),
        (b"<a/>", "application/xml", "send one of application/json"),
    ],
)
def test_unreadable_bodies(body: bytes, kind: str | None, sentence: str) -> None:
    """Bytes that are not what they are called are refused with a sentence."""
    with pytest.raises(Unreadable) as caught:
        read(body, kind)
    assert sentence in caught.value.detail


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_depth_up_to_the_limit(kind: str) -> None:
    """Sixty-four levels are fine."""
    value: Any = []
    for _ in range(63):
        value = [value]
    assert read(write(value, kind), kind)[0] == value


def test_numbers_that_json_cannot_have() -> None:
    """NaN, infinities and overflowing numbers reach the schema, which names their field."""
    schema = Schema(fields=tuple(Field(name=name, kind="number") for name in "abcd"))
    value, _ = read(b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": ' + b"9" * 400 + b"}")
    with pytest.raises(InvalidInput) as caught:
        schema.parse(value)
    assert [(error.pointer, error.detail) for error in caught.value.fields] == [
        ("/a", "NaN is not allowed"),
        ("/b", "infinity is not allowed"),
        ("/c", "infinity is not allowed"),
        ("/d", "a number of that size is too large for a float"),
    ]
    packed, _ = read(b"\x81\xa1a\xcb" + struct.pack(">d", math.nan), "application/msgpack")
    assert math.isnan(packed["a"])


def test_write() -> None:
    """An answer is written as its content type or short name asks."""
    rows = [{"a": 1, "b": "x"}, {"a": 2.5, "c": None}]
    assert read(write(rows))[0] == rows
    assert read(write(rows, "msgpack"), "application/msgpack")[0] == rows
    assert read(write(rows, "ndjson"), "ndjson")[0] == rows
    assert write(rows, "text/csv") == b"a,b,c\n1,x,\n2.5,,\n"
    assert write([math.nan]) == b"[null]"


@pytest.mark.parametrize("kind", TYPES)
@RELAXED
@given(body=st.binary(max_size=200))
def test_read_never_crashes_on_bytes(kind: str, body: bytes) -> None:
    """Any bytes under any content type are read or refused, never anything else."""
    try:
        read(body, kind)
    except (Unreadable, InvalidInput) as error:
        assert error.detail


PIECES = b'{ } [ ] " : , NaN Infinity - 1e999 \\ud800 1 null a = & %f [] \x81 \x91 \xc1 \xd6\xff'
FRAGMENTS = st.sampled_from([*PIECES.split(b" "), b"\n"])


@pytest.mark.parametrize("kind", TYPES)
@RELAXED
@given(body=st.lists(FRAGMENTS, max_size=30).map(b"".join))
def test_read_never_crashes_on_fragments(kind: str, body: bytes) -> None:
    """Bodies made of the pieces of real ones are read or refused too."""
    try:
        read(body, kind)
    except (Unreadable, InvalidInput) as error:
        assert error.detail


CELLS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)


@RELAXED
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4))
def test_tables_survive(data: list[list[Any]]) -> None:
    """A packed table comes back as it was, missing values as null, and always as the same bytes."""
    columns = [f"c{i}" for i in range(len(data))]
    packed = pack_table(columns, data)
    clean = [[None if value != value else value for value in column] for column in data]
    assert unpack_table(packed) == (columns, clean)
    assert pack_table(columns, clean) == packed


def test_tables_of_library_scalars() -> None:
    """NumPy scalars, dates and missing values of pandas are kept as plain ones."""
    data = [[np.int64(1), np.float64("nan")], [pd.Timestamp("2024-01-02"), pd.NaT]]
    assert unpack_table(pack_table(["a", "b"], data)) == (
        ["a", "b"],
        [[1, None], ["2024-01-02T00:00:00", None]],
    )


def test_refused_tables() -> None:
    """Uneven tables, strange values and unknown formats are refused."""
    with pytest.raises(InvalidInput, match="equally long"):
        pack_table(["a", "b"], [[1], [1, 2]])
    with pytest.raises(InvalidInput, match="cannot be kept"):
        pack_table(["a"], [[object()]])
    with pytest.raises(InvalidInput, match="cannot be kept"):
        pack_table(["a"], [[2**70]])
    for body in (
        b"",
        b"nonsense",
        b"\x93\xa1x\x90",
        msgspec.msgpack.encode(("table/1", ["a"], [])),
    ):
        with pytest.raises(Unreadable):
            unpack_table(body)
    with pytest.raises(Unreadable, match="table/2"):
        unpack_table(msgspec.msgpack.encode(("table/2", [], [])))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.json"])
def test_read_table_from_files(tmp_path: Path, name: str) -> None:
    """Every kind of file, gzipped or not, gives the same frame."""
    rows = [{"x": 1, "name": "a"}, {"x": 2, "name": None}]
    plain = {
        "csv": b",x,name\n0,1,a\n1,2,\n",
        "jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows),
        "json": json.dumps(rows).encode(),
    }[name.split(".")[1]]
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain) if name.endswith(".gz") else plain)
    frame = read_table(path)
    assert list(frame.columns) == ["x", "name"]
    assert frame["x"].tolist() == [1, 2]
    assert frame["name"].isna().tolist() == [False, True]


def test_refused_files(tmp_path: Path) -> None:
    """Missing and broken files are refused with a sentence that names them."""
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"a\n" * 1000)[:20])
    image = tmp_path / "image.csv"
    image.write_bytes(b"\x89PNG\xff\xfe")
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'{"x": 1}\n{"x": \n')
    for path in (broken, image, lines):
        with pytest.raises(Unreadable, match=path.name):
            read_table(path)
    with pytest.raises(InvalidInput, match="there is no file"):
        read_table(tmp_path / "none.csv")


def test_parquet_is_read_where_its_library_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame comes back as it was written; without pyarrow the pip line is told."""
    path = tmp_path / "t.parquet"
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", None], "d": [True, False]})
    frame.to_parquet(path)
    assert pack_table(list("abcd"), [read_table(path)[name].tolist() for name in "abcd"]) == (
        pack_table(list("abcd"), [[1, 2], [0.5, None], ["x", None], [True, False]])
    )
    path.write_bytes(b"PAR1")
    with pytest.raises(Unreadable, match=r"t\.parquet"):
        read_table(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'loopline\[parquet\]'"):
        read_table(path)


@pytest.mark.parametrize("name", ["Advertising.csv", "iris.csv", "winequality-white.csv.gz"])
def test_read_shared_tables(shared_data: Path, name: str) -> None:
    """The shared data sets are read with their named columns only, and packed the same twice."""
    frame = read_table(shared_data / name)
    assert not any(column.startswith("Unnamed") for column in frame.columns)
    data = [frame[column].tolist() for column in frame.columns]
    packed = pack_table(list(frame.columns), data)
    assert unpack_table(packed) == (list(frame.columns), data)
    assert pack_table(list(frame.columns), data) == packed
