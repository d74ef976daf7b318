"""HTTP with JSON, as any client of `/v1` speaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from loopline.testing.adapter import Driver, Refusal, Row, Said


class HttpJson(Driver):
    """Plain JSON over httpx.

    Args:
        url: the server's.
        token: sent as a bearer token, where there is one.
    """

    name = "HTTP/JSON"
    verbs = frozenset("predict null ids deadline learn outcome train describe".split())

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60.0)

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        body: Any = rows if ids is None else {"inputs": rows, "ids": list(ids)}
        given = {"version": version, "timeout": timeout}
        query = {name: value for name, value in given.items() if value is not None}
        told = self._post(f"/v1/models/{model}/predict", body, **query)
        return [
            Said(each["id"], each["prediction"], told["version"])
            for each in told.get("predictions", [told])
        ]

    def learn(self, model: str, rows: Sequence[Row]) -> int:
        return int(self._post(f"/v1/models/{model}/learn", list(rows))["accepted"])

    def outcome(self, model: str, items: Sequence[Row]) -> list[str]:
        told = self._post(f"/v1/models/{model}/outcomes", list(items))
        return [each["status"] for each in told["results"]]

    def train(self, model: str) -> int:
        return int(self._post(f"/v1/models/{model}/train", {}, wait=60)["version"])

    def describe(self, model: str) -> Row:
        told = self._read(self._http.get(f"/v1/models/{model}"))
        fields = told["schema"]["properties"]
        return {"name": told["name"], "version": told["champion"], "inputs": [*fields]}

    def close(self) -> None:
        self._http.close()

    def _post(self, path: str, body: Any, **query: Any) -> Row:
        return self._read(self._http.post(path, json=body, params=query))

    def _read(self, answer: httpx.Response) -> Row:
        told: Row = answer.json()
        if answer.is_error:
            pointers = [each["pointer"] for each in told.get("errors", ())]
            raise Refusal(told["code"], told["detail"], pointers)
        return told
