"""The predict route over HTTP: from a request's head and body to the batch, and its answer back.

`predict` is the route of the ASGI application. `Express` is the same for the fast lane, in front
of it: it takes the plain requests, which nearly all are, and leaves the rest to the application.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from loopline import codecs
from loopline.access import TRUSTED
from loopline.adapters.http_wire import (
    Answer,
    Desk,
    Headers,
    Query,
    bearer,
    inside,
    problem,
    read_query,
    request_id,
    too_large,
)
from loopline.adapters.lane import Held, Request
from loopline.asks import Answer as Said
from loopline.asks import Answered, Ask
from loopline.errors import InvalidInput, LooplineError, NotReady
from loopline.loop import Loop
from loopline.records import Prediction

PATIENCE = 3600.0
VERSION = Query("version", "integer", 1, 2**31 - 1, description="A version's number.")
QUERIES = (
    VERSION,
    Query("alias", "text", choices=("champion", "challenger", "previous")),
    Query("timeout", "number", 0.001, PATIENCE, description="Seconds until a 504."),
    Query("probabilities", "boolean", description="Add them, by class."),
)
ROUTE = re.compile(r"/v1/models/(?P<model>[^/]+)/predict")
_MOST_PATHS = 1000
_PLAIN = frozenset({b"application/json", b"application/json; charset=utf-8"})
_ANY = frozenset({b"*/*", b"application/json"})

_encode = msgspec.json.Encoder().encode

Options = dict[str, Any]


async def predict(desk: Desk) -> Answer:
    """Predict one row or many; the header `Prediction-Id` or `ids` in the body name them."""
    model = desk.path["model"]
    check_probabilities(desk.loop, model, desk.query)
    ask = Ask(
        model,
        ids=_ids(desk.headers),
        version=desk.query.get("version"),
        alias=desk.query.get("alias"),
        deadline=time.monotonic() + limit_of(desk.loop, desk.query),
        caller=desk.caller,
        kind=desk.kind(),
    )
    ask.body = await desk.body()
    try:
        answered = await desk.loop.serving.submit(ask)
    except NotReady as error:
        await say_when(desk, model, error)
        raise
    return _render(answered, desk.query, answer_kind(desk.headers, ask.kind))


def _ids(headers: Headers) -> list[str] | None:
    """The id that the head of a request for one row gives it."""
    id = headers.get(b"prediction-id")
    return None if id is None else [id.decode("latin-1")]


def limit_of(loop: Loop, query: Options) -> float:
    """How many seconds the answer may take."""
    limit: float = query.get("timeout") or loop.settings.timeout
    return limit


def check_probabilities(loop: Loop, model: str, query: Options) -> None:
    """Refuse the wish for probabilities where the model has none."""
    if not query.get("probabilities"):
        return
    if "predict_proba" not in loop.serving.service(model).record.capabilities:
        raise InvalidInput.at(f"model {model!r} does not give probabilities", "?probabilities")


async def say_when(desk: Desk, model: str, error: NotReady) -> None:
    """Where a training is on its way, tell the caller to come back."""
    for state in ("running", "queued"):
        if error.retry_after is None:
            verb = desk.loop.jobs
            found = await desk.crossing.run(verb, model=model, state=state, caller=TRUSTED)
            if any(job["kind"] == "train" for job in found["jobs"]):
                error.retry_after = 2.0


def answer_kind(headers: Headers, kind: str) -> str:
    """The answer's content type: what is accepted, or else as the request came."""
    accept = headers.get(b"accept", b"*/*")
    for each, word in ((codecs.MSGPACK, b"msgpack"), (codecs.NDJSON, b"ndjson")):
        if word in accept or (accept == b"*/*" and each == kind):
            return each
    return codecs.JSON


def _render(answered: Answered, query: Options, kind: str) -> Answer:
    if kind == codecs.NDJSON:
        return Answer(codecs.write(lines(answered, query), kind), 200, kind)
    value = told(answered, query)
    body = _encode(value) if kind == codecs.JSON else codecs.write(value, kind)
    return Answer(body, 200, kind)


def told(answered: Answered, query: Options) -> dict[str, Any]:
    """An answer as plain data: one prediction, or the list of many."""
    head = {"model": answered.model, "version": answered.version}
    if answered.many:
        return {**head, "predictions": _shown(answered, query)}
    return head | _shown(answered, query)[0]


def lines(answered: Answered, query: Options) -> list[dict[str, Any]]:
    """An answer as plain data that stands alone for each row."""
    head = {"model": answered.model, "version": answered.version}
    return [head | each for each in _shown(answered, query)]


def _shown(answered: Answered, query: Options) -> list[dict[str, Any]]:
    names = None
    if query.get("probabilities"):
        names = [class_name(each) for each in answered.classes or ()]
    return [_show(each, answered.version, names) for each in answered.predictions]


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


class Express:
    """Predictions for the fast lane.

    Args:
        loop: whose verb it is.
        kinds: the heads of the routes that are taken.
    """

    def __init__(self, loop: Loop, *kinds: type[PredictHead]) -> None:
        self.loop = loop
        self.kinds = kinds or (PredictHead,)
        self._models: dict[bytes, tuple[type[PredictHead], re.Match[str]]] = {}

    def admit(self, url: bytes, held: Held) -> PredictHead | None:
        """Understand a POST whose head is plain; see `lane.Admit`.

        What needs another content type than JSON, or an answer from somewhere else than the
        batch, is left to the application, and so is every head that is wrong.
        """
        path, _, raw = url.partition(b"?")
        found = self._models.get(path) or self._route(path)
        if found is None or b"#" in url:
            return None
        (kind, match), headers = found, dict(held)
        length = headers.get(b"content-length", b"0")
        if (
            b"origin" in headers
            or b"content-encoding" in headers
            or not length.isdigit()
            or int(length) > self.loop.settings.max_body
            or not kind.plain(headers)
        ):
            return None
        try:
            return kind(self.loop, match, read_query(raw, kind.queries), headers)
        except LooplineError:
            return None

    def _route(self, path: bytes) -> tuple[type[PredictHead], re.Match[str]] | None:
        """The route that a path is, found once and then remembered if its model is served."""
        if not path.startswith(b"/") or b"%" in path:
            return None
        inner = inside(path.decode("latin-1"), self.loop.settings.root_path.rstrip("/"))
        for kind in self.kinds:
            match = kind.route.fullmatch(inner)
            if match is not None and self.loop.serving.can_answer(match["model"]):
                if len(self._models) >= _MOST_PATHS:
                    self._models.clear()
                return self._models.setdefault(path, (kind, match))
        return None


class Waiting(Request):
    """One request for predictions in the lane, waiting for its batch."""

    __slots__ = ("ask", "head")

    def __init__(self, head: PredictHead, ask: Ask) -> None:
        super().__init__(head.loop.settings.max_body)
        self.head = head
        self.ask = ask

    def start(self) -> None:
        self.ask.deadline = time.monotonic() + self.head.limit
        super().start()

    def read(self, body: bytes) -> None:
        """Put what the body asks into `ask`."""
        self.ask.body = body

    def render(self, answered: Answered) -> Answer:
        """The answer in the words of the route."""
        return _render(answered, self.head.query, codecs.JSON)

    def complete(self) -> None:
        body, self.body = bytes(self.body), b""
        try:
            self.read(body)
            self.head.loop.serving.enqueue(self)
        except Exception as error:
            self.settle(error)

    def refuse(self) -> None:
        self.settle(too_large(self.limit))

    def settle(self, said: Said | Exception) -> None:
        """Write the answer, or the problem."""
        head = self.head
        try:
            if isinstance(said, Exception):
                raise said
            answer = self.render(said)
        except Exception as error:  # the same way as any route's
            answer = head.refusal(error, request_id(head.headers), head.loop.settings.debug)
        assert isinstance(answer.body, bytes)
        self.ask.body = self.ask.value = None
        self.reply(answer.status, answer.media_type, answer.body, answer.headers)


class PredictHead:
    """The head of a request for predictions, as of the route `predict`."""

    __slots__ = ("alias", "headers", "ids", "limit", "loop", "model", "query", "token", "version")
    route = ROUTE
    queries: Sequence[Query] = QUERIES
    waiting: type[Waiting] = Waiting
    refusal: Callable[[Exception, str, bool], Answer] = staticmethod(problem)

    def __init__(self, loop: Loop, match: re.Match[str], query: Options, headers: Headers) -> None:
        self.loop = loop
        self.model = match["model"]
        self.query = query
        self.headers = headers
        self.token = bearer(headers)
        self.ids = _ids(headers)
        self.limit = limit_of(loop, query)
        self.version: int | None = query.get("version")
        self.alias: str | None = query.get("alias")

    @classmethod
    def plain(cls, headers: Headers) -> bool:
        """Whether JSON came, and may be the answer."""
        kind = headers.get(b"content-type")
        return (kind is None or kind in _PLAIN) and headers.get(b"accept", b"*/*") in _ANY

    def open(self) -> Waiting | None:
        """Take a request, unless the application has to look closer at who asks and for what."""
        loop = self.loop
        caller = loop.access.recall(self.token)
        if caller is None or not loop.serving.can_answer(self.model):
            return None
        if self.query:
            try:
                check_probabilities(loop, self.model, self.query)
            except LooplineError:
                return None
        ask = Ask(self.model, None, False, self.ids, self.version, self.alias, None, caller)
        return self.waiting(self, ask)
