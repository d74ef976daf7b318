"""HTTP with MessagePack bodies, as a client that has an encoder for it speaks it."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from loopline.testing.adapter import Row
from tests.adapters.drivers.http_json import HttpJson

KIND = "application/msgpack"


class MessagePack(HttpJson):
    """The same routes; only the bytes differ."""

    name = "HTTP/MessagePack"

    def _post(self, path: str, body: Any, **query: Any) -> Row:
        headers = {"content-type": KIND, "accept": f"{KIND}, application/json"}
        data = msgspec.msgpack.encode(body)
        return self._read(self._http.post(path, content=data, params=query, headers=headers))

    def _read(self, answer: httpx.Response) -> Row:
        if answer.headers["content-type"] != KIND:
            return super()._read(answer)
        told: Row = msgspec.msgpack.decode(answer.content)
        return told
