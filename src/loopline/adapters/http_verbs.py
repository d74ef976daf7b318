"""What the HTTP routes do: parse, one verb of the loop, render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

from loopline import access, codecs
from loopline.adapters.http_predict import PATIENCE
from loopline.adapters.http_wire import Answer, Desk, Gone, plain, problem
from loopline.adapters.status import ENDED, job_error
from loopline.errors import FieldError, InvalidInput
from loopline.metrics import CONTENT_TYPE
from loopline.records import JobEvent

Handler = Callable[[Desk], Awaitable[Answer]]

SILENCE = 15.0
"""Seconds after which an event stream says that it is still there."""
CHUNK = 500
"""Predictions read back at a time."""
SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def verb(verb: Callable[..., Any], *path: str, under: str = "") -> Handler:
    """The handler of a route that needs no body: its verb, called with path and query.

    Args:
        verb: a method of `Loop`, whose docstring is the route's too.
        path: the parts of the path that the verb takes, in order.
        under: the member of the answer that holds what the verb returns; "" for all of it.
    """

    async def handle(desk: Desk) -> Answer:
        parts = [desk.path[part] for part in path]
        found = await desk.call(getattr(desk.loop, verb.__name__), *parts, **desk.query)
        if found is None:
            return Answer(status=204)
        return plain({under: found} if under else found)

    handle.__doc__ = verb.__doc__
    return handle


async def outcomes(desk: Desk) -> Answer:
    """Tell what became true, by prediction id: one outcome or a list."""
    value, text = await desk.value()
    model, many = desk.path["model"], isinstance(value, list)
    try:
        items = value if many else [value]
        return plain(await desk.call(desk.loop.outcome, model, items, text=text))
    except InvalidInput as error:
        if many:
            raise
        fields = [FieldError(each.pointer.removeprefix("/0"), each.detail) for each in error.fields]
        raise InvalidInput(error.detail, fields=fields) from error


async def learn(desk: Desk) -> Answer:
    """Add labelled rows, as objects or as lists in column order: all of them, or none."""
    value, text = await desk.value()
    return plain(await desk.call(desk.loop.learn, desk.path["model"], value, text=text), 202)


async def score(desk: Desk) -> Answer:
    """Score a version on the rows in the body, or else on those it was not trained on."""
    body = await desk.body()
    value, text = desk.decode(body) if body else (None, False)
    model = desk.path["model"]
    return plain(await desk.call(desk.loop.score, model, value, text=text, **desk.query))


async def predictions(desk: Desk) -> Answer:
    """Read predictions back as NDJSON, in the order in which they were logged."""
    found = await desk.call(desk.loop.predictions, desk.path["model"], **desk.query)
    first: list[Any] = await desk.crossing.run(list, islice(found, CHUNK))
    return Answer(_lines(desk, found, first), media_type=codecs.NDJSON)


async def _lines(
    desk: Desk, found: Iterator[dict[str, Any]], chunk: list[dict[str, Any]]
) -> AsyncIterator[bytes]:
    while chunk:
        yield codecs.write(chunk, codecs.NDJSON)
        chunk = await desk.crossing.run(list, islice(found, CHUNK))


async def define(desk: Desk) -> Answer:
    """Add a model, or replace it, by what a table of `loopline.toml` holds."""
    name, table = desk.path["model"], await desk.table()
    known = {each["name"] for each in await desk.call(desk.loop.models)}
    shown = await desk.call(desk.loop.add, name, table)
    where = f"{desk.prefix}/v1/models/{name}"
    return plain(shown, 200 if name in known else 201, location=where)


async def report(desk: Desk) -> Answer:
    """What the model itself says of its fit: HTML or JSON, as asked or accepted."""
    model, version = desk.path["model"], desk.query.get("version")
    found = await desk.call(desk.loop.report, model, version=version)
    html = "html" if "text/html" in (desk.header("accept") or "") else "json"
    if desk.query.get("format", html) == "html":
        safe = {"content-security-policy": SANDBOX, "x-content-type-options": "nosniff"}
        return Answer(found["html"].encode(), 200, "text/html; charset=utf-8", safe)
    return plain({"model": model, "version": found["version"], "report": found["json"]})


async def promote(desk: Desk) -> Answer:
    """Let a version answer; the former champion becomes `previous`."""
    number = (await desk.table("version")).get("version")
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 11:
        number = int(number)
    if type(number) is not int or not 0 < number < 2**31:
        detail = "give the number of the version to promote"
        raise InvalidInput(detail, fields=[FieldError("/version", detail)])
    return plain(await desk.call(desk.loop.promote, desk.path["model"], number))


async def train(desk: Desk) -> Answer:
    """Train on everything known now; the answer is the version if it is there in time."""
    parameters, reason = _training(await desk.table("parameters", "reason"))
    seconds, headers = _patience(desk)
    model = desk.path["model"]
    job = await desk.call(desk.loop.train, model, parameters=parameters, reason=reason)
    shown = await _ended(desk, job.id, seconds)
    headers["location"] = f"{desk.prefix}/v1/jobs/{job.id}"
    if shown["state"] == "failed":
        error = job_error(shown["error"] or {})
        return problem(error, desk.instance, job=job.id)
    if shown["state"] != "done":
        return plain({"job": job.id, "state": shown["state"]}, 202, **headers)
    return plain(await _trained(desk, model, shown), 200, **headers)


def _training(table: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    parameters, reason = table.get("parameters"), table.get("reason", "by hand")
    errors = []
    if parameters is not None and not isinstance(parameters, dict):
        errors.append(FieldError("/parameters", "is an object of names and values"))
    if not isinstance(reason, str) or len(reason) > 1000:
        errors.append(FieldError("/reason", "is text of at most 1,000 characters"))
    if errors:
        raise InvalidInput("the training cannot be started like this", fields=errors)
    return parameters, reason


def _patience(desk: Desk) -> tuple[float, dict[str, str]]:
    """How long to wait, from `?wait=` and `Prefer` (RFC 7240), and the header that says so."""
    wishes = {
        name.strip().lower(): value.strip(' "')
        for name, _, value in (w.partition("=") for w in (desk.header("prefer") or "").split(","))
    }
    text = wishes.get("wait", "")
    if text.isascii() and text.isdigit():
        return min(float(text), PATIENCE), {"preference-applied": f"wait={text}"}
    if "respond-async" in wishes:
        return 0.0, {"preference-applied": "respond-async"}
    return desk.query.get("wait", 0.0), {}


async def _ended(desk: Desk, id: str, seconds: float) -> dict[str, Any]:
    """Wait for a job's end in short calls, so that no thread is held meanwhile."""
    until, pause = time.monotonic() + seconds, 0.05
    gone = asyncio.ensure_future(_gone(desk))
    try:
        while True:
            shown = await desk.call(desk.loop.job, id)
            left = until - time.monotonic()
            if shown["state"] in ENDED or left <= 0:
                return shown
            await asyncio.wait([gone], timeout=min(pause, left))
            if gone.done():
                raise Gone
            pause = min(pause * 1.5, 0.25)
    finally:
        gone.cancel()


async def _gone(desk: Desk) -> None:
    while (await desk.receive())["type"] != "http.disconnect":
        pass


async def _trained(desk: Desk, model: str, shown: dict[str, Any]) -> dict[str, Any]:
    result = shown["result"] or {}
    found = await desk.call(desk.loop.decisions, model)
    decision = next((each for each in found if each["number"] == result.get("decision")), None)
    return {
        "job": shown["job"],
        "state": shown["state"],
        "version": result.get("version"),
        "metrics": result.get("metrics", {}),
        "decision": decision,
    }


async def job(desk: Desk) -> Answer:
    """One job, when it has ended or the time to wait is over."""
    return plain(await _ended(desk, desk.path["id"], desk.query.get("wait", 0.0)))


async def job_events(desk: Desk) -> Answer:
    """Follow a job by server-sent events, to its last; `Last-Event-ID` resumes."""
    id, seen = desk.path["id"], desk.query.get("after", 0)
    last = desk.header("last-event-id") or ""
    if last.isascii() and last.isdigit() and len(last) < 19:
        seen = int(last)
    shown = await desk.call(desk.loop.job, id)
    events = await desk.call(desk.loop.job_events, id, seen)
    if not events and shown["state"] in ENDED:
        return Answer(status=204)
    live = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return Answer(_follow(desk, id, seen, events), 200, "text/event-stream", live)


async def _follow(desk: Desk, id: str, seen: int, events: list[JobEvent]) -> AsyncIterator[bytes]:
    spoke, pause, ended = time.monotonic(), 0.05, False
    while events or not ended:
        for event in events:
            data = msgspec.json.encode({"job": id, "at": event.at, **event.data})
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.kind.encode(), data)
            seen, spoke, pause = event.seq, time.monotonic(), 0.05
        if time.monotonic() - spoke >= SILENCE:
            yield b": still here\n\n"
            spoke = time.monotonic()
        if not events:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        # The state is read first, so that an ended job's last event cannot be missed.
        ended = (await desk.call(desk.loop.job, id))["state"] in ENDED
        events = await desk.call(desk.loop.job_events, id, seen)


async def tokens(desk: Desk) -> Answer:
    """All tokens, without their text, revoked ones included."""
    access.check(desk.caller, "admin")
    found = await desk.crossing.run(desk.loop.access.tokens)
    names = ("name", "scopes", "created", "revoked")
    return plain({"tokens": [{name: getattr(each, name) for name in names} for each in found]})


async def issue_token(desk: Desk) -> Answer:
    """Make a token; its text is told this once."""
    access.check(desk.caller, "admin")
    table = await desk.table("name", "scopes")
    name, scopes = table.get("name"), table.get("scopes")
    text = await desk.crossing.run(desk.loop.access.issue, name, scopes)
    where = {"location": f"{desk.prefix}/v1/tokens/{name}", "cache-control": "no-store"}
    return plain({"name": name, "scopes": scopes, "token": text}, 201, **where)


async def revoke_token(desk: Desk) -> Answer:
    """Revoke a token: at once here, within seconds in other processes."""
    access.check(desk.caller, "admin")
    await desk.crossing.run(desk.loop.access.revoke, desk.path["name"])
    return Answer(status=204)


async def live(desk: Desk) -> Answer:
    """Whether the process lives; touches neither the store nor a model."""
    return plain({"live": True})


async def ready(desk: Desk) -> Answer:
    """Whether traffic makes sense; 503 and the reasons while it does not."""
    good, reasons = desk.loop.ready()
    return plain({"ready": good, "reasons": reasons}, 200 if good else 503)


async def ping(desk: Desk) -> Answer:
    """Whether anybody is there."""
    return Answer(b"pong", 200, "text/plain; charset=utf-8")


async def metrics(desk: Desk) -> Answer:
    """Numbers for Prometheus, in its text format 0.0.4."""
    return Answer(desk.loop.metrics.render().encode(), 200, CONTENT_TYPE)
