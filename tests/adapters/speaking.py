"""A whole loop in this process, and HTTP spoken to it without a socket."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

from loopline import Loopline
from loopline.adapters.http import create
from loopline.loop import Loop


def moody(row: dict) -> object:
    """Answer a row's `say`; raise if it wants that, or sleep until the file it names is there."""
    if row.get("raise"):
        raise ZeroDivisionError("the secret of the moody model")
    deadline = time.monotonic() + 20.0
    while "sleep" in row and not os.path.exists(row["sleep"]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return row.get("say", "nothing")


class Http:
    """A synchronous HTTP client of one ASGI application, whose event loop runs in a thread."""

    def __init__(self, app: Any, headers: dict[str, str] | None = None) -> None:
        self.app = app
        self._headers = headers or {}
        self._events = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._events.run_forever, name="http", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the application's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._events)

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request from within the event loop."""
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://testserver", headers=self._headers
        ) as client:
            return await client.request(method, path, timeout=60, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request and wait for its answer."""
        answer: httpx.Response = self.submit(self.ask(method, path, **options)).result(60)
        return answer

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        """POST, with a JSON body if one is given."""
        if json is not None:
            options["json"] = json
        return self.request("POST", path, **options)

    def close(self) -> None:
        """Stop the event loop."""
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join()
        self._events.close()


def iris() -> pd.DataFrame:
    """Iris with short names and its species as text."""
    bunch = load_iris(as_frame=True)
    frame = bunch.frame.rename(columns=lambda name: name.replace(" (cm)", "").replace(" ", "_"))
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)
    return frame.assign(species=names[frame.pop("target")])


def sales() -> pd.DataFrame:
    """Sales that follow television advertising with a little noise."""
    tv = np.linspace(1.0, 300.0, 60)
    return pd.DataFrame({"TV": tv, "Sales": 7.0 + 0.05 * tv + np.sin(tv) / 10})


FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
SETOSA = dict(zip(FEATURES, (5.1, 3.5, 1.4, 0.2), strict=True))
VIRGINICA = dict(zip(FEATURES, (6.3, 3.3, 6.0, 2.5), strict=True))


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Loop]:
    """A loop with a classifier, a regression, one that is not fitted, and a moody one."""
    app = Loopline(folder, log="memory:", store="memory:", **settings)
    flowers, money = iris(), sales()
    classifier = LogisticRegression(max_iter=1000).fit(flowers[FEATURES], flowers["species"])
    regression = LinearRegression().fit(money[["TV"]], money["Sales"])
    app.add("iris", classifier, data=flowers, target="species")
    app.add("sales", regression, data=money, target="Sales")
    app.add("moody", moody)
    with app:
        yield app.loop


@contextmanager
def speaking(loop: Loop, **options: Any) -> Iterator[Http]:
    """A client of that loop's HTTP application."""
    headers = options.pop("headers", None)
    door = create(loop, **options)
    http = Http(door, headers)
    try:
        yield http
    finally:
        http.close()
        door.close()


def state_of(loop: Loop) -> dict[str, Any]:
    """What refused requests may not change."""
    return {
        record.name: (
            record,
            loop.store.versions(record.name),
            loop.store.aliases(record.name),
            len(loop.store.decisions(record.name)),
            sum(loop.log.count(f"{record.name}.{topic}") for topic in ("outcomes", "examples")),
        )
        for record in loop.store.models()
    } | {"jobs": [job.id for job in loop.store.jobs(most=1000)], "tokens": loop.store.tokens()}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem of that kind, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert told["code"] == code
    assert told["status"] == status
    assert told["title"] and told["detail"] and told["instance"]
    assert "Traceback" not in answer.text and 'File "' not in answer.text
    return told


def pointers(told: dict[str, Any]) -> list[str]:
    """The JSON Pointers of a problem's field errors."""
    return [each["pointer"] for each in told["errors"]]
