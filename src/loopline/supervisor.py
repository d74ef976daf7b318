"""The processes of a server: one keeper, the replicas, the workers, and who restarts them.

The supervisor itself imports no model library and serves nothing: it holds the data directory's
lock and the listening socket, starts the others as fresh interpreters, restarts whichever dies,
and on SIGTERM or SIGINT drains them in order. Every child holds the read end of a pipe whose
write end only the supervisor has, and leaves when that closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loopline.errors import InvalidInput, LooplineError, Unavailable
from loopline.opening import ServerFile, locked, open_keeper, open_served, write_server_file
from loopline.settings import Settings, data_path

logger = logging.getLogger("loopline.supervisor")

HEALTHY = 1.0
"""Seconds a process has to live for its death not to count as part of a series."""
BACK_OFF = (0.0, 0.0, 0.5, 1.0, 2.0)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Order(msgspec.Struct):
    """What a child process is told to be."""

    role: str  # keeper | replica | worker
    slot: int
    settings: Settings
    target: str | None = None
    config: str | None = None
    register: bool = False
    files: list[str] = []
    socket: int | None = None
    ready: int | None = None


class Process:
    """One child in its slot, started again when it dies."""

    def __init__(self, order: Order, sock: socket.socket | None = None) -> None:
        self.order = order
        self._socket = sock
        self.name = f"{order.role}-{order.slot}"
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self._started = 0.0
        self._short_lives = 0
        self._due = 0.0
        self._ready: int | None = None

    def start(self) -> None:
        """Start a fresh interpreter for this slot."""
        read, write = os.pipe()
        descriptors = [write]
        order = msgspec.structs.replace(self.order, ready=write)
        if self._socket is not None:
            order.socket = self._socket.fileno()
            descriptors.append(order.socket)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loopline.supervisor", self.name],
            stdin=subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,
        )
        os.close(write)
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        self.process.stdin.flush()
        self._ready = read
        self._started = time.monotonic()

    def wait_ready(self, timeout: float) -> str | None:
        """Wait until the child says it is ready.

        Returns:
            What it said; None when it died first or the time was up.
        """
        assert self._ready is not None
        readable, _, _ = select.select([self._ready], [], [], timeout)
        text = os.read(self._ready, 65536).decode() if readable else ""
        os.close(self._ready)
        self._ready = None
        return text.strip() or None

    def tend(self, now: float) -> bool:
        """Start again if it died, at once or, when it keeps dying, after a pause.

        Returns:
            Whether it was started.
        """
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        if self._due == 0.0:
            self._short_lives = self._short_lives + 1 if now - self._started < HEALTHY else 0
            pause = BACK_OFF[min(self._short_lives, len(BACK_OFF) - 1)]
            logger.warning("%s ended (%s); starting it again", self.name, code)
            self._due = now + pause
        if now < self._due:
            return False
        self._due = 0.0
        self.restarts += 1
        self._close_pipes()
        self.start()
        return True

    def stop(self, grace: float) -> None:
        """Ask it to drain and end; kill it when it does not in time."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                logger.error("%s did not stop in %g s; killed", self.name, grace)
                self.process.kill()
                self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None


class Supervisor:
    """Runs a server until it is told to stop.

    Args:
        settings: host, port, processes, workers and the rest.
        target: an application file `app.py[:name]`, or None to serve what the data directory holds.
        config: a `loopline.toml`, watched while running.
        files: model files to serve, `name=path`.
        announce: called once with the URL when the server answers.
    """

    def __init__(
        self,
        settings: Settings,
        target: str | None = None,
        config: str | None = None,
        files: list[str] | None = None,
        announce: Callable[[str], None] = lambda url: None,
    ) -> None:
        self.settings = settings
        self._target = target
        self._config = config
        self._files = files or []
        self._announce = announce
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = False

    def run(self) -> None:
        """Start everything, tend it, and drain it at the end.

        Raises:
            Forbidden: the address is not loopback and no token is required.
            Unavailable: the data directory or the port is in use.
            InvalidInput: the application could not be registered.
        """
        _check_exposure(self.settings)
        root = data_path(self.settings)
        with locked(root), _listen(self.settings) as sock, self._signals():
            host, port = sock.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            found = ServerFile(
                pid=os.getpid(), url=f"http://{shown}:{port}{self.settings.root_path}"
            )
            found.started = time.time()
            write_server_file(root, found)
            self._tend(found, root, sock)

    def _order(self, role: str, slot: int, **more: Any) -> Order:
        return Order(role=role, slot=slot, settings=self.settings, **more)

    def _tend(self, found: ServerFile, root: Path, sock: socket.socket) -> None:
        keeper = Process(self._order("keeper", 0))
        replicas = [
            Process(
                self._order(
                    "replica",
                    slot,
                    target=self._target,
                    config=self._config,
                    files=self._files,
                    register=slot == 0,
                ),
                sock,
            )
            for slot in range(self.settings.processes)
        ]
        workers = [Process(self._order("worker", slot)) for slot in range(self.settings.workers)]
        started: list[Process] = []
        try:
            self._start(keeper, started)
            self._start(replicas[0], started)
            self._meet(keeper, found, root)
            self._first_ready(replicas[0])
            for process in (*replicas[1:], *workers):
                self._start(process, started)
            if not self._stopping:
                self._announce(found.url)
            while not self._stopping:
                self._look(started, keeper, found, root)
        finally:
            for process in reversed(started):
                process.stop(self.settings.drain + 2.0)

    def _start(self, process: Process, started: list[Process]) -> None:
        if not self._stopping:
            process.start()
            started.append(process)

    def _look(self, started: list[Process], keeper: Process, found: ServerFile, root: Path) -> None:
        select.select([self._wake_read], [], [], 0.05)
        now = time.monotonic()
        for process in started:
            if not self._stopping and process.tend(now) and process is keeper:
                self._meet(keeper, found, root)

    def _meet(self, keeper: Process, found: ServerFile, root: Path) -> None:
        """Learn from a new keeper where it listens, and tell everyone."""
        if self._stopping:
            return
        said = keeper.wait_ready(10.0)
        if said is None:
            logger.error("the keeper did not start")
            return
        found.keeper = msgspec.json.decode(said)
        write_server_file(root, found)

    def _first_ready(self, replica: Process) -> None:
        """The first replica registers the models: what is wrong with them stops the server."""
        said = None
        while not self._stopping and said is None:
            assert replica.process is not None
            if replica._ready is not None:
                readable, _, _ = select.select([replica._ready, self._wake_read], [], [], 1.0)
                if replica._ready in readable:
                    said = replica.wait_ready(0.0) or "the first replica died while starting"
        if said is not None and said != "ready":
            raise InvalidInput(said)
        if replica.order.config is None:
            replica.order.register = False

    @contextlib.contextmanager
    def _signals(self) -> Any:
        def stop(number: int, frame: object) -> None:
            self._stopping = True
            os.write(self._wake_write, b"x")

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _check_exposure(settings: Settings) -> None:
    if settings.host in LOOPBACK or settings.token_required or settings.insecure:
        return
    raise InvalidInput(
        f"{settings.host} can be reached by others: require tokens (--token-required), "
        "or say --insecure if that is meant"
    )


@contextlib.contextmanager
def _listen(settings: Settings) -> Any:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
                "another server may be there, choose one with --port"
            ) from error
        sock.listen(2048)
        sock.set_inheritable(True)
        yield sock


# What follows runs in the children.


class _Parent:
    """The pipe to the supervisor: when it closes, the supervisor is gone and so is this process."""

    def __init__(self) -> None:
        self._leave: Callable[[], None] = partial(os._exit, 1)
        threading.Thread(target=self._wait, name="parent", daemon=True).start()

    def watch(self, leave: Callable[[], None]) -> None:
        """From now on leave in order instead of at once."""
        self._leave = leave

    def _wait(self) -> None:
        # Not through sys.stdin, whose lock a thread must not hold when the interpreter ends.
        while os.read(0, 4096):
            pass
        self._leave()


def _say(order: Order, text: str) -> None:
    if order.ready is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(order.ready, text.encode() + b"\n")
        os.close(order.ready)
        order.ready = None


def _run_keeper(order: Order, parent: _Parent) -> None:
    from loopline.keeper import Keeper

    parts = open_keeper(order.settings)
    assert parts.inlet is not None
    keeper = Keeper(parts.log, parts.store, order.settings, parts.doorbell, parts.inlet)
    signal.signal(signal.SIGTERM, lambda *_: keeper.stop())
    parent.watch(keeper.stop)
    _say(order, msgspec.json.encode(parts.inlet.address).decode())
    keeper.run()
    parts.inlet = None
    parts.close()


def _run_worker(order: Order, parent: _Parent) -> None:
    from loopline.app import make_worker

    parts = open_served(order.settings)
    worker = make_worker(order.settings, parts, f"{socket.gethostname()}-{order.slot}")
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    parent.watch(worker.stop)
    worker.run()
    parts.close()


def _run_replica(order: Order, parent: _Parent) -> None:
    from loopline.app import Follower, build, settle_memory
    from loopline.artifacts import own_process

    own_process()
    parts = open_served(order.settings)
    loop, registry = build(order.settings, parts)
    watch: Callable[[], None] = lambda: None  # noqa: E731
    if order.register:
        try:
            watch = _register(order, registry)
        except LooplineError as error:
            _say(order, error.detail)
            raise SystemExit(1) from None
    loop.serving.refresh(force=True)
    settle_memory()
    # The collection itself is the pause to avoid, so while serving there is only the freeze.
    follower = Follower(loop, watch, gc.freeze)
    threading.Thread(target=follower.run, name="follower", daemon=True).start()
    _serve_http(order, loop, parent)
    follower.stop()
    loop.serving.close()
    parts.close()


def _register(order: Order, registry: Any) -> Callable[[], None]:
    """Register what this server was started with; returns the watch over its configuration."""
    from loopline.app import load_app
    from loopline.artifacts import load_file
    from loopline.registry import Definition

    if order.target:
        for definition in load_app(order.target).definitions.values():
            registry.register(definition)
    for text in order.files:
        name, _, file = text.partition("=")
        adopted = load_file(Path(file), trust=order.settings.trust)
        registry.register(Definition(name=name, model=adopted, source="cli"))
    if order.config is None:
        return lambda: None
    path = Path(order.config)
    registry.reload(path)
    seen = [path.stat().st_mtime_ns]

    def watch() -> None:
        now = path.stat().st_mtime_ns
        if now != seen[0]:
            seen[0] = now
            logger.info("%s changed: %s", path, ", ".join(registry.reload(path)))

    return watch


def _serve_http(order: Order, loop: Any, parent: _Parent) -> None:
    import uvicorn

    from loopline.adapters.http import create

    settings = order.settings
    config = uvicorn.Config(
        create(loop),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, int(settings.drain)),
        root_path=settings.root_path,
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    server = Server(config)
    assert order.socket is not None
    sock = socket.socket(fileno=order.socket)

    async def main() -> None:
        running = asyncio.get_running_loop()

        def leave() -> None:
            server.should_exit = True

        running.add_signal_handler(signal.SIGTERM, leave)
        parent.watch(partial(_from_thread, running, leave))
        serving = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        _say(order, "ready")
        await serving

    if sys.platform != "win32":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


def _from_thread(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(act)


def main() -> None:
    """Run in a child: read the order and be what it says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    level = logging.DEBUG if order.settings.debug else logging.WARNING
    shape = f"%(asctime)s {order.role}-{order.slot} %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=shape)
    logging.getLogger("loopline").setLevel(level)
    run = {"keeper": _run_keeper, "worker": _run_worker, "replica": _run_replica}[order.role]
    run(order, _Parent())


if __name__ == "__main__":
    main()
