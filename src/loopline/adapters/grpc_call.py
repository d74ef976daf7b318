"""What every gRPC method is given: who calls, until when, and the ways to the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from loopline.access import Caller
from loopline.asks import Answered, Ask, Awaited
from loopline.errors import Unavailable
from loopline.loop import Loop
from loopline.serving import Serving

T = TypeVar("T")

MOST_PENDING = 256
"""Requests of one stream that are answered at a time; more are not read before."""
GAP, GATHER, MOST_GATHERED = 0.001, 0.002, 16
"""Seconds between requests that come in a row, seconds the first waits, and how many at most."""
SMALL = 2**16
"""Bytes of a message that is read on the event loop."""


class Gathering:
    """Where requests that come in a row meet, so that one call of the model answers them.

    The library hands calls out one after the other, with work of its own between them, so those
    that came together are not there in the same turn of the event loop. Meeting gives half as many
    calls a second again. Who comes alone does not wait.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._waiting: list[Awaited] = []
        self._last = 0.0

    def submit(self, ask: Ask) -> asyncio.Future[Answered]:
        """Queue a request, now or with those that come right behind it."""
        running, now = asyncio.get_running_loop(), time.monotonic()
        future: asyncio.Future[Answered] = running.create_future()
        self._waiting.append(Awaited(ask, future))
        alone, self._last = now - self._last > GAP, now
        if alone or len(self._waiting) >= MOST_GATHERED:
            self._enqueue()
        elif len(self._waiting) == 1:
            running.call_later(GATHER, self._enqueue)
        return future

    def _enqueue(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            try:
                if not waiter.gone:
                    self._serving.enqueue(waiter)
            except Exception as error:  # it is this waiter's, and the others are still to come
                waiter.future.set_exception(error)


class Call(NamedTuple):
    """One call.

    `until` is the call's own deadline, a reading of the monotonic clock, None where it has none.
    `pool` has the threads for what takes its time, and `readers` are the tasks that read streams,
    for a stopping server to end.
    """

    loop: Loop
    caller: Caller
    until: float | None
    pool: ThreadPoolExecutor
    readers: set[asyncio.Task[None]]
    gathering: Gathering

    async def predict(
        self, model: str, value: Any, ids: Any = None, timeout: float | None = None, **which: Any
    ) -> Answered:
        """Predict with the batch of this turn; `which` names a version or an alias."""
        settings = self.loop.settings
        until = time.monotonic() + (timeout or settings.timeout)
        if self.until is not None:
            until = min(until, self.until) if timeout else self.until
        return await self.gathering.submit(
            Ask(model, value, ids=ids, deadline=until, caller=self.caller, **which)
        )

    async def run(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a verb of the loop in a thread, as this caller."""
        return await self.work(partial(verb, *args, caller=self.caller, **options))

    async def work(self, work: Callable[..., T], *args: Any, size: int = SMALL) -> T:
        """Do in a thread what could keep the event loop waiting, unless it is of small size."""
        if size < SMALL:
            return work(*args)
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
        # One stream leaves room in the queue for the others.
        places = asyncio.Semaphore(max(1, min(MOST_PENDING, self.loop.settings.max_queue // 2)))
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


class NoSuchMethod(Exception):
    """The service does not have this method."""


class Method(NamedTuple):
    """A method: the class of its requests, and what gives its answer, or its stream's answers."""

    takes: Any
    answer: Callable[[Call, Any], Any]
