"""What `data=` may be: files, queries, functions and tables, and what is told of each."""

from __future__ import annotations

import sqlite3
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from loopline.artifacts import Keys
from loopline.backends.memory_store import MemoryBlobs, MemoryStore
from loopline.builtin import Linear
from loopline.codecs import pack_table, unpack_table
from loopline.connectors import Query, read, source, title
from loopline.errors import InvalidInput, LooplineError, MissingExtra, Unavailable, Unreadable
from loopline.records import Dataset
from loopline.registry import Definition, Registry, define, read_config
from loopline.schema import Schema

SHOP = """
    CREATE TABLE sales (at DATE, price NUMERIC, units INTEGER, note TEXT, sold REAL);
    INSERT INTO sales VALUES ('2026-01-01', 2.5, 3, 'a 100% :cut', 7.5);
    INSERT INTO sales VALUES ('2026-01-02', 3, NULL, NULL, 9);
"""


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The URL of a SQLite database with two sales."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript(SHOP)
    return f"sqlite:///{tmp_path}/shop.db"


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules are forgotten after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def cells(frame: pd.DataFrame) -> list[list[Any]]:
    """The columns of a frame as they are kept."""
    return unpack_table(pack_table(list(frame), [frame[name].tolist() for name in frame]))[1]


def test_tables_and_functions() -> None:
    """A frame, records, columns, or a function that gives one of them are data sets."""
    frame = pd.DataFrame({1: [1, 2]}, index=[5, 6])
    for data in (frame, lambda: frame, lambda: lambda: frame, [{"1": 1}, {"1": 2}], {"1": [1, 2]}):
        table = read(data)
        assert list(table.columns) == ["1"]
        assert table["1"].tolist() == [1, 2] and list(table.index) == [0, 1]
    assert list(frame.columns) == [1] and list(frame.index) == [5, 6]


def test_text_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, its text, one below the home folder, or a function that gives one are the file."""
    path = tmp_path / "t.csv"
    path.write_text("x\n1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for data in (path, str(path), "~/t.csv", lambda: path, lambda: str(path)):
        assert read(data)["x"].tolist() == [1]
    assert source("t.csv", tmp_path) == source(Path("t.csv"), tmp_path) == path
    assert title(path) == str(path)


def test_refused_tables(tmp_path: Path) -> None:
    """What is no table, has no column, or one of them twice, is refused with a sentence."""
    refused: tuple[Any, ...] = (5, [], pd.DataFrame([[1, 2]], columns=["a", "a"]))
    for data, told in zip(refused, ("int", "no columns", "names a twice"), strict=True):
        with pytest.raises(InvalidInput, match=told):
            read(data)
    with pytest.raises(InvalidInput, match="there is no file"):
        read(tmp_path / "none.csv")
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    with pytest.raises(Unreadable, match=r"none\.parquet"):
        read(tmp_path / "none.parquet")


def test_a_function_that_fails_is_named() -> None:
    """The error says which function it was, and our own errors pass as they are."""

    def shop_rows() -> Any:
        raise KeyError("no such shop")

    def gives_a_file() -> Any:
        return "no/such.csv"

    with pytest.raises(InvalidInput, match=r"shop_rows failed: KeyError: 'no such shop'"):
        read(shop_rows)
    with pytest.raises(InvalidInput, match="there is no file"):
        read(gives_a_file)


def test_a_function_by_import_path(importable: Path) -> None:
    """`module:function` is imported from beside the configuration, and what is not is told."""
    (importable / "shop_data.py").write_text(
        "LIMIT = 3\ndef rows():\n    return [{'x': 1.0, 'y': 2.0}]\n"
    )
    (importable / "shop_broken.py").write_text("1 / 0\n")
    found = source("shop_data:rows", importable)
    assert title(found) == "shop_data:rows" and read(found)["y"].tolist() == [2.0]
    for text, told in {
        "shop_data:LIMIT": "is not a function",
        "shop_data:none": "shop_data:none is not there",
        "shop_broken:rows": "ZeroDivisionError",
        "shop_nowhere:rows": "shop_nowhere:rows is not there",
    }.items():
        with pytest.raises(InvalidInput, match=told):
            source(text, importable)
    with pytest.raises(InvalidInput, match="would run code"):
        define("line", {"model": "linear", "data": "shop_data:rows", "target": "y"}, "api")
    (importable / "loopline.toml").write_text(
        '[models.line]\nmodel = "linear"\ndata = "shop_data:rows"\ntarget = "y"\n'
    )
    assert read_config(importable / "loopline.toml")["line"].data is found


def test_a_query_gives_typed_columns(shop: str) -> None:
    """Numbers, texts and NULLs arrive as what they are, and the schema says so."""
    frame = read(Query("SELECT * FROM sales ORDER BY at", shop))
    assert cells(frame) == [
        ["2026-01-01", "2026-01-02"],
        [2.5, 3.0],
        [3.0, None],
        ["a 100% :cut", None],
        [7.5, 9.0],
    ]
    schema = Schema.infer(frame, "sold")
    assert [(field.kind, field.nullable) for field in schema.fields] == [
        ("category", False),
        ("number", False),
        ("number", True),
        ("category", True),
    ]


def test_a_query_is_sent_as_it_is_written(shop: str) -> None:
    """A percent sign, a colon, a question mark and a comment mean what they mean in SQL."""
    query = "SELECT note AS \"n?:x\" FROM sales WHERE note LIKE '%100% :c%' -- ?query=1 & more\n"
    assert read(Query(query, shop))["n?:x"].tolist() == ["a 100% :cut"]
    text = f"sql+{shop}?query={query}"
    assert read(text)["n?:x"].tolist() == ["a 100% :cut"]
    assert source(text).sql == query


def test_a_query_is_read_in_chunks(tmp_path: Path) -> None:
    """No row is lost between two chunks, and a NULL in a late one does not change the rest."""
    count = 25_001
    with closing(sqlite3.connect(tmp_path / "n.db")) as connection:
        connection.execute("CREATE TABLE n (i INTEGER)")
        values = [(i if i != count - 1 else None,) for i in range(count)]
        connection.executemany("INSERT INTO n VALUES (?)", values)
        connection.commit()
    numbers = read(Query("SELECT i FROM n ORDER BY rowid", f"sqlite:///{tmp_path}/n.db"))["i"]
    assert numbers.tolist()[:-1] == list(range(count - 1))
    assert numbers.isna().sum() == 1


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT nowhere FROM sales", "refused the query: no such column: nowhere"),
        ("SELECT", "refused the query: incomplete input"),
        ("SELECT * FROM sales WHERE sold > 100", "gave no rows"),
        ("CREATE TABLE other (x)", "attempt to write a readonly database"),
        ("DELETE FROM sales", "attempt to write a readonly database"),
        ("PRAGMA query_only = 1", "gave no columns"),
        ("SELECT sold, price AS sold FROM sales", "names sold twice"),
        ("SELECT 1 AS a; SELECT 2 AS a", "one statement at a time"),
    ],
)
def test_refused_queries(shop: str, query: str, told: str) -> None:
    """What gives no table is refused, and nothing is ever written."""
    with pytest.raises(InvalidInput, match=told):
        read(Query(query, shop))
    assert len(read(Query("SELECT * FROM sales", shop))) == 2


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "kind", "told"),
    [
        ("nonsense", InvalidInput, "URL such as"),
        (f"postgresql://reader:{SECRET}", InvalidInput, "URL such as"),
        (f"postgresql://reader:p@{SECRET}@host/shop", InvalidInput, "%40"),
        (f"nosuch://reader:{SECRET}@host/shop", InvalidInput, "nosuch"),
        (f"mysql://reader:{SECRET}@host/shop", MissingExtra, "pip install mysqlclient"),
        (f"mysql+pymysql://reader:{SECRET}@host/shop", MissingExtra, "pip install pymysql"),
        (
            f"postgresql://reader:{SECRET}@127.0.0.1:1/shop?connect_timeout=5",
            Unavailable,
            r"postgresql://127\.0\.0\.1:1/shop cannot be reached",
        ),
        (
            f"postgresql://reader:{SECRET}@127.0.0.1:1/shop?application={SECRET}",
            Unavailable,
            "invalid connection option",
        ),
    ],
)
def test_a_database_that_cannot_be_used(url: str, kind: type[LooplineError], told: str) -> None:
    """The error says what to do, and neither it nor what caused it holds the password."""
    with pytest.raises(kind, match=told) as caught:
        read(f"sql+{url}{'&' if '?' in url else '?'}query=SELECT 1 AS a")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_missing_driver_of_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pip line is that of the extra."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'loopline\[postgres\]'"):
        read(Query("SELECT 1", "postgresql://reader@host/shop"))


def test_a_database_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A typing error in a path leaves no empty database behind."""
    with pytest.raises(InvalidInput, match="there is no file"):
        read(Query("SELECT 1 AS a", f"sqlite:///{tmp_path}/none.db"))
    assert list(tmp_path.iterdir()) == []
    assert read(Query("SELECT 1 AS a", "sqlite://"))["a"].tolist() == [1]
    with pytest.raises(InvalidInput, match=r"sql\+sqlite"):
        read(f"postgresql://reader:{SECRET}@host/shop")


def test_a_password_is_shown_nowhere() -> None:
    """Neither a query nor a definition that was given as text shows more than where it reads."""
    url = f"postgresql://reader:{SECRET}@host:5433/shop?passfile={SECRET}"
    text = f"sql+{url}&query=SELECT 1"
    definition = Definition(name="line", model=Linear(), data=text, target="y")
    for shown in (repr(definition), repr(Query("SELECT 1", url)), title(source(text))):
        assert "postgresql://host:5433/shop" in shown
        assert SECRET not in shown and "reader" not in shown


def registry(folder: Path, store: MemoryStore, blobs: MemoryBlobs) -> Registry:
    """A registry over these."""
    return Registry(store, blobs, Keys(folder / "keys.json"), lambda: None)


def test_data_are_read_at_registration(shop: str, tmp_path: Path) -> None:
    """Unchanged data train nothing; changed data are kept beside the old ones and trained on."""
    store, blobs = MemoryStore(), MemoryBlobs()
    one = registry(tmp_path, store, blobs)
    query = Query("SELECT price, sold FROM sales ORDER BY at", shop)
    table = {
        "model": "linear",
        "data": f"sql+sqlite:///shop.db?query={query.sql}",
        "target": "sold",
    }
    first = one.register(Definition(name="line", model=Linear(), data=query, target="sold"))
    again = one.register(define("line", table, "app", tmp_path))
    assert (again.revision, again.dataset) == (first.revision, first.dataset)
    (job,) = store.jobs(model="line")
    store.cancel(job.id)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("INSERT INTO sales VALUES ('2026-01-03', 4, 1, 'b', 12)")
        connection.commit()
    changed = one.register(define("line", table, "app", tmp_path))
    assert changed.dataset != first.dataset
    assert len(store.jobs(model="line")) == 2
    kept: Dataset | None = store.dataset(str(changed.dataset))
    assert kept is not None and (kept.rows, kept.name) == (3, title(query))


def test_a_model_stays_while_its_database_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that starts again serves what it has; a new model cannot do without its data."""
    store, blobs = MemoryStore(), MemoryBlobs()
    one = registry(tmp_path, store, blobs)
    away = Query("SELECT 1", f"postgresql://reader:{SECRET}@127.0.0.1:1/shop")
    rows = [{"x": float(n), "y": 2.0 * n} for n in range(12)]
    with pytest.raises(Unavailable, match="cannot be reached"):
        one.register(Definition(name="line", model=Linear(), data=away, target="y"))
    first = one.register(Definition(name="line", model=Linear(), data=rows, target="y"))
    assert one.register(Definition(name="line", model=Linear(), data=away, target="y")) == first
    assert "line stays as it is" in caplog.text and SECRET not in caplog.text


def test_decimals_dates_and_odd_values_of_a_frame_are_kept_as_plain_ones() -> None:
    """A function or Parquet may give Decimals and dates; they train and predict like any."""
    frame = read(
        lambda: pd.DataFrame(
            {
                "price": [Decimal("2.50"), None],
                "day": [date(2026, 1, 1), None],
                "at": pd.to_datetime([datetime(2026, 1, 1, 12), None]),
            }
        )
    )
    assert cells(frame) == [[2.5, None], ["2026-01-01", None], ["2026-01-01T12:00:00", None]]
    schema = Schema.infer(frame, "price")
    assert schema.output is not None and schema.output.kind == "number"
    assert schema.label(Decimal("2.50")) == 2.5
