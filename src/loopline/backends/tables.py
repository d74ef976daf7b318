"""The store's tables, and how records become their rows.

A record's table has a column for each of its fields: scalars as they are, everything nested as
JSON text. Examples and outcomes, of which there are many, are one MessagePack array behind their
key columns. The migrations make the tables, and the indexes, which are named only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Any, get_args

from msgspec.structs import fields
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from loopline.backends.encoding import from_text, pack, to_text, unpack
from loopline.records import (
    Aliases,
    Books,
    Dataset,
    Decision,
    Epoch,
    Example,
    Job,
    JobEvent,
    JobState,
    ModelRecord,
    OutcomeState,
    OutcomeStatus,
    Record,
    Tally,
    Token,
    Version,
    WorkerRecord,
)


class Json(TypeDecorator[Any]):
    """A nested field as JSON text; NULL where it is None."""

    impl = Text
    cache_ok = True

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Write the field."""
        return None if value is None else to_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Read the field."""
        return None if value is None else from_text(value, self.shape)


class State(TypeDecorator[JobState]):
    """A job's state as its word."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: JobState | None, dialect: Dialect) -> str | None:
        """Write the word."""
        return None if value is None else JobState(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> JobState | None:
        """Read the word."""
        return None if value is None else JobState(value)


# PostgreSQL would sort texts by its locale; "C" is the order of SQLite and of Python.
TEXT = Text(collation="C").with_variant(Text(), "sqlite")
INT = BigInteger().with_variant(Integer(), "sqlite")
_SCALARS: dict[Any, TypeEngine[Any]] = {
    str: TEXT,
    int: INT,
    float: Double(),
    bool: Boolean(),
    JobState: State(),
}

metadata = MetaData()


def _columns(kind: type[Record], key: Sequence[str]) -> list[Column[Any]]:
    """A column for each field of a record."""
    columns = []
    for field in fields(kind):
        rest = [part for part in get_args(field.type) if part is not NoneType]
        optional = NoneType in get_args(field.type)
        shape = rest[0] if optional and len(rest) == 1 else field.type
        column_type = _SCALARS.get(shape) or Json(shape)
        columns.append(
            Column(field.name, column_type, primary_key=field.name in key, nullable=optional)
        )
    return columns


def _table(name: str, kind: type[Record], key: str, *more: Column[Any]) -> Table:
    """A record's table: `key` names the primary key's fields, `more` are columns beside them."""
    return Table(name, metadata, *more, *_columns(kind, key.split()))


def _model() -> Column[Any]:
    return Column("model", TEXT, primary_key=True)


meta = Table(
    "meta",
    metadata,
    Column("name", TEXT, primary_key=True),
    Column("value", INT, nullable=False),
)
models = _table("models", ModelRecord, "name")
versions = _table("versions", Version, "model number")
aliases = _table("aliases", Aliases, "", _model())
decisions = _table("decisions", Decision, "model number")
datasets = _table("datasets", Dataset, "digest")
books = _table("books", Books, "model", Column("position", TEXT, nullable=False))
outcomes = Table(
    "outcomes",
    metadata,
    _model(),
    Column("id", TEXT, primary_key=True),
    Column("status", TEXT, nullable=False),
    Column("arrival", Double, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
examples = Table(
    "examples",
    metadata,
    _model(),
    Column("seq", INT, primary_key=True),
    Column("id", TEXT),
    Column("body", LargeBinary, nullable=False),
)
tallies = _table("tallies", Tally, "version cohort", _model())
epochs = _table("epochs", Epoch, "model k")
receipts = Table(
    "receipts",
    metadata,
    Column("key", TEXT, primary_key=True),
    Column("status", TEXT, nullable=False),
    Column("at", Double, nullable=False),
)
jobs = _table(
    "jobs",
    Job,
    "id",
    Column("key", TEXT, unique=True),
    Column("request", TEXT),
    Column("ended_attempt", INT),
    Column("ended_state", State),
)
job_events = _table("job_events", JobEvent, "seq")
workers = _table("workers", WorkerRecord, "id")
tokens = _table("tokens", Token, "name")


@cache
def columns_of(table: Table, kind: type[Record]) -> tuple[ColumnElement[Any], ...]:
    """The columns of `table` that are fields of the record type `kind`."""
    return tuple(table.c[name] for name in kind.__struct_fields__)


def values_of(record: Record) -> dict[str, Any]:
    """A record's fields by name, for a table with one column per field."""
    return {name: getattr(record, name) for name in record.__struct_fields__}


# The order of the packed arrays. They are stored: a new field goes to the end, none ever leaves.
_EXAMPLE = tuple(
    "row label at source matched version output probabilities predicted_at late".split()
)
_OUTCOME = ("value", "revision", "at", "seq")
_example_body = attrgetter(*_EXAMPLE)
_outcome_body = attrgetter(*_OUTCOME)


def example_row(example: Example) -> dict[str, Any]:
    """An example as a row of `examples`."""
    body = pack(_example_body(example))
    return {"model": example.model, "seq": example.seq, "id": example.id, "body": body}


def read_example(row: Sequence[Any]) -> Example:
    """An example from (model, seq, id, body)."""
    model, seq, id, body = row
    values = dict(zip(_EXAMPLE, unpack(body), strict=False))
    values["row"] = tuple(values["row"])
    if values["probabilities"] is not None:
        values["probabilities"] = tuple(values["probabilities"])
    return Example(model=model, seq=seq, id=id, **values)


def outcome_row(state: OutcomeState) -> dict[str, Any]:
    """An outcome's state as a row of `outcomes`."""
    return {
        "model": state.model,
        "id": state.id,
        "status": state.status.value,
        "arrival": state.arrival,
        "body": pack(_outcome_body(state)),
    }


def read_outcome(row: Sequence[Any]) -> OutcomeState:
    """An outcome's state from (model, id, status, arrival, body)."""
    model, id, status, arrival, body = row
    values = dict(zip(_OUTCOME, unpack(body), strict=False))
    return OutcomeState(model=model, id=id, status=OutcomeStatus(status), arrival=arrival, **values)
