"""The predict route, whether it is asked for all rows at once or for a stream of them.

NDJSON in and out is a stream: rows are read as they come and answered a chunk at a time, one line
for each, in order and in constant memory, because nothing more is read before the answers are
taken. A bad row has its error in its place, and the others their answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec

from loopline import access, codecs
from loopline.adapters import http_predict
from loopline.adapters.http_predict import (
    answer_kind,
    check_probabilities,
    limit_of,
    lines,
    say_when,
)
from loopline.adapters.http_wire import Answer, Desk, Headers, problem, too_large
from loopline.asks import Answered, Ask, take_ids
from loopline.errors import (
    FieldError,
    InvalidInput,
    LooplineError,
    ModelFailed,
    NotReady,
    Overloaded,
)
from loopline.records import new_id

CHUNK = 500
"""Rows answered together at most."""
PAUSE = 0.02
"""Seconds between two attempts to queue a chunk while the model's queue is full."""
Table = dict[str, Any]
LIVE = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def predict(desk: Desk) -> Answer:
    """Predict one row, many, or a stream; the header `Prediction-Id` or `ids` name them."""
    if not is_stream(desk.headers):
        return await http_predict.predict(desk)
    desk.kind()
    model, query, loop = desk.path["model"], desk.query, desk.loop
    access.check(desk.caller, "predict")
    check_probabilities(loop, model, query)
    try:
        which = (model, query.get("version"), query.get("alias"))
        await desk.crossing.run(loop.serving.loaded, *which)
    except NotReady as error:
        await say_when(desk, model, error)
        raise
    return Answer(_stream(desk), 200, codecs.NDJSON, dict(LIVE))


def is_stream(headers: Headers) -> bool:
    """Whether rows come as NDJSON, and answers are to leave so."""
    kind = codecs.kind_of(headers.get(b"content-type", b"").decode("latin-1"))
    return kind == codecs.NDJSON == answer_kind(headers, kind)


class _Line(NamedTuple):
    """A line of the request, counted from 1: the row that it holds, or why it holds none."""

    number: int
    row: Any
    id: str | None = None
    error: LooplineError | None = None


async def _stream(desk: Desk) -> AsyncIterator[bytes]:
    async for chunk in _chunks(desk):
        yield b"".join([msgspec.json.encode(told) + b"\n" for told in await _answer(desk, chunk)])


async def _chunks(desk: Desk) -> AsyncIterator[list[_Line]]:
    """The request's lines, as many as are there at a time; blank ones are skipped."""
    held, number, more, most = bytearray(), 0, True, desk.loop.settings.max_body
    while more:
        message = await desk.receive()
        if message["type"] == "http.disconnect":
            return
        more, part = message.get("more_body", False), message.get("body", b"")
        held += part if more else part + b"\n"
        if not more or b"\n" in part:
            *whole, held = held.split(b"\n")
            read = [_read(number + at, bytes(text)) for at, text in enumerate(whole, 1)]
            number += len(whole)
            found = [line for line in read if line is not None]
            for start in range(0, len(found), CHUNK):
                yield found[start : start + CHUNK]
        if len(held) > most:
            yield [_Line(number + 1, None, error=too_large(most))]
            return


def _read(number: int, text: bytes) -> _Line | None:
    if not text or text.isspace():
        return None
    try:
        row, ids = take_ids(codecs.read_json(text), None)
        if ids is None:
            return _Line(number, row)
        if len(ids) != 1:
            raise InvalidInput.at("a line has one row, and so one id", "/ids")
        return _Line(number, row["inputs"], ids[0])
    except LooplineError as error:
        return _Line(number, None, error=error)


async def _answer(desk: Desk, chunk: Sequence[_Line]) -> list[Table]:
    """What each line is answered with, in order."""
    good = [line for line in chunk if line.error is None]
    answers = iter(await _predict(desk, good) if good else ())
    told = [(line.number, line.error or next(answers)) for line in chunk]
    return [
        {"line": number, "error": _shown(desk, each)} if isinstance(each, Exception) else each
        for number, each in told
    ]


async def _predict(desk: Desk, good: Sequence[_Line]) -> list[Table | Exception]:
    """Predict all rows by one request; where that fails for a row's sake, by one for each."""
    try:
        return [*lines(await _submit(desk, good), desk.query)]
    except (InvalidInput, ModelFailed) as error:
        if len(good) == 1:
            return [_own(error)]
        # Those of one turn of the event loop still are one call of the model.
        alone = await asyncio.gather(*(_predict(desk, [line]) for line in good))
        return [each for part in alone for each in part]
    except Exception as error:  # whatever it is, every line has an answer
        return [error] * len(good)


async def _submit(desk: Desk, good: Sequence[_Line]) -> Answered:
    """Queue some rows, and wait while the queue is full: the client waits with us."""
    named = any(line.id is not None for line in good)
    ask = Ask(
        desk.path["model"],
        [line.row for line in good],
        ids=[new_id() if line.id is None else line.id for line in good] if named else None,
        version=desk.query.get("version"),
        alias=desk.query.get("alias"),
        deadline=time.monotonic() + limit_of(desk.loop, desk.query),
        caller=desk.caller,
    )
    while True:
        try:
            return await desk.loop.serving.submit(ask)
        except Overloaded:
            if time.monotonic() > (ask.deadline or 0.0):
                raise
            await asyncio.sleep(PAUSE)


def _own(error: LooplineError) -> LooplineError:
    """The error of the only row, whose pointers are into that row."""
    if not error.fields:
        return error
    fields = [FieldError(each.pointer.removeprefix("/0"), each.detail) for each in error.fields]
    told = "; ".join(f"{each.pointer or 'the row'}: {each.detail}" for each in fields[:3])
    return InvalidInput(told, fields=fields)


def _shown(desk: Desk, error: Exception) -> msgspec.Raw:
    answer = problem(error, desk.instance, desk.loop.settings.debug)
    assert isinstance(answer.body, bytes)
    return msgspec.Raw(answer.body)
