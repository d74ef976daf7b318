"""The first tables."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, Text, text
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written as name:type, with a star behind the primary key's columns and `?` where NULL may stand.
_TABLES = {
    "meta": "name:text* value:int",
    "models": """name:text* schema:text capabilities:text task:text description:text recipe:text?
        dataset:text? target:text? policy:text? options:text source:text created:real
        revision:int""",
    "versions": """model:text* number:int* artifact:text created:real metrics:text parameters:text
        classes:text? data:text? rows:int upto:int cursor:text? code:text environment:text job:text?
        report:text? source:text""",
    "aliases": "model:text* champion:int? challenger:int? previous:int? epoch:int",
    "decisions": """model:text* number:int* verdict:text reason:text at:real candidate:int?
        champion:int? promoted:bool by:text evidence:text job:text?""",
    "datasets": "digest:text* columns:text rows:int size:int created:real name:text",
    "books": "model:text* position:text seq:int matched:int examples:int moments:text",
    "outcomes": "model:text* id:text* status:text arrival:real body:blob",
    "examples": "model:text* seq:int* id:text? body:blob",
    "tallies": "model:text* version:int* cohort:int* sums:text",
    "epochs": "model:text* k:int* upto:int at:real state:text job:text?",
    "receipts": "key:text* status:text at:real",
    "jobs": """id:text* kind:text model:text? payload:text state:text attempt:int priority:int
        created:real available:real started:real? finished:real? worker:text? lease_until:real?
        failures:int losses:int max_failures:int max_losses:int cancel_requested:bool progress:text?
        result:text? error:text? reason:text tags:text key:text? request:text? ended_attempt:int?
        ended_state:text?""",
    "job_events": "seq:int* job:text kind:text at:real data:text",
    "workers": "id:text* host:text pid:int tags:text started:real seen:real job:text?",
    "tokens": "name:text* hash:text scopes:text created:real revoked:bool",
}
_OPTIONS: dict[str, dict[str, bool]] = {
    "outcomes": {"sqlite_with_rowid": False},
    "examples": {"sqlite_with_rowid": False},
    "receipts": {"sqlite_with_rowid": False},
    # A follower remembers the last `seq` it saw, so a deleted one must never be given out again.
    "job_events": {"sqlite_autoincrement": True},
}
_INDEXES = {
    "outcomes_waiting": ("outcomes", "model, arrival", "status = 'waiting'"),
    "examples_id": ("examples", "model, id", "id IS NOT NULL"),
    "receipts_at": ("receipts", "at", None),
    "jobs_next": ("jobs", "state, priority DESC, created, id", None),
    "jobs_model": ("jobs", "model, created", None),
    "jobs_created": ("jobs", "created, id", None),
    "job_events_job": ("job_events", "job, seq", None),
}
_TYPES: dict[str, TypeEngine[Any]] = {
    "text": Text(collation="C").with_variant(Text(), "sqlite"),
    "int": BigInteger().with_variant(Integer(), "sqlite"),
    "real": Double(),
    "bool": Boolean(),
    "blob": LargeBinary(),
}


def upgrade() -> None:
    """Make them."""
    for name, columns in _TABLES.items():
        op.create_table(name, *map(_column, columns.split()), **_OPTIONS.get(name, {}))
    op.create_index("jobs_key", "jobs", ["key"], unique=True)
    for name, (table, keys, where) in _INDEXES.items():
        some = None if where is None else text(where)
        parts = [text(key) for key in keys.split(", ")]
        op.create_index(name, table, parts, sqlite_where=some, postgresql_where=some)
    op.execute("INSERT INTO meta (name, value) VALUES ('revision', 0)")


def _column(said: str) -> Column[Any]:
    name, kind = said.split(":")
    key, optional = kind.endswith("*"), kind.endswith("?")
    return Column(name, _TYPES[kind.rstrip("*?")], primary_key=key, nullable=optional)
