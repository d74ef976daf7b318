"""What the event log holds: how facts are written as events, and read back.

Topics are named after the model: `{model}.predictions`, `{model}.outcomes`, `{model}.examples`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from loopline.errors import FieldError, InvalidInput
from loopline.records import Event, Prediction, Record, Row, new_id
from loopline.schema import Schema

LEARNED = "learned"
"""The receipt of a row handed to `learn`."""
TIMEOUT = "timeout"
"""The source of an outcome that the maturity window made."""


class OutcomeFact(Record, frozen=True, kw_only=True):
    """What an event of the outcomes topic holds."""

    id: str
    value: Any
    at: float | None
    arrival: float
    source: str = "outcome"


class ExampleFact(Record, frozen=True, kw_only=True):
    """What an event of the examples topic holds: one row handed to `learn`."""

    row: Row
    label: Any


class PredictionFact(msgspec.Struct, frozen=True, array_like=True):
    """What an event of the predictions topic holds; the id is its key and the time its own."""

    version: int
    row: tuple[Any, ...]
    output: Any
    probabilities: tuple[float, ...] | None = None


_encode = msgspec.msgpack.Encoder().encode
read_outcome = msgspec.msgpack.Decoder(OutcomeFact).decode
read_example = msgspec.msgpack.Decoder(ExampleFact).decode
_prediction = msgspec.msgpack.Decoder(PredictionFact).decode


def predictions_topic(model: str) -> str:
    """The topic of a model's predictions."""
    return f"{model}.predictions"


def outcomes_topic(model: str) -> str:
    """The topic of a model's outcomes."""
    return f"{model}.outcomes"


def examples_topic(model: str) -> str:
    """The topic of the rows handed to a model's `learn`."""
    return f"{model}.examples"


def prediction_events(model: str, predictions: Sequence[Prediction]) -> list[Event]:
    """Write a model's predictions as events of the log."""
    topic = predictions_topic(model)
    return [
        Event(
            topic=topic,
            key=each.id,
            at=each.at,
            value=_encode(PredictionFact(each.version, each.row, each.output, each.probabilities)),
        )
        for each in predictions
    ]


def read_prediction(model: str, event: Event) -> Prediction:
    """Read a prediction back from its event."""
    fact = _prediction(event.value)
    return Prediction(
        id=event.key,
        model=model,
        version=fact.version,
        output=fact.output,
        at=event.at,
        row=fact.row,
        probabilities=fact.probabilities,
    )


def outcome_event(model: str, fact: OutcomeFact, key: str | None = None) -> Event:
    """Write an outcome as an event; the same `key` twice is one event."""
    return Event(
        topic=outcomes_topic(model), key=key or new_id(), at=fact.arrival, value=_encode(fact)
    )


def example_event(model: str, row: Row, label: Any, at: float, key: str) -> Event:
    """Write a labelled row handed to `learn` as an event."""
    value = _encode(ExampleFact(row=row, label=label))
    return Event(topic=examples_topic(model), key=key, at=at, value=value)


def outcome_facts(schema: Schema, items: Sequence[Any], text: bool = False) -> list[OutcomeFact]:
    """Read the outcomes of a request: all of them, or none.

    Args:
        schema: of the model they are for; its output says what a value may be.
        items: mappings with `id`, `outcome` and perhaps `at`.
        text: the values came as text.

    Raises:
        InvalidInput: names everything that is not right, in all items at once.
    """
    now = time.time()
    facts: list[OutcomeFact] = []
    errors: list[FieldError] = []
    for index, item in enumerate(items):
        try:
            facts.append(_outcome_fact(schema, item, text, now, f"/{index}"))
        except InvalidInput as error:
            errors.extend(error.fields)
    if errors or not items:
        raise InvalidInput("no outcome was taken: some are not right", fields=errors)
    return facts


def _outcome_fact(schema: Schema, item: Any, text: bool, now: float, pointer: str) -> OutcomeFact:
    if not isinstance(item, dict):
        raise InvalidInput.at('an outcome is an object: {"id": …, "outcome": …}', pointer)
    errors = [
        FieldError(f"{pointer}/{name}", "is not a field of an outcome: id, outcome, at")
        for name in item.keys() - {"id", "outcome", "at"}
    ]
    id, at, value = item.get("id"), None, None
    if not isinstance(id, str) or not 0 < len(id) <= 200:
        errors.append(FieldError(f"{pointer}/id", "the prediction's id is required, as text"))
    try:
        at = parse_time(item.get("at"), f"{pointer}/at")
    except InvalidInput as error:
        errors.extend(error.fields)
    if "outcome" not in item:
        errors.append(FieldError(f"{pointer}/outcome", "is required"))
    else:
        try:
            value = schema.label(item["outcome"], text=text, pointer=f"{pointer}/outcome")
        except InvalidInput as error:
            errors.extend(error.fields)
    if errors:
        raise InvalidInput("the outcome is not right", fields=errors)
    return OutcomeFact(id=str(id), value=value, at=at, arrival=now)


def parse_time(value: Any, pointer: str) -> float | None:
    """Read a moment: seconds since the epoch, or ISO 8601 (UTC where no zone is given).

    Raises:
        InvalidInput: it is neither, pointing at `pointer`.
    """
    if value is None:
        return None
    try:
        moment = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        moment = _iso(value) if isinstance(value, str) else math.nan
    if not abs(moment) < 1e11:
        told = f"{value!r} is not a time: give seconds since 1970 or ISO 8601"
        raise InvalidInput.at(told, pointer)
    return moment


def _iso(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
