"""What every gRPC method is given: who calls, until when, and the ways to the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from loopline.access import Caller
from loopline.asks import Answered, Ask
from loopline.errors import Unavailable
from loopline.loop import Loop

T = TypeVar("T")

MOST_PENDING = 256
"""Requests of one stream that are answered at a time; more are not read before."""


class Call(NamedTuple):
    """One call.

    `until` is the call's own deadline, a reading of the monotonic clock, None where it has none.
    `readers` are the tasks that read streams, for a stopping server to end.
    """

    loop: Loop
    caller: Caller
    until: float | None
    pool: ThreadPoolExecutor
    readers: set[asyncio.Task[None]]

    async def predict(
        self, model: str, value: Any, ids: Any = None, timeout: float | None = None, **which: Any
    ) -> Answered:
        """Predict with the batch of this turn; `which` names a version or an alias."""
        settings = self.loop.settings
        until = time.monotonic() + (timeout or settings.timeout)
        if self.until is not None:
            until = min(until, self.until) if timeout else self.until
        return await self.loop.serving.submit(
            Ask(model, value, ids=ids, deadline=until, caller=self.caller, **which)
        )

    async def run(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a verb of the loop in a thread, as this caller."""
        return await self.work(partial(verb, *args, caller=self.caller, **options))

    async def work(self, work: Callable[..., T], *args: Any) -> T:
        """Do in a thread what could keep the event loop waiting."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *args)

    async def each(
        self, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[T]]
    ) -> AsyncIterator[T]:
        """Answer the requests of a stream as they come, many at a time, in their order.

        Args:
            answer: gives each its answer, and an error as one too.

        Raises:
            Unavailable: the server stopped reading; what it had read was answered.
        """
        places = asyncio.Semaphore(MOST_PENDING)
        pending: asyncio.Queue[asyncio.Future[T] | None] = asyncio.Queue()

        async def read() -> None:
            async for request in requests:
                await places.acquire()
                pending.put_nowait(asyncio.ensure_future(answer(request)))

        reader = asyncio.ensure_future(read())
        reader.add_done_callback(lambda _: pending.put_nowait(None))
        self.readers.add(reader)
        try:
            while (begun := await pending.get()) is not None:
                yield await begun
                places.release()
            if reader.cancelled():
                raise Unavailable("this server is leaving; connect again", retry_after=1.0)
            reader.result()
        finally:
            self.readers.discard(reader)
            reader.cancel()
            while not pending.empty():
                if (begun := pending.get_nowait()) is not None:
                    begun.cancel()


class Method(NamedTuple):
    """A method of a service.

    Args:
        takes: the class of its requests.
        answer: gives an answer to each, or, where it `streams`, answers to an iterator of bytes.
    """

    takes: Any
    answer: Callable[[Call, Any], Any]
    streams: bool = False
