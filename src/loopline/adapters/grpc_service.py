"""Our own gRPC service of a model: parse, one verb of the loop, render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from loopline.adapters.grpc_call import Call, Method, NoSuchMethod
from loopline.adapters.grpc_messages import Contract, parse, plain, put
from loopline.adapters.status import ENDED, job_error
from loopline.asks import Answered
from loopline.errors import InvalidInput, LooplineError, WrongState
from loopline.loop import Loop
from loopline.records import Prediction


class Contracts:
    """The contracts of all models, each made anew when its model has changed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._known: dict[str, Contract] = {}

    def of(self, model: str) -> Contract:
        """The contract of a model.

        Raises:
            UnknownModel: there is no such model.
        """
        record, known = self._loop.serving.service(model).record, self._known.get(model)
        if known is not None and known.record is record:
            return known
        if known is None or not known.fits(record):
            known = self._known[model] = Contract(record)
        known.record = record
        return known

    def method(self, model: str, name: str) -> Method:
        """A method of a model's service, as the model is now.

        Raises:
            UnknownModel: there is no such model.
            WrongState: this model cannot do that.
            NoSuchMethod: no model can.
        """
        contract = self.of(model)
        if name not in _VERBS:
            raise NoSuchMethod(f"models have no method {name[:50]!r}")
        if name not in contract.takes:
            missing = "fit method" if name == "Train" else "target column"
            raise WrongState(f"model {model!r} has no {missing}, so it has no {name}")
        return Method(contract.takes[name], partial(_VERBS[name], contract))


async def predict(contract: Contract, call: Call, request: Any) -> Any:
    """Predict one row."""
    wanted, ids = _wanted(contract, request), None
    if request.HasField("id"):
        ids = [request.id]
    row = contract.row(request.row)
    # A row of any names may look like a request for many.
    value = [row] if contract.schema.open else row
    answered = await call.predict(contract.record.name, value, ids, **wanted)
    return _shown(contract, answered.predictions[0], answered, request.probabilities)


async def predict_many(contract: Contract, call: Call, request: Any) -> Any:
    """Predict many rows, all of them or none."""
    wanted, ids = _wanted(contract, request), list(request.ids) or None
    size = request.ByteSize()
    rows = await call.work(contract.rows, request.rows, size=size)
    answered = await call.predict(contract.record.name, rows, ids, **wanted)

    def show() -> Any:
        told = contract.message("Predictions", model=answered.model, version=answered.version)
        for each in answered.predictions:
            told.predictions.append(_shown(contract, each, answered, request.probabilities))
        return told

    return await call.work(show, size=size)


def predict_stream(
    contract: Contract, call: Call, requests: AsyncIterator[bytes]
) -> AsyncIterator[Any]:
    """Predict rows as they come; one that is refused does not end the stream."""

    async def answer(request: bytes) -> Any:
        reply = contract.message("PredictReply")
        try:
            found = await predict(contract, call, parse(contract.takes["PredictStream"], request))
            reply.prediction.CopyFrom(found)
        except LooplineError as error:
            reply.problem.SetInParent()
            reply.problem.code, reply.problem.detail = error.code, error.detail
            for each in error.fields:
                reply.problem.errors.add(pointer=each.pointer, detail=each.detail)
            put(reply.problem, "retry_after", error.retry_after)
        return reply

    return call.each(requests, answer)


def _wanted(contract: Contract, request: Any) -> dict[str, Any]:
    """The version or the alias that a request names, after a look whether it can be had."""
    if request.probabilities and "predict_proba" not in contract.record.capabilities:
        told = f"model {contract.record.name!r} does not give probabilities"
        raise InvalidInput.at(told, "/probabilities")
    return {name: getattr(request, name) for name in ("version", "alias") if request.HasField(name)}


def _shown(contract: Contract, found: Prediction, answered: Answered, chances: bool) -> Any:
    told = contract.message("Prediction", id=found.id, version=found.version, model=found.model)
    put(told, "prediction", found.output)
    if chances and found.probabilities is not None and found.version == answered.version:
        for label, chance in zip(answered.classes or (), found.probabilities, strict=True):
            name = str(label).lower() if isinstance(label, bool) else str(label)
            told.probabilities[name] = chance
    return told


async def learn(contract: Contract, call: Call, request: Any) -> Any:
    """Add labelled rows to the data set: all of them, or none."""
    rows = await call.work(contract.rows, request.rows, True, size=request.ByteSize())
    found = await call.run(call.loop.learn, contract.record.name, rows)
    told = contract.message("LearnReply", accepted=found["accepted"], rows=found["rows"])
    for name, summary in (found["summary"] or {}).items():
        for key, value in summary.items():
            put(told.summary[name], key, value)
    return told


async def outcome(contract: Contract, call: Call, request: Any) -> Any:
    """Tell what became true, by prediction id."""
    items = [
        {field.name: plain(value) for field, value in each.ListFields()}
        for each in request.outcomes
    ]
    found = await call.run(call.loop.outcome, contract.record.name, items)
    results = found.pop("results")
    return contract.message("OutcomeReply", results=results, counts=found)


async def score(contract: Contract, call: Call, request: Any) -> Any:
    """Score a version on these rows, or else on those it was not trained on."""
    rows = await call.work(contract.rows, request.rows, True, size=request.ByteSize()) or None
    version = request.version if request.HasField("version") else None
    found = await call.run(call.loop.score, contract.record.name, rows, version=version)
    del found["model"]
    return contract.message("ScoreReply", **found)


async def train(contract: Contract, call: Call, request: Any) -> Any:
    """Train on everything known now, and wait for the version if that is wanted."""
    model, verbs = contract.record.name, call.loop
    parameters, reason = plain(request.parameters) or None, request.reason or "by hand"
    job = await call.run(verbs.train, model, parameters=parameters, reason=reason)
    until, pause = time.monotonic() + request.wait, 0.05
    while True:
        shown = await call.run(verbs.job, job.id)
        left = until - time.monotonic()
        if shown["state"] in ENDED or left <= 0:
            break
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, 0.25)
    if shown["state"] == "failed":
        raise job_error(shown["error"] or {})
    result = shown["result"] or {}
    told = contract.message("TrainReply", job=job.id, state=shown["state"])
    put(told, "version", result.get("version"))
    told.metrics.update(result.get("metrics") or {})
    return told


async def describe(contract: Contract, call: Call, request: Any) -> Any:
    """Everything about a model: schema, capabilities, aliases, policy, data, readiness."""
    return contract.struct(await call.run(call.loop.describe, contract.record.name))


_VERBS = {
    "Predict": predict,
    "PredictMany": predict_many,
    "PredictStream": predict_stream,
    "Learn": learn,
    "Outcome": outcome,
    "Score": score,
    "Train": train,
    "Describe": describe,
}
