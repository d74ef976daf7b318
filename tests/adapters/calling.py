"""A gRPC server over a loop of this process, on an event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopline.adapters.grpc import Server, create
from loopline.loop import Loop
from tests.adapters.speaking import running


class Served:
    """A loop, the address where gRPC speaks for it, and the event loop it does so on."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.address = loop.settings.grpc
        self.server: Server = create(loop)
        self._events = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._events.run_forever, daemon=True)
        self._thread.start()
        self.run(self.server.start())

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._events).result(30)

    def stop(self, grace: float = 1.0) -> None:
        """Stop the server."""
        self.run(self.server.stop(grace))

    def close(self) -> None:
        """Stop the event loop."""
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join()
        self._events.close()


@contextmanager
def calling(folder: Path, port: int, **settings: Any) -> Iterator[Served]:
    """The models of `speaking.running`, over gRPC."""
    with running(folder, grpc=f"127.0.0.1:{port}", **settings) as loop:
        served = Served(loop)
        try:
            yield served
        finally:
            served.stop()
            served.close()
