"""A WebSocket for each model, through the `websockets` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count, islice
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from loopline.testing.adapter import Driver, Refusal, Row, Said


class WebSocket(Driver):
    """Text messages; a connection is opened at the first use of its model.

    Args:
        url: the server's, as HTTP has it.
        token: sent as a bearer token, where there is one.
    """

    name = "WebSocket"
    verbs = frozenset("predict null ids deadline stream learn outcome".split())
    together = 50

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url.replace("http", "ws", 1)
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._lines: dict[str, ClientConnection] = {}
        self._stack = ExitStack()
        self._ids = count()

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        given = {"ids": ids, "version": version, "timeout": timeout}
        message = {name: value for name, value in given.items() if value is not None}
        return _said(self._ask(model, inputs=rows, **message))

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        left = iter(rows)
        while some := list(islice(left, self.together)):
            numbers = [self._say(model, inputs=row) for row in some]
            told = {each["id"]: each for each in (self._hear(model) for _ in numbers)}
            for number in numbers:
                yield from _said(_answer(told[number]))

    def learn(self, model: str, rows: Sequence[Row]) -> int:
        return int(self._ask(model, verb="learn", inputs=list(rows))["accepted"])

    def outcome(self, model: str, items: Sequence[Row]) -> list[str]:
        told = self._ask(model, verb="outcome", inputs=list(items))
        return [each["status"] for each in told["results"]]

    def close(self) -> None:
        self._stack.close()

    def _line(self, model: str) -> ClientConnection:
        if model not in self._lines:
            where = f"{self._url}/v1/models/{model}/socket"
            opened = connect(where, additional_headers=self._headers, subprotocols=["loopline.v1"])
            self._lines[model] = self._stack.enter_context(opened)
        return self._lines[model]

    def _ask(self, model: str, **message: Any) -> Row:
        number = self._say(model, **message)
        told = self._hear(model)
        assert told["id"] in (number, None)
        return _answer(told)

    def _say(self, model: str, **message: Any) -> int:
        number = next(self._ids)
        # What a closed connection was closed for is still to be read.
        with suppress(ConnectionClosed):
            self._line(model).send(json.dumps({"id": number, **message}))
        return number

    def _hear(self, model: str) -> Row:
        told: Row = json.loads(self._line(model).recv(timeout=60))
        if told["id"] is None:
            del self._lines[model]
        return told


def _answer(told: Row) -> Row:
    if "error" in told:
        error = told["error"]
        pointers = [each["pointer"] for each in error.get("errors", ())]
        raise Refusal(error["code"], error["detail"], pointers)
    answer: Row = told["answer"]
    return answer


def _said(told: Row) -> list[Said]:
    return [
        Said(each["id"], each["prediction"], each.get("version", told["version"]))
        for each in told.get("predictions", [told])
    ]
