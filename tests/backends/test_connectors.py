"""Queries as data against a real PostgreSQL server: types, NULLs, chunks, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from loopline.codecs import pack_table, unpack_table
from loopline.connectors import CHUNK, Query, read
from loopline.errors import InvalidInput, Unavailable
from loopline.schema import Schema
from tests.backends.test_store import postgres, postgres_url  # noqa: F401

TYPES = {
    "whole": ("bigint", "9007199254740993", 9007199254740993),
    "price": ("numeric(10, 2)", "12.50", 12.5),
    "ratio": ("double precision", "0.25", 0.25),
    "good": ("boolean", "true", True),
    "name": ("text", "'ä 100% :x'", "ä 100% :x"),
    "day": ("date", "'2026-01-31'", "2026-01-31"),
    "moment": ("timestamptz", "'2026-01-31 12:00:00+00'", "2026-01-31T12:00:00+00:00"),
    "clock": ("time", "'12:30'", "12:30:00"),
    "id": (
        "uuid",
        "'01a1fe36-119f-71f1-8c8d-bd66168ca593'",
        "01a1fe36-119f-71f1-8c8d-bd66168ca593",
    ),
    "lasted": ("interval", "'1 day 2 hours'", "1 day, 2:00:00"),
    "address": ("inet", "'10.0.0.1'", "10.0.0.1"),
    "tags": ("jsonb", "'{\"a\": [1, null]}'", {"a": [1, None]}),
}


@pytest.fixture
def shop(postgres_url: str) -> Iterator[str]:  # noqa: F811
    """The URL of a database with one row of every type, and one of NULLs."""
    engine = create_engine(postgres_url)
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in TYPES.items())
    values = ", ".join(value for _, value, _ in TYPES.values()).replace(":", "\\:")
    with engine.begin() as connection:
        connection.execute(text("SET TIME ZONE 'UTC'"))
        connection.execute(text(f"CREATE TABLE types (n int, {columns})"))
        connection.execute(text(f"INSERT INTO types VALUES (1, {values})"))
        connection.execute(text("INSERT INTO types (n) VALUES (2)"))
    engine.dispose()
    yield postgres_url


@pytest.mark.parametrize("name", TYPES)
def test_types_of_postgresql(shop: str, name: str) -> None:
    """Every type arrives as what JSON could have said, and NULL as a missing value."""
    query = Query(f"SELECT {name} FROM types ORDER BY n", f"{shop}&options=-c timezone=UTC")
    frame = read(query)
    expected = TYPES[name][2]
    ((first, second),) = unpack_table(pack_table([name], [frame[name].tolist()]))[1]
    assert first == (float(expected) if name == "whole" else expected)
    assert second is None


def test_a_schema_from_postgresql(shop: str) -> None:
    """Whole numbers keep every digit where none is missing, and kinds are read off the values."""
    frame = read(Query("SELECT * FROM types WHERE n = 1", shop))
    assert frame["whole"].tolist() == [9007199254740993]
    kinds = {field.name: field.kind for field in Schema.infer(frame).fields}
    assert kinds["whole"] == kinds["price"] == kinds["ratio"] == "number"
    assert kinds["good"] == "boolean" and kinds["tags"] == "any"
    assert {kinds[name] for name in ("name", "day", "moment", "id")} == {"category"}


def test_many_rows_come_through_a_cursor_of_the_server(shop: str) -> None:
    """Rows beyond one chunk are neither lost nor read at once."""
    query = Query(f"SELECT i FROM generate_series(1, {CHUNK} + 1) AS i WHERE i % 2 = 1", shop)
    assert read(query)["i"].tolist() == list(range(1, CHUNK + 2, 2))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT nowhere FROM types", 'column "nowhere" does not exist'),
        ("SELECT FROM types", "gave no columns"),
        ("SELECT * FROM types WHERE n > 5", "gave no rows"),
        ("SELECT n, n FROM types", "names n twice"),
        ("DELETE FROM types RETURNING n", "DELETE"),
        ("SELECT nextval('counter')", "read-only"),
        ("SELECT 1 / (n - 2) FROM types ORDER BY n", "division by zero"),
    ],
)
def test_refused_queries(shop: str, query: str, told: str) -> None:
    """What gives no table is refused in the server's own words, and nothing is ever written."""
    engine = create_engine(shop)
    with engine.begin() as connection:
        connection.execute(text("CREATE SEQUENCE counter"))
    engine.dispose()
    with pytest.raises(InvalidInput, match=told):
        read(Query(query, shop))
    assert len(read(Query("SELECT * FROM types", shop))) == 2


def test_a_database_that_is_not_there(shop: str) -> None:
    """It may come later, so this is not the definition's fault."""
    with pytest.raises(Unavailable, match='database "elsewhere" does not exist'):
        read(Query("SELECT 1 AS a", shop.replace("/loopline?", "/elsewhere?")))
