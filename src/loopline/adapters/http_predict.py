"""The predict route over HTTP: read the body, submit to the batch, write the answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from loopline import codecs
from loopline.access import TRUSTED
from loopline.adapters.http_wire import Answer, Desk, Query
from loopline.errors import FieldError, InvalidInput, NotReady, TimedOut
from loopline.records import Prediction
from loopline.serving import Answered, Ask

PATIENCE = 3600.0
VERSION = Query("version", "integer", 1, 2**31 - 1, description="A version's number.")
QUERIES = (
    VERSION,
    Query("alias", "text", choices=("champion", "challenger", "previous")),
    Query("timeout", "number", 0.001, PATIENCE, description="Seconds until a 504."),
    Query("probabilities", "boolean", description="Add them, by class."),
)


async def predict(desk: Desk) -> Answer:
    """Predict one row or many; the header `Prediction-Id` or `ids` in the body name them."""
    model, query = desk.path["model"], desk.query
    value, text = await desk.value()
    value, ids = _take_ids(value, desk.header("prediction-id"))
    probabilities = query.get("probabilities", False)
    if probabilities:
        _check_probabilities(desk, model)
    limit = query.get("timeout") or desk.loop.settings.timeout
    ask = Ask(
        model,
        value,
        text,
        ids,
        query.get("version"),
        query.get("alias"),
        time.monotonic() + limit,
        desk.caller,
    )
    try:
        answered = await asyncio.wait_for(desk.loop.serving.submit(ask), limit)
    except TimeoutError:
        raise TimedOut(f"there was no answer within {limit:g} s") from None
    except NotReady as error:
        await _say_when(desk, model, error)
        raise
    return _render(answered, probabilities, _format(desk))


def _take_ids(value: Any, header: str | None) -> tuple[Any, list[Any] | None]:
    """Take the ids out of an envelope; what remains keeps its JSON Pointers."""
    if isinstance(value, dict) and value.keys() == {"inputs", "ids"}:
        ids = value["ids"]
        if not isinstance(ids, list):
            detail = "the ids are an array of texts, one for each row"
            raise InvalidInput(detail, fields=[FieldError("/ids", detail)])
        return {"inputs": value["inputs"]}, ids
    return value, None if header is None else [header]


def _check_probabilities(desk: Desk, model: str) -> None:
    record = desk.loop.serving.service(model).record
    if "predict_proba" not in record.capabilities:
        detail = f"model {model!r} does not give probabilities"
        raise InvalidInput(detail, fields=[FieldError("?probabilities", detail)])


async def _say_when(desk: Desk, model: str, error: NotReady) -> None:
    """Where a training is on its way, tell the caller to come back."""
    for state in ("running", "queued"):
        if error.retry_after is None:
            verb = desk.loop.jobs
            found = await desk.crossing.run(verb, model=model, state=state, caller=TRUSTED)
            if any(job["kind"] == "train" for job in found["jobs"]):
                error.retry_after = 2.0


def _format(desk: Desk) -> str:
    """The answer's content type: what is accepted, or else as the request came."""
    accept = desk.headers.get(b"accept", b"*/*")
    for kind, word in ((codecs.MSGPACK, b"msgpack"), (codecs.NDJSON, b"ndjson")):
        if word in accept or (accept == b"*/*" and kind == codecs.kind_of(_kind(desk))):
            return kind
    return codecs.JSON


def _kind(desk: Desk) -> str | None:
    return desk.header("content-type")


def _render(answered: Answered, probabilities: bool, kind: str) -> Answer:
    names = [class_name(each) for each in answered.classes or ()] if probabilities else None
    head = {"model": answered.model, "version": answered.version}
    shown = [_show(each, answered.version, names) for each in answered.predictions]
    if kind == codecs.NDJSON:
        return Answer(codecs.write([head | each for each in shown], kind), 200, kind)
    value = {**head, "predictions": shown} if answered.many else head | shown[0]
    body = msgspec.json.encode(value) if kind == codecs.JSON else codecs.write(value, kind)
    return Answer(body, 200, kind)


def _show(prediction: Prediction, version: int, names: list[str] | None) -> dict[str, Any]:
    shown = {"id": prediction.id, "prediction": prediction.output}
    if prediction.version != version:
        # The id was answered before, by another version, and that first answer stands.
        shown["version"] = prediction.version
    elif names is not None and prediction.probabilities is not None:
        shown["probabilities"] = dict(zip(names, prediction.probabilities, strict=True))
    return shown


def class_name(label: Any) -> str:
    """A class as the key of a JSON object."""
    return str(label).lower() if isinstance(label, bool) else str(label)
