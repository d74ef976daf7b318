"""The Python client: the loop's verbs over HTTP, or on a loop in this process.

    client = Client("http://127.0.0.1:8000")
    answer = client.predict("sales", {"TV": 50})
    client.outcome("sales", answer.id, 9.7)

`Client(app)` has the same methods, with the same answers and the same errors.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from loopline import codecs
from loopline.errors import FieldError, InvalidInput, LooplineError, TimedOut, Unavailable
from loopline.errors import Unreadable as Unread
from loopline.records import Record

if TYPE_CHECKING:
    from loopline.asks import Answered
    from loopline.loop import Loop

Table = dict[str, Any]
Here = Callable[[Any], Any]

ENDED = ("done", "failed", "cancelled")
PAUSES = (0.1, 0.3, 0.6)
"""Seconds before each new try of a call that may be repeated."""

_KINDS: dict[str, type[LooplineError]] = {
    **{kind.code: kind for kind in LooplineError.__subclasses__()},
    **dict.fromkeys(("unknown-path", "unknown-token", "wrong-method"), InvalidInput),
    "unsupported-media-type": Unread,
}


class Predicted(Record, frozen=True):
    """One row answered: what its outcome is sent for, and what was predicted.

    `probabilities` are by class name, where they were asked for.
    """

    id: str
    model: str
    version: int
    prediction: Any
    probabilities: dict[str, float] | None = None

    @property
    def output(self) -> Any:
        """The prediction, under the name it has in `loopline.Prediction`."""
        return self.prediction


class Startable(Protocol):
    """An application that can be started in this process."""

    def start(self) -> Loop:
        """Start it, unless it runs already."""


class _Ask(msgspec.Struct, frozen=True):
    """A verb as an HTTP request.

    `again` is whether the server ends up the same if it gets the request twice; `pick` names the
    member of the answer that the verb returns; `fine` is a status beside 2xx that is no error.
    """

    method: str
    path: str
    query: Table = msgspec.field(default_factory=dict)
    body: bytes | None = None
    kind: str = codecs.JSON
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    again: bool = True
    pick: str = ""
    patience: float = 0.0
    fine: int = 0


class Client:
    """The verbs of a loop, wherever it runs; it can be used from many threads.

    Args:
        target: the URL of a server, or an application or its loop in this process.
        token: sent with every request.
        timeout: seconds to wait for an answer, beyond what a call itself is asked to wait.
    """

    def __init__(
        self,
        target: str | Loop | Startable = "http://127.0.0.1:8000",
        token: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._remote = _Remote(target, token, timeout) if isinstance(target, str) else None
        self._loop: Any = target
        if not isinstance(target, str) and not hasattr(target, "predict"):
            self._loop = target.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; an application in this process goes on."""
        if self._remote is not None:
            self._remote.close()

    # The loop itself.

    def predict(
        self,
        model: str,
        value: Any,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        alias: str | None = None,
        probabilities: bool = False,
        text: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Answer one row, or many.

        Args:
            model: its name.
            value: a row (mapping), or many (a list of rows, columns, a data frame).
            ids: one id per row; an id answered before gets its first answer again.
            version: a version number; alias: champion, challenger or previous.
            probabilities: whether to return those, for a classifier.
            text: the values are texts, as in a CSV file: one mapping, or a list of mappings.
            timeout: seconds until `TimedOut`.

        Returns:
            A `Predicted` for one row, a list of them for many.

        Raises:
            UnknownModel, UnknownVersion, NotReady, InvalidInput, ModelFailed, Overloaded.
        """
        value = _plain(value)
        query = {"version": version, "alias": alias, "timeout": timeout}
        if self._remote is None:
            answered = self._loop.predict(model, value, ids=ids, text=text, **query)
            return _read_answered(answered, probabilities)
        ask = _Ask(
            "POST",
            _path(model, "predict"),
            query={**query, "probabilities": "true" if probabilities else None},
            again=ids is not None,
            patience=timeout or 0.0,
            **_predict_body(value, ids, text),
        )
        return _read_predicted(self._remote.ask(ask))

    def outcome(
        self,
        model: str,
        id: str | Sequence[Mapping[str, Any]],
        value: Any = None,
        *,
        at: float | str | None = None,
        text: bool = False,
    ) -> Table:
        """Tell what became true.

        Args:
            id: a prediction's id, with its `value` and perhaps `at`; or many outcomes at once, as
                mappings with `id`, `outcome` and perhaps `at`.
            at: when it became true: seconds since the epoch, or ISO 8601.
            text: the values are texts, as in a CSV file.

        Returns:
            Counts by status, and `results`: one {"id", "status"} per outcome, in order.
        """
        one = {"id": id, "outcome": value} | ({} if at is None else {"at": at})
        items = [one] if isinstance(id, str) else list(_plain(id))
        ask = _Ask("POST", _path(model, "outcomes"), **_rows_body(items, text))
        try:
            return self._table(lambda loop: loop.outcome(model, items, text=text), ask)
        except InvalidInput as error:
            if not isinstance(id, str):
                raise
            fields = [FieldError(f.pointer.removeprefix("/0"), f.detail) for f in error.fields]
            raise InvalidInput(error.detail, fields=fields) from error

    def learn(self, model: str, value: Any, *, text: bool = False) -> Table:
        """Add labelled rows to the data set, all of them or none: {"accepted", "rows", "summary"}.

        Args:
            value: one row or many: mappings with every column, or lists in column order.
        """
        value = _plain(value)
        ask = _Ask("POST", _path(model, "learn"), again=False, **_rows_body(value, text))
        return self._table(lambda loop: loop.learn(model, value, text=text), ask)

    def train(
        self,
        model: str,
        parameters: Table | None = None,
        *,
        wait: float | None = None,
        reason: str = "by hand",
    ) -> Table:
        """Queue a training on everything known now.

        Args:
            parameters: set on the recipe for this run.
            wait: seconds to wait for its end.

        Returns:
            The job as it is then; a failed one has `error`.
        """
        options = {"parameters": parameters or {}, "reason": reason}
        ask = _post(_path(model, "train"), options, pick="job")
        return self.job(str(self._do(lambda loop: loop.train(model, **options).id, ask)), wait=wait)

    # Versions.

    def promote(self, model: str, version: int) -> Table:
        """Let a version answer; returns the decision."""
        ask = _post(_path(model, "promote"), {"version": version})
        return self._table(lambda loop: loop.promote(model, version), ask)

    def rollback(self, model: str) -> Table:
        """Let the previous champion answer again; returns the decision."""
        ask = _Ask("POST", _path(model, "rollback"), again=False)
        return self._table(lambda loop: loop.rollback(model), ask)

    def score(
        self, model: str, value: Any = None, *, version: int | None = None, text: bool = False
    ) -> Table:
        """Score a version on labelled rows: those given, or else those it was not trained on."""
        value, query = _plain(value), {"version": version}
        body = {} if value is None else _rows_body(value, text)
        ask = _Ask("POST", _path(model, "score"), query=query, **body)
        return self._table(lambda loop: loop.score(model, value, text=text, **query), ask)

    def scores(self, model: str) -> Table:
        """Scores of the answers as they were given, by version and hour, with coverage."""
        return self._table(lambda loop: loop.scores(model), _get(_path(model, "scores")))

    def versions(self, model: str) -> list[Table]:
        """All versions, oldest first, with their aliases."""
        ask = _get(_path(model, "versions"), pick="versions")
        return self._list(lambda loop: loop.versions(model), ask)

    def version(self, model: str, number: int) -> Table:
        """One version with its lineage."""
        ask = _get(_path(model, "versions", number))
        return self._table(lambda loop: loop.version(model, number), ask)

    def decisions(self, model: str) -> list[Table]:
        """Every decision with its evidence, newest last."""
        ask = _get(_path(model, "decisions"), pick="decisions")
        return self._list(lambda loop: loop.decisions(model), ask)

    def report(self, model: str, *, version: int | None = None) -> Table:
        """What the model itself says of its fit: {"version", "html", "json"}."""
        if self._remote is None:
            return self._table(lambda loop: loop.report(model, version=version), _get(""))
        path = _path(model, "report")
        told = self._remote.ask(_get(path, {"version": version, "format": "json"}))
        html = self._remote.ask(_get(path, {"version": told["version"], "format": "html"}))
        return {"version": told["version"], "html": html, "json": told["report"]}

    # Models and predictions.

    def models(self) -> list[Table]:
        """All models with their champion and readiness."""
        return self._list(lambda loop: loop.models(), _get("/v1/models", pick="models"))

    def describe(self, model: str) -> Table:
        """Everything about a model: schema, capabilities, aliases, policy, data, readiness."""
        return self._table(lambda loop: loop.describe(model), _get(_path(model)))

    def add(self, name: str, definition: Table) -> Table:
        """Add a model, or replace its definition, as in a table of `loopline.toml`."""
        ask = _Ask("PUT", _path(name), body=_json(definition))
        return self._table(lambda loop: loop.add(name, definition), ask)

    def remove(self, model: str) -> None:
        """Remove a model with everything known of it."""
        self._do(lambda loop: loop.remove(model), _Ask("DELETE", _path(model), again=False))

    def prediction(self, model: str, id: str) -> Table:
        """Read one prediction back, with its outcome if that is known."""
        ask = _get(_path(model, "predictions", id))
        return self._table(lambda loop: loop.prediction(model, id), ask)

    def predictions(
        self, model: str, *, since: float | None = None, until: float | None = None
    ) -> Iterator[Table]:
        """Iterate logged predictions with `since <= at < until`, in log order."""
        if self._remote is None:
            found = self._loop.predictions(model, since=since, until=until)
            return (_builtin(each) for each in found)
        ask = _get(_path(model, "predictions"), {"from": since, "to": until})
        return (msgspec.json.decode(line) for line in self._remote.lines(ask) if line)

    # Jobs, workers, health, tokens.

    def jobs(self, *, model: str | None = None, state: str | None = None, most: int = 100) -> Table:
        """The newest jobs and the figures of the queue."""
        query = {"model": model, "state": state, "most": most}
        return self._table(lambda loop: loop.jobs(**query), _get("/v1/jobs", query))

    def job(self, id: str, *, wait: float | None = None) -> Table:
        """One job, after waiting up to `wait` seconds for its end."""
        ask = _Ask("GET", _job(id), query={"wait": wait}, patience=wait or 0.0)
        return self._table(lambda loop: loop.job(id, wait=wait), ask)

    def follow(self, id: str) -> Iterator[Table]:
        """Iterate a job's events until it has ended: {"seq", "kind", "job", "at", ...}."""
        return self._follow_here(id) if self._remote is None else self._remote.follow(id)

    def _follow_here(self, id: str) -> Iterator[Table]:
        seen = 0
        while True:
            # The state is read first, so that an ended job's last event cannot be missed.
            ended = self._loop.job(id)["state"] in ENDED
            events = self._loop.job_events(id, seen)
            for event in events:
                seen = event.seq
                yield {"seq": seen, "kind": event.kind, "job": id, "at": event.at, **event.data}
            if ended and not events:
                return
            if not events:
                self._loop.job(id, wait=0.1)

    def cancel(self, id: str) -> Table:
        """Cancel a queued job; ask a running one to stop."""
        return self._table(lambda loop: loop.cancel(id), _Ask("POST", f"{_job(id)}/cancel"))

    def workers(self) -> list[Table]:
        """The workers heard of lately."""
        return self._list(lambda loop: loop.workers(), _get("/v1/workers", pick="workers"))

    def ready(self) -> Table:
        """Whether traffic makes sense, and if not why: {"ready", "reasons"}."""
        names = ("ready", "reasons")
        ask = _Ask("GET", "/readyz", fine=503)
        return self._table(lambda loop: dict(zip(names, loop.ready(), strict=True)), ask)

    def tokens(self) -> list[Table]:
        """All tokens ever made, without their text."""
        ask = _get("/v1/tokens", pick="tokens")
        return [
            {name: value for name, value in token.items() if name != "hash"}
            for token in self._list(lambda loop: loop.access.tokens(), ask)
        ]

    def create_token(self, name: str, scopes: Sequence[str]) -> str:
        """Make a token; returns its text, which cannot be read back later."""
        ask = _post("/v1/tokens", {"name": name, "scopes": list(scopes)}, pick="token")
        return str(self._do(lambda loop: loop.access.issue(name, scopes), ask))

    def revoke_token(self, name: str) -> None:
        """Make a token useless."""
        if not any(each["name"] == name and not each["revoked"] for each in self.tokens()):
            raise InvalidInput(f"there is no token {name!r} in use")
        ask = _Ask("DELETE", f"/v1/tokens/{quote(name, safe='')}", again=False)
        self._do(lambda loop: loop.access.revoke(name), ask)

    # One call, here or there.

    def read(self, path: str, here: Here) -> Any:
        """What a server has at a path, or what `here` makes of the loop in this process."""
        return self._do(here, _get(path))

    def _do(self, here: Here, ask: _Ask) -> Any:
        if self._remote is None:
            return _builtin(here(self._loop))
        answer = self._remote.ask(ask)
        return answer[ask.pick] if ask.pick and isinstance(answer, dict) else answer

    def _table(self, here: Here, ask: _Ask) -> Table:
        answer = self._do(here, ask)
        if not isinstance(answer, dict):
            raise Unavailable("this is not an answer of Loopline; is it another server's URL?")
        return answer

    def _list(self, here: Here, ask: _Ask) -> list[Table]:
        answer = self._do(here, ask)
        if not isinstance(answer, list):
            raise Unavailable("this is not an answer of Loopline; is it another server's URL?")
        return answer


def _get(path: str, query: Table | None = None, pick: str = "") -> _Ask:
    return _Ask("GET", path, query=query or {}, pick=pick)


def _post(path: str, body: Table, pick: str = "") -> _Ask:
    return _Ask("POST", path, body=_json(body), again=False, pick=pick)


def _path(model: str, *parts: object) -> str:
    return "/".join(("/v1/models", *(quote(str(part), safe="") for part in (model, *parts))))


def _job(id: str) -> str:
    return f"/v1/jobs/{quote(id, safe='')}"


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_plain_or_refuse)


def _builtin(value: Any) -> Any:
    """An answer of the loop as JSON would bring it: dictionaries and lists."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _plain(value: Any) -> Any:
    """Rows as plain data: a data frame becomes a list of mappings, an array a list."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return value.to_dict("records")
    return value.tolist() if hasattr(value, "tolist") else value


def _plain_or_refuse(value: Any) -> Any:
    made = _plain(value)
    if made is value:
        detail = f"cannot send a {type(value).__name__}; send numbers, texts, lists and mappings"
        raise InvalidInput(detail)
    return made


def _rows_body(value: Any, text: bool) -> Table:
    if not text:
        return {"body": _json(value)}
    rows = [value] if isinstance(value, dict) else value
    return {"body": codecs.write(rows, codecs.CSV), "kind": codecs.CSV}


def _predict_body(value: Any, ids: Sequence[str] | None, text: bool) -> Table:
    if not text:
        return {"body": _json(value if ids is None else {"inputs": value, "ids": list(ids)})}
    if isinstance(value, dict):
        named = {} if ids is None else {"prediction-id": ids[0]}
        return {"body": urlencode(value).encode(), "kind": codecs.FORM, "headers": named}
    if ids is not None:
        raise InvalidInput("ids go with values, not with rows of text")
    return _rows_body(value, text)


def _read_predicted(answer: Table) -> Any:
    if "predictions" not in answer:
        return msgspec.convert(answer, Predicted)
    head = {"model": answer["model"], "version": answer["version"]}
    return [msgspec.convert({**head, **each}, Predicted) for each in answer["predictions"]]


def _read_answered(answered: Answered, probabilities: bool) -> Any:
    names = [str(c).lower() if isinstance(c, bool) else str(c) for c in answered.classes or ()]
    if probabilities and not names:
        told = f"model {answered.model!r} does not give probabilities"
        raise InvalidInput.at(told, "?probabilities")
    shown = [
        Predicted(
            id=each.id,
            model=each.model,
            version=each.version,
            prediction=each.output,
            probabilities=dict(zip(names, each.probabilities, strict=True))
            if probabilities and each.probabilities
            else None,
        )
        for each in answered.predictions
    ]
    return shown if answered.many else shown[0]


# Over HTTP.


class _Remote:
    """A server, with the connections that are not in use at the moment."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host = ""
        if parts.scheme not in ("http", "https") or not self._host:
            raise InvalidInput(f"{url!r} is not the URL of a server; http://127.0.0.1:8000 is one")
        self.url = url
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        self._headers = {"accept": "application/json, */*"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._idle: deque[http.client.HTTPConnection] = deque()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def ask(self, ask: _Ask) -> Any:
        """Send a request, and decode its answer."""
        for pause in (*PAUSES, None):
            connection = self._connection()
            used = connection.sock is not None
            try:
                answer = self._exchange(connection, ask)
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                refused = isinstance(error, ConnectionRefusedError)
                stale = used and isinstance(error, ConnectionError)
                if pause is None or not ask.again or not (refused or stale):
                    raise self._told(error) from error
            else:
                self._idle.append(connection)
                return _decode(answer, body, ask)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _connection(self) -> http.client.HTTPConnection:
        """A kept connection that still looks alive, or a new one."""
        while self._idle:
            with contextlib.suppress(IndexError):
                kept = self._idle.pop()
                # What can be read between two requests is the end.
                if kept.sock is not None and not select.select([kept.sock], [], [], 0)[0]:
                    return kept
                kept.close()
        return self._fresh()

    def _fresh(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls)

    def _exchange(
        self, connection: http.client.HTTPConnection, ask: _Ask
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            connection.timeout = self._timeout
            connection.connect()
        sock: socket.socket = connection.sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(self._timeout + ask.patience)
        query = urlencode({name: value for name, value in ask.query.items() if value is not None})
        headers = {**self._headers, **ask.headers}
        if ask.body is not None:
            headers["content-type"] = ask.kind
        where = f"{self._prefix}{ask.path}{'?' if query else ''}{query}"
        connection.request(ask.method, where, ask.body, headers)
        return connection.getresponse()

    def _told(self, error: Exception) -> LooplineError:
        if isinstance(error, TimeoutError):
            return TimedOut(f"{self.url} did not answer in time")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Unavailable(f"no server answers at {self.url}: {reason}")

    def lines(self, ask: _Ask) -> Iterator[bytes]:
        """Send a request, and iterate the lines of its answer."""
        with contextlib.closing(self._fresh()) as connection:
            try:
                answer = self._exchange(connection, ask)
                if answer.status >= 300:
                    _decode(answer, answer.read(), ask)
                for line in answer:
                    yield line.rstrip(b"\r\n")
            except (OSError, http.client.HTTPException) as error:
                raise self._told(error) from error

    def follow(self, id: str) -> Iterator[Table]:
        """Read a job's server-sent events; a stream that breaks off is taken up again."""
        seen, kind, pauses = 0, "", list(PAUSES)
        while kind not in ENDED:
            fields: dict[bytes, bytes] = {}
            try:
                for line in self.lines(_get(f"{_job(id)}/events", {"after": seen})):
                    name, _, value = line.partition(b": ")
                    fields[name] = value
                    if name == b"data":
                        seen, kind = int(fields[b"id"]), fields[b"event"].decode()
                        yield {"seq": seen, "kind": kind, **msgspec.json.decode(value)}
                if not fields:
                    return
            except Unavailable:
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))


class _Problem(msgspec.Struct):
    code: str
    detail: str = ""
    errors: list[FieldError] = []


def _decode(answer: http.client.HTTPResponse, body: bytes, ask: _Ask) -> Any:
    if answer.status >= 300 and answer.status != ask.fine:
        raise _error(answer, body)
    if not body:
        return None
    kind = codecs.kind_of(answer.headers.get("content-type"))
    try:
        return msgspec.json.decode(body) if kind == codecs.JSON else body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"the answer cannot be read: {error}") from error


def _error(answer: http.client.HTTPResponse, body: bytes) -> LooplineError:
    """The error that the server had, from its problem details."""
    wait = answer.headers.get("retry-after", "")
    try:
        told = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Unavailable(f"the server answered {answer.status}, and not as Loopline does")
    kind = _KINDS.get(told.code, LooplineError)
    after = float(wait) if wait.isascii() and wait.isdigit() else None
    return kind(told.detail, fields=told.errors, retry_after=after)


__all__ = ["Client", "Predicted"]
