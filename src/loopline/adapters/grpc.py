"""gRPC: `create` gives the server of a replica, on its event loop.

It serves a typed service for each model, found by name at each call because models come and go,
the Open Inference Protocol, health (`grpc.health.v1`) and reflection. Errors are gRPC's statuses
with details: `ErrorInfo` whose reason is our code, `BadRequest` with JSON Pointers, `RetryInfo`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn

from loopline.access import Caller
from loopline.adapters import grpc_inference, grpc_messages, grpc_service
from loopline.adapters.grpc_call import Call, Gathering, Method, NoSuchMethod
from loopline.adapters.status import GRPC
from loopline.errors import (
    InvalidInput,
    LooplineError,
    MissingExtra,
    ModelFailed,
    Unavailable,
)
from loopline.loop import Loop
from loopline.records import new_id

try:
    import grpc
    from grpc_health.v1 import health_pb2
    from grpc_reflection.v1alpha import reflection, reflection_pb2
    from grpc_status import rpc_status
except ImportError as missing:
    raise MissingExtra("gRPC needs grpcio and more: pip install 'loopline[grpc]'") from missing

logger = logging.getLogger("loopline.grpc")

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
NOBODY = Caller(name="nobody", scopes=frozenset())
MOST_CALLS = 10_000
"""Calls under way; the next one is refused at once."""
MOST_PATHS = 1_000
"""Methods whose handlers are kept."""
LOOK = 0.2
"""Seconds between two looks at the health that somebody watches."""
_HEALTH = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
_State = health_pb2.HealthCheckResponse

Handler = Any
Context = Any


def create(loop: Loop) -> Server:
    """Make the server of this process.

    Raises:
        InvalidInput: the address is none, or may be reached by others without a token.
    """
    address = loop.settings.grpc
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(f"{address!r} is not an address for gRPC; give HOST:PORT")
    settings = loop.settings
    if not (host in LOOPBACK or settings.token_required or settings.insecure):
        raise InvalidInput(
            f"{host} can be reached by others: require tokens (--token-required), "
            "or say --insecure if that is meant"
        )
    return Server(loop, address)


class Server(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The gRPC server of one process.

    Args:
        loop: whose verbs are offered.
        address: HOST:PORT, which other processes of this server may listen on too.
    """

    def __init__(self, loop: Loop, address: str) -> None:
        self._loop = loop
        self._address = address
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="grpc")
        self._inference = grpc_inference.Inference()
        self._contracts = grpc_service.Contracts(loop)
        self._gathering = Gathering(loop.serving)
        self._readers: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Handler] = {}
        self._leaving = False
        self._server: Any = None

    async def start(self) -> None:
        """Listen.

        Raises:
            Unavailable: the address is in use.
        """
        self._server = grpc.aio.server(
            handlers=[self],
            maximum_concurrent_rpcs=MOST_CALLS,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", self._loop.settings.max_body),
                ("grpc.max_send_message_length", -1),
            ],
        )
        try:
            self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            told = f"cannot listen on {self._address} for gRPC; another server may be there"
            raise Unavailable(told) from error
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Tell that this server leaves, finish what was begun, and hang up."""
        self._leaving = True
        for reader in list(self._readers):
            reader.cancel()
        if self._server is not None:
            await self._server.stop(grace)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # Finding the method.

    def service(self, handler_call_details: Any) -> Handler:
        """The handler of a call, by the name of its method."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None:
            service, _, name = path[1:].rpartition("/")
            handler = self._find(service, name)
            if handler is not None and len(self._handlers) < MOST_PATHS:
                self._handlers[path] = handler
        return handler

    def _find(self, service: str, name: str) -> Handler:
        if service == _HEALTH:
            return {"Check": _unary(self._check), "Watch": _stream(self._watch)}.get(name)
        if service in _REFLECTION and name == "ServerReflectionInfo":
            return grpc.stream_stream_rpc_method_handler(
                self._reflect,
                reflection_pb2.ServerReflectionRequest.FromString,
                reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        if service == grpc_inference.SERVICE:
            method = self._inference.methods.get(name)
            streams, open = name == "ModelStreamInfer", name in ("ServerLive", "ServerReady")
            return self._handler(lambda: method, streams, open) if method else None
        model = grpc_messages.model_of(service)
        if model is None:
            return None
        # Looked up at each call, because the model may have changed.
        found = partial(self._contracts.method, model, name)
        return self._handler(found, name == "PredictStream")

    def _handler(self, find: Callable[[], Method], streams: bool, open: bool = False) -> Handler:
        """The handler of a method: who calls (unless it is open), the verb, errors as statuses."""

        async def answer(request: bytes, context: Context) -> bytes:
            try:
                call, method = await self._open(context, open), find()
                found = await method.answer(call, grpc_messages.parse(method.takes, request))
                data: bytes = found.SerializeToString()
                return data
            except Exception as error:
                await self._abort(context, error)

        async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            try:
                call, method = await self._open(context), find()
                async with aclosing(method.answer(call, requests)) as answers:
                    async for found in answers:
                        yield found.SerializeToString()
            except Exception as error:
                await self._abort(context, error)

        if streams:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)

    async def _open(self, context: Context, open: bool = False) -> Call:
        """Find out who calls, and how long they will wait."""
        access, token = self._loop.access, None
        if access.required and not open:
            for name, text in context.invocation_metadata() or ():
                if name == "authorization" and text[:7].lower() == "bearer ":
                    token = text[7:].strip()
        caller = NOBODY if open else access.recall(token)
        if caller is None:
            running = asyncio.get_running_loop()
            caller = await running.run_in_executor(self._pool, access.identify, token)
        left = context.time_remaining()
        until = None if left is None else time.monotonic() + left
        return Call(self._loop, caller, until, self._pool, self._readers, self._gathering)

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        """End a call with any exception, and log those that are not the caller's doing."""
        if isinstance(error, NoSuchMethod):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        told: dict[str, str] = {}
        known = error
        if not isinstance(known, LooplineError):
            known = ModelFailed("something went wrong here; the log has the details under this id")
        name = GRPC[known.code]
        if name == "INTERNAL":
            told["instance"] = new_id()
            logger.error("%s: %s", told["instance"], error, exc_info=error)
            if self._loop.settings.debug:
                told["traceback"] = "".join(traceback.format_exception(error))[-1000:]
        found = rpc_status.to_status(grpc_messages.status(name, known, told))
        await context.abort(found.code, found.details, found.trailing_metadata)
        raise error

    # Health and reflection.

    def _services(self) -> list[str]:
        names = [grpc_messages.service_of(s.record.name) for s in self._loop.serving.services()]
        return [grpc_inference.SERVICE, _HEALTH, *_REFLECTION, *names]

    def _state(self, service: str) -> Any:
        model = grpc_messages.model_of(service)
        if service and service not in self._services():
            return _State.SERVICE_UNKNOWN
        if self._leaving:
            return _State.NOT_SERVING
        if model is None:
            good = service in (_HEALTH, *_REFLECTION) or self._loop.ready()[0]
        else:
            good = self._loop.serving.service(model).why_not() is None
        return _State.SERVING if good else _State.NOT_SERVING

    async def _check(self, request: Any, context: Context) -> Any:
        state = self._state(request.service)
        if state == _State.SERVICE_UNKNOWN:
            told = f"there is no service {request.service!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, told)
        return _State(status=state)

    async def _watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        told = None
        while True:
            state, leaving = self._state(request.service), self._leaving
            if state != told:
                told = state
                yield _State(status=state)
            if leaving:
                return
            await asyncio.sleep(LOOK)

    async def _reflect(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """Describe the services as they are at this moment."""
        try:
            call = await self._open(context)
        except LooplineError as error:
            await self._abort(context, error)
        pool = await call.work(self._describe)
        servicer = reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]
            self._services(), pool
        )
        async for answer in servicer.ServerReflectionInfo(requests, context):
            yield answer

    def _describe(self) -> Any:
        return grpc_messages.pool_of(
            grpc_messages.describe(each.record for each in self._loop.serving.services()),
            grpc_inference.describe(),
            health_pb2.DESCRIPTOR.serialized_pb,
            reflection_pb2.DESCRIPTOR.serialized_pb,
        )


def _unary(answer: Any) -> Handler:
    return grpc.unary_unary_rpc_method_handler(
        answer, health_pb2.HealthCheckRequest.FromString, _State.SerializeToString
    )


def _stream(answer: Any) -> Handler:
    return grpc.unary_stream_rpc_method_handler(
        answer, health_pb2.HealthCheckRequest.FromString, _State.SerializeToString
    )
