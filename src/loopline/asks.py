"""What is asked of the hot path, who waits for the answers, and until when."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from loopline import access, codecs
from loopline.access import Caller
from loopline.errors import FieldError, InvalidInput, LooplineError, TimedOut
from loopline.records import Prediction, Record

logger = logging.getLogger("loopline.serving")

MAX_ID = 200


class Answered(Record, frozen=True, kw_only=True):
    """The answer to one request: one prediction per row, in the order of the rows."""

    model: str
    version: int
    predictions: tuple[Prediction, ...]
    many: bool
    classes: tuple[Any, ...] | None = None


class Ask(msgspec.Struct):
    """One request for predictions.

    `value` is whatever the schema's `parse` accepts; `text` says that it came as text (a form).
    An adapter that has not decoded its request hands it over as `body`, of content type `kind`.
    `deadline` is a reading of the monotonic clock, in seconds.
    """

    model: str
    value: Any = None
    text: bool = False
    ids: Sequence[str] | None = None
    version: int | None = None
    alias: str | None = None
    deadline: float | None = None
    caller: Caller = access.TRUSTED
    body: bytes | None = None
    kind: str = codecs.JSON


Answer = Answered | LooplineError
Span = tuple[int, int, int, bool]
"""A request's place in a batch: its number, its first row, the row after its last, and whether
it wants a list back."""


class Waiter(Protocol):
    """Somebody on the event loop who waits for the answer to a request."""

    ask: Ask

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: answered already, or hung up."""

    def settle(self, answer: Answer) -> None:
        """Take the answer, or the error."""


class Awaited:
    """A coroutine that waits."""

    __slots__ = ("ask", "future")

    def __init__(self, ask: Ask, future: asyncio.Future[Answered]) -> None:
        self.ask = ask
        self.future = future

    @property
    def gone(self) -> bool:
        """Whether it has its answer, or was cancelled."""
        return self.future.done()

    def settle(self, answer: Answer) -> None:
        """Let the coroutine go on."""
        if isinstance(answer, LooplineError):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Alarm:
    """Rings at the earliest deadline of a group of requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        self._loop = loop
        self._act = act
        self._timer: asyncio.TimerHandle | None = None

    def set(self, group: Sequence[Waiter]) -> None:
        """Wait for the next deadline among these."""
        self.cancel()
        if group:
            left = min(waiter.ask.deadline or far() for waiter in group) - time.monotonic()
            self._timer = self._loop.call_later(max(0.0, left), self._act)

    def cancel(self) -> None:
        """Do not ring any more."""
        if self._timer is not None:
            self._timer.cancel()


def far() -> float:
    """A deadline for those that have none: an hour from now."""
    return time.monotonic() + 3600.0


def grouped(waiting: list[Waiter]) -> dict[tuple[int | None, str | None], list[Waiter]]:
    """Those who still wait, by the version or the alias that they ask for."""
    groups: dict[Any, list[Waiter]] = {}
    for waiter in waiting:
        if not waiter.gone:
            groups.setdefault((waiter.ask.version, waiter.ask.alias), []).append(waiter)
    return groups


def settle_all(group: Sequence[Waiter], answers: Sequence[Answer]) -> None:
    """Give everybody who still waits their own answer."""
    for waiter, answer in zip(group, answers, strict=True):
        if not waiter.gone:
            try:
                waiter.settle(answer)
            except Exception:  # one that cannot be told must not keep the others from it
                logger.exception("an answer could not be delivered")


def refuse_all(group: Sequence[Waiter], error: LooplineError) -> None:
    """Give everybody who still waits this error."""
    settle_all(group, [error] * len(group))


def expire(waiter: Waiter) -> None:
    """Answer somebody whose deadline has come."""
    refuse_all([waiter], TimedOut("there was no answer before the deadline"))


def take_ids(value: Any, given: Sequence[str] | None) -> tuple[Any, Sequence[str] | None]:
    """Take the ids out of an envelope; what remains keeps its JSON Pointers."""
    if not isinstance(value, dict) or value.keys() != {"inputs", "ids"}:
        return value, given
    ids = value["ids"]
    if not isinstance(ids, list):
        raise InvalidInput.at("the ids are an array of texts, one for each row", "/ids")
    return {"inputs": value["inputs"]}, ids


def check_ids(ids: Sequence[str], rows: int) -> None:
    """Raise `InvalidInput` unless there is one usable id for each row."""
    errors: list[FieldError] = []
    if len(ids) != rows:
        errors.append(FieldError("/ids", f"{len(ids)} ids for {rows} rows"))
    seen: set[str] = set()
    for index, id in enumerate(ids):
        if not isinstance(id, str) or not 0 < len(id) <= MAX_ID:
            errors.append(FieldError(f"/ids/{index}", f"an id is text of 1 to {MAX_ID} characters"))
        elif id in seen:
            errors.append(FieldError(f"/ids/{index}", f"{id!r} is given twice"))
        else:
            seen.add(id)
    if errors:
        raise InvalidInput("the ids do not fit the rows", fields=errors)
