"""A raw ASGI application: the body is decoded, the answer is always the same."""

from __future__ import annotations

from typing import Any

import msgspec

decode = msgspec.json.decode
BODY = b'{"prediction":"setosa"}'
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer any request, and the lifespan messages."""
    if scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})
        return
    more, body = True, b""
    while more:
        message = await receive()
        more = message.get("more_body", False)
        body += message["body"]
    decode(body)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
