"""ZeroRPC, protocol version 3, on asyncio: any object's methods, served to unmodified clients.

One ROUTER socket is drained by hand on the event loop, so nothing that a handler does can stop
heartbeats, and nothing that a client sends can make the server deaf. A call is a channel: it beats
from the moment its request arrives, spends credit for what it sends, and ends with its answer or
with its client's silence.

    asyncio.run(Server(anything, "tcp://127.0.0.1:4242").serve())
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from loopline.adapters.zerorpc_socket import Folder, Route, Socket
from loopline.adapters.zerorpc_wire import (
    BEAT,
    CREDIT,
    Event,
    introspection,
    pack,
    published,
    read_event,
    read_header,
    sound,
)
from loopline.errors import Overloaded, TooLarge, Unavailable, Unreadable

logger = logging.getLogger("loopline.zerorpc")

BURST = 200
"""Messages read before the event loop gets its turn."""
MOST_FRAMES = 12
MOST_CREDIT = 10_000
PATIENCE = 3.0
"""Heartbeats of silence after which a client is gone."""
ECHO = 0.25
"""Seconds between two received heartbeats of a call that are answered at once."""
COMPLAINTS = 10.0
"""Seconds between two log lines of the same sort."""
_END = object()


class Limits(NamedTuple):
    """What one client may ask for: calls open at once, and bytes.

    `held` bounds its open requests, and the answers that it does not take. No Python client can
    read an answer of more than 100 MiB.
    """

    calls: int = 1000
    request: int = 16 * 2**20
    answer: int = 100 * 2**20
    held: int = 64 * 2**20


LIMITS = Limits()


class Told(NamedTuple):
    """An error as the wire has it; clients ignore what `header` adds to that of the event."""

    name: str
    message: str
    traceback: str | None = None
    header: Mapping[str, Any] = {}


class Client:
    """One connection: its open calls, and the messages it was too slow to take."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.calls: dict[Any, Call] = {}
        self.held = 0
        self.outbox: deque[tuple[Route, bytes]] = deque()
        self.waiting = 0
        self.pause = 0.001


class Call:
    """One call, from its request to its answer.

    A method declared `with_call` gets it as its first argument, and may answer with `reply` or
    `fail` at any time instead of returning something.
    """

    def __init__(self, server: Server, client: Client, route: Route, event: Event) -> None:
        self.server = server
        self.client = client
        self.route = route
        self.header = event.header
        self.id = event.header["message_id"]
        self.size = 0
        self.credit = 1
        self.heard = server.clock()
        self.due = self.heard + server.heartbeat
        self.echoed = 0.0
        self.ended = False
        self.room: asyncio.Future[None] | None = None
        self.work: asyncio.Task[None] | None = None

    def reply(self, value: Any) -> None:
        """Answer with a value; one that cannot be packed becomes an error."""
        if not self.ended:
            try:
                self._end(self.server.pack(self.id, "OK", (value,)))
            except Exception as error:
                self.fail(error)

    def fail(self, error: BaseException | Told) -> None:
        """Answer with an error."""
        if not self.ended:
            told = error if isinstance(error, Told) else self.server.told(error)
            try:
                self._end(pack(self.id, "ERR", told[:3], told.header))
            except UnicodeEncodeError:
                legible = [t and t.encode("utf-8", "backslashreplace").decode() for t in told[:3]]
                self._end(pack(self.id, "ERR", legible))

    def _end(self, payload: bytes) -> None:
        self.server.close_call(self)
        self.server.send(self.client, self.route, payload)

    async def run(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function in a thread of the server's."""
        return await asyncio.wrap_future(self.server.thread(partial(work, *args, **options)))

    async def stream(self, items: AsyncIterator[Any]) -> None:
        """Send items as the client gives credit for them, then that they are all, or the error."""
        try:
            async for item in items:
                payload = self.server.pack(self.id, "STREAM", item)
                await self._turn()
                self.server.send(self.client, self.route, payload)
            await self._turn()
            self._end(pack(self.id, "STREAM_DONE", None))
        except Exception as error:
            await self._turn()
            self.fail(error)
        finally:
            await items.aclose()  # type: ignore[attr-defined]

    async def _turn(self) -> None:
        """Spend credit, once there is some and the client takes what it was sent."""
        while self.credit < 1 or self.client.outbox:
            self.room = asyncio.get_running_loop().create_future()
            await self.room
        self.credit -= 1

    def wake(self) -> None:
        """Look again whether it is this call's turn."""
        if self.room is not None and not self.room.done():
            self.room.set_result(None)


class Server:
    """Serves methods at one endpoint.

    Plain functions run in threads, coroutines on the event loop; generators of both kinds stream.

    Args:
        methods: any object, whose public methods are served, or a mapping of names to `Method`
            that may change meanwhile.
        endpoint: such as tcp://127.0.0.1:4242 or ipc:///path.
        name: what introspection calls the service.
        keys, insecure: CURVE keys, or the permission to do without; see `zerorpc_socket`.
        heartbeat: seconds between two.
        limits: for each client.
        threads: how many plain functions run at once.
        tell: turns an exception into what a client is told; `debug` shows it tracebacks.

    Raises:
        InvalidInput: the endpoint is none, or may not be open without keys.
    """

    def __init__(
        self,
        methods: Any,
        endpoint: str,
        *,
        name: str = "",
        keys: Folder | None = None,
        insecure: bool = False,
        heartbeat: float = 5.0,
        limits: Limits = LIMITS,
        threads: int = 40,
        tell: Callable[[BaseException], Told] | None = None,
        debug: bool = False,
    ) -> None:
        self.heartbeat = heartbeat
        self.limits = limits
        self.counts: Counter[str] = Counter()
        self.socket = Socket(endpoint, keys, insecure, heartbeat, 4 * limits.request)
        self._tell = tell or partial(_tell, debug=debug)
        self._methods = methods if isinstance(methods, Mapping) else published(methods)
        self._own = introspection(name or type(methods).__name__, self._methods)
        self._clients: dict[bytes, Client] = {}
        self._said: dict[str, float] = {}
        self._looking = self._closed = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="zerorpc")

    # Its life.

    async def serve(self) -> None:
        """Listen until cancelled."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.stop(0.0)

    async def start(self) -> None:
        """Listen.

        Raises:
            Unavailable: the address is in use.
        """
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self.socket.open(self._look, partial(self.complain, "handshake"))
        self._ticked = self.clock()
        self._tick()

    async def stop(self, grace: float) -> None:
        """Leave at a moment without open calls; refuse those that are open after `grace` seconds.

        ZeroMQ can't close its door and keep those who are in.
        """
        until = self.clock() + grace
        while self._clients and self.clock() < until:
            await asyncio.sleep(0.01)
        self._timer.cancel()
        for client in [*self._clients.values()]:
            for call in [*client.calls.values()]:
                call.fail(Unavailable("the server is stopping"))
                if call.work is not None:
                    call.work.cancel()
            self._lose(client)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._looking = self._closed = True
        self.socket.close()
        await self._loop.run_in_executor(None, self.socket.end)

    # Receiving: nothing here waits for anybody.

    def _look(self) -> None:
        """Read what is there.

        The socket's descriptor tells of changes only, and any operation on it may swallow one. So
        there is another look after whatever was done, and the last look has found nothing.
        """
        self._looking = False
        for _ in range(BURST):
            frames = None if self._closed else self.socket.receive()
            if frames is None:
                return
            try:
                self._take(frames)
            except Exception:
                logger.exception("a message could not be taken")
        self._look_again()

    def _look_again(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _take(self, frames: list[bytes]) -> None:
        if not 2 <= len(frames) <= MOST_FRAMES:
            self.complain("malformed", f"a message of {len(frames)} frames")
            return
        route, payload = frames[:1] if len(frames) < 4 else frames[:-2], frames[-1]
        most = self.limits.request
        refusal: Exception | None = None
        event = read_event(payload) if len(payload) <= most else None
        if len(payload) > most:
            refusal = TooLarge(f"the request is larger than the {most:,} bytes accepted here")
        elif event is None or type(event.name) is not str or type(event.args) is not list:
            refusal = Unreadable("a request is [header, name as text, array of arguments]")
        if event is None:
            event = Event(read_header(payload), "", None)
        id, to = event.header.get("message_id"), event.header.get("response_to")
        if not sound(id) or not (to is None or sound(to)):
            self.complain("malformed", "an event without a proper header")
        elif to is not None:
            self._go_on(route, to, event)
        else:
            self._open(route, event, len(payload), refusal)

    def _go_on(self, route: Route, to: Any, event: Event) -> None:
        """Take an event of a channel; one that has ended is often still spoken to."""
        client = self._clients.get(route[0])
        call = client and client.calls.get(_key(route, to))
        if not call:
            return
        now, args = self.clock(), event.args
        if type(event.name) is not str or event.name not in (BEAT, CREDIT):
            self.complain("malformed", "an event that is none of a client's")
            return
        call.heard = now
        if event.name == BEAT:
            if now - call.echoed >= ECHO:
                call.echoed = now
                self._beat(call)
        elif type(args) is list and args and type(args[0]) is int and args[0] > 0:
            call.credit = min(call.credit + args[0], MOST_CREDIT)
            call.wake()

    def _open(self, route: Route, event: Event, size: int, refusal: Exception | None) -> None:
        client = self._clients.get(route[0]) or Client(route[0])
        key = _key(route, event.header["message_id"])
        if key in client.calls or (refusal is None and event.name in (BEAT, CREDIT)):
            self.complain("malformed", "an event that opens no channel")
            return
        self._clients[route[0]] = client
        call = client.calls[key] = Call(self, client, route, event)
        full = len(client.calls) > self.limits.calls
        if refusal is None and (full or client.held + size > self.limits.held):
            told = f"{len(client.calls) - 1} calls of yours are open already"
            refusal = Overloaded(told, retry_after=1.0)
        if refusal is not None:
            call.fail(refusal)
            return
        call.size = size
        client.held += size
        self._dispatch(call, event.name, event.args)

    def _dispatch(self, call: Call, name: str, args: list[Any]) -> None:
        method = self._own.get(name) or self._methods.get(name)
        wrong = method and method.misfit(args)
        if method is None or wrong:
            call.fail(Told("TypeError", f"{name}() {wrong}") if wrong else Told("NameError", name))
            return
        result: Any = partial(call.run, method.function, *args)
        if method.on_loop:
            try:
                result = method.function(*((call, *args) if method.with_call else args))
            except Exception as error:
                call.fail(error)
                return
        if result is not None or not method.with_call:
            call.work = self._loop.create_task(self._work(call, result))

    async def _work(self, call: Call, result: Any) -> None:
        """Wait for a method's result and answer with it."""
        try:
            if isinstance(result, partial):
                result = result()
            if hasattr(result, "__await__"):
                result = await result
            if hasattr(result, "__next__"):
                result = self._pulled(result)
            if hasattr(result, "__anext__"):
                await call.stream(result)
            else:
                call.reply(result)
        except BaseException as error:  # the caller's too is one that would end the process
            call.fail(error)

    async def _pulled(self, items: Iterator[Any]) -> AsyncIterator[Any]:
        """The items of a generator that runs in threads."""
        pulling: Future[Any] = Future()
        try:
            while True:
                pulling = self.thread(partial(next, items, _END))
                item = await asyncio.wrap_future(pulling)
                if item is _END:
                    return
                yield item
        finally:
            pulling.add_done_callback(lambda _: getattr(items, "close", int)())

    def thread(self, work: Callable[[], Any]) -> Future[Any]:
        """Run something in a thread; what would end the process is an error like others."""
        return self._pool.submit(_harmless, work)

    # Sending.

    def pack(self, id: Any, name: str, args: Any) -> bytes:
        """An event's bytes.

        Raises:
            TooLarge: clients could not read it; other errors are the packer's own.
        """
        payload, most = pack(id, name, args), self.limits.answer
        if len(payload) > most:
            told = f"clients read at most {most:,}; ask for less, or for a stream"
            raise TooLarge(f"the answer has {len(payload):,} bytes, and {told}")
        return payload

    def told(self, error: BaseException) -> Told:
        """What a client is told of an exception, even of one that can't say what it is."""
        try:
            return self._tell(error)
        except Exception:
            logger.exception("an error could not be told")
            return Told(type(error).__name__, "")

    def send(self, client: Client, route: Route, payload: bytes) -> None:
        """Send to a client, now or as soon as it takes more; forget one that is gone."""
        client.outbox.append((route, payload))
        client.waiting += len(payload)
        if len(client.outbox) == 1:
            self._flush(client)
        elif client.waiting > self.limits.held:
            self._lose(client)

    def _flush(self, client: Client) -> None:
        """Send what waits for a client; one that takes nothing gets more and more time."""
        moved = False
        while client.outbox:
            route, payload = client.outbox[0]
            sent = self.socket.send(route, payload)
            self._look_again()
            if sent is None:
                self._lose(client)
                return
            if not sent:
                client.pause = 0.001 if moved else min(client.pause * 2, 0.1)
                self._loop.call_later(client.pause, self._flush, client)
                return
            client.outbox.popleft()
            client.waiting -= len(payload)
            moved = True
        for call in client.calls.values():
            call.wake()
        self._forget(client)

    # Heartbeats, and the end of calls.

    def _tick(self) -> None:
        """Beat where it is time to, and give up calls whose clients have fallen silent."""
        self._look()
        now = self.clock()
        # After a standstill of our own, what clients said meanwhile has yet to be read.
        fair, self._ticked = now - self._ticked < self.heartbeat, now
        for call in [call for each in self._clients.values() for call in each.calls.values()]:
            if fair and now - call.heard > PATIENCE * self.heartbeat:
                self._abandon(call)
            elif now >= call.due:
                call.due = now + self.heartbeat
                self._beat(call)
        self._timer = self._loop.call_later(self.heartbeat / 10, self._tick)

    def _beat(self, call: Call) -> None:
        if not (call.ended or call.client.outbox):
            self.send(call.client, call.route, pack(call.id, BEAT, (0,)))

    def _abandon(self, call: Call) -> None:
        if not call.ended:
            self.counts["lost"] += 1
            self.close_call(call)
            if call.work is not None:
                # A task that has not begun is given its turn first, so that it can clean up.
                self._loop.call_soon(call.work.cancel)

    def _lose(self, client: Client) -> None:
        client.outbox.clear()
        client.waiting = 0
        for call in [*client.calls.values()]:
            self._abandon(call)
        self._forget(client)

    def close_call(self, call: Call) -> None:
        """Let nothing more of a call be heard or sent."""
        call.ended = True
        call.client.held -= call.size
        del call.client.calls[_key(call.route, call.id)]
        self._forget(call.client)

    def _forget(self, client: Client) -> None:
        if not client.calls and not client.outbox:
            self._clients.pop(client.identity, None)

    def complain(self, kind: str, detail: str) -> None:
        """Count something that is wrong with a client, and log it now and then."""
        self.counts[kind] += 1
        if self.clock() >= self._said.get(kind, 0.0):
            self._said[kind] = self.clock() + COMPLAINTS
            logger.warning("%s (%d so far): %s", kind, self.counts[kind], detail)


def _key(route: Route, id: Any) -> Any:
    """What a channel is found by among those of its connection."""
    return id if len(route) == 1 else (*route, id)


def _harmless(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _tell(error: BaseException, debug: bool) -> Told:
    lines = "".join(traceback.format_exception(error)) if debug else None
    return Told(type(error).__name__, str(error), lines)
