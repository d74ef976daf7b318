"""HTTP with rows in lines: httpx for what is asked at once, `http.client` for streams.

httpx reads an answer only when all of its request is sent, which no stream can wait for.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from loopline.testing.adapter import Refusal, Row, Said
from tests.adapters.drivers.http_json import HttpJson

KIND = "application/x-ndjson"


class NdJson(HttpJson):
    """Lines in, and lines out where it is a stream."""

    name = "HTTP/NDJSON"
    verbs = HttpJson.verbs | {"stream"}
    together = 50

    def __init__(self, url: str, token: str | None = None) -> None:
        super().__init__(url, token)
        self._address = urlsplit(url).netloc
        self._headers = {"content-type": KIND}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        left = iter(rows)
        with closing(http.client.HTTPConnection(self._address, timeout=60)) as line:
            line.putrequest("POST", f"/v1/models/{model}/predict")
            for name, value in {**self._headers, "transfer-encoding": "chunked"}.items():
                line.putheader(name, value)
            line.endheaders()
            answer = None
            while some := list(islice(left, self.together)):
                data = _lines(some)
                line.send(b"%x\r\n%b\r\n" % (len(data), data))
                answer = answer or line.getresponse()
                if answer.status != 200:
                    raise _refusal(json.loads(answer.read()))
                for _ in some:
                    told = json.loads(answer.readline())
                    if "error" in told:
                        raise _refusal(told["error"])
                    yield Said(told["id"], told["prediction"], told["version"])
            line.send(b"0\r\n\r\n")
            assert answer is None or answer.read() == b""

    def _post(self, path: str, body: Any, **query: Any) -> Row:
        if not (isinstance(body, list) and path.endswith("/predict")):
            return super()._post(path, body, **query)
        headers = {"content-type": KIND, "accept": "application/json"}
        answer = self._http.post(path, content=_lines(body), params=query, headers=headers)
        return self._read(answer)


def _lines(rows: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _refusal(told: Row) -> Refusal:
    pointers = [each["pointer"] for each in told.get("errors", ())]
    return Refusal(told["code"], told["detail"], pointers)
