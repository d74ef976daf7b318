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
import math
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
from loopline.metrics import Pool
from loopline.opening import (
    ServerFile,
    locked,
    open_keeper,
    open_listeners,
    open_served,
    write_server_file,
)
from loopline.settings import Settings, data_path

logger = logging.getLogger("loopline.supervisor")

HEALTHY = 1.0
"""Seconds a process has to live for its death not to count as part of a series."""
BACK_OFF = (0.0, 0.0, 0.5, 1.0, 2.0)
METRICS = "metrics"
"""The folder in the data directory where processes leave their numbers."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Order(msgspec.Struct):
    """What a child process is told to be."""

    role: str  # keeper | replica | worker
    slot: int
    settings: Settings
    target: str | None = None
    config: str | None = None
    files: list[str] = []
    register: bool = False
    socket: int | None = None
    ready: int | None = None
    successor: bool = False


class Process:
    """One child in its slot, started again when it dies."""

    def __init__(self, order: Order, sock: socket.socket | None = None) -> None:
        self.order = order
        self._socket = sock
        self.name = f"{order.role}-{order.slot}"
        self.process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._short_lives = 0
        self._due = 0.0
        self._ready: int | None = None
        self._leaving: subprocess.Popen[bytes] | None = None
        self._leave_by = math.inf

    def start(self, successor: bool = False) -> None:
        """Start a fresh interpreter for this slot; a successor only if all its models load."""
        read, write = os.pipe()
        descriptors = [write]
        order = msgspec.structs.replace(self.order, ready=write, successor=successor)
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
        if code is None or self._leaving is not None:
            return False
        if self._due == 0.0:
            self._short_lives = self._short_lives + 1 if now - self._started < HEALTHY else 0
            pause = BACK_OFF[min(self._short_lives, len(BACK_OFF) - 1)]
            logger.warning("%s ended (%s); starting it again", self.name, code)
            self._due = now + pause
        if now < self._due:
            return False
        self._due = 0.0
        _end(self.process, 0.0)
        self._close_ready()
        self.start()
        return True

    def roll(self, grace: float) -> int | None:
        """Do the next step of giving the slot to a fresh process, without a failed call.

        The successor serves before its predecessor is told to leave, and both share the socket.

        Returns:
            The predecessor's process id once it is gone (the successor's own, if that is what
            ended, and the predecessor stayed); None before.
        """
        assert self.process is not None
        if self._leaving is None:
            self._close_ready()
            self._leaving, self._leave_by = self.process, math.inf
            self.start(successor=True)
        elif self._ready is not None:
            return self._welcome(grace)
        elif self._leaving.poll() is not None or time.monotonic() > self._leave_by:
            gone, self._leaving = self._leaving, None
            _end(gone, 0.0)
            return gone.pid
        return None

    def _welcome(self, grace: float) -> int | None:
        """Let the predecessor leave if the successor is ready; keep it if there is none."""
        assert self.process is not None and self._ready is not None and self._leaving is not None
        if not select.select([self._ready], [], [], 0.0)[0]:
            return None
        said = self.wait_ready(0.0)
        if said == "ready":
            self._leave_by = time.monotonic() + grace
            self._leaving.send_signal(signal.SIGHUP)
            return None
        logger.error("%s keeps its process, the new one said: %s", self.name, said)
        failed, self.process, self._leaving = self.process, self._leaving, None
        _end(failed, 1.0)
        return failed.pid

    def stop(self, grace: float) -> None:
        """Ask it to drain and end; kill it when it does not in time."""
        for process in (self._leaving, self.process):
            if process is not None and not _end(process, grace):
                logger.error("%s did not stop in %g s; killed", self.name, grace)
        self._close_ready()

    def _close_ready(self) -> None:
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None


def _end(process: subprocess.Popen[bytes], grace: float) -> bool:
    """End a process, by force if it does not do so in time, and let go of its pipe.

    Returns:
        Whether no force was needed.
    """
    gentle = True
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            gentle = False
            process.kill()
            process.wait()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return gentle


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
        self._asked_to_roll = False
        self._rolling: list[Process] = []
        self._pool = Pool(data_path(settings) / METRICS)

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
            url = f"http://{shown}:{port}{self.settings.root_path}"
            found = ServerFile(pid=os.getpid(), url=url, started=time.time())
            write_server_file(root, found)
            self._pool.clear()
            self._tend(found, root, sock)

    def _tend(self, found: ServerFile, root: Path, sock: socket.socket) -> None:
        settings = self.settings
        served = (self._target, self._config, self._files)
        keeper = Process(Order("keeper", 0, settings))
        replicas = [
            Process(Order("replica", slot, settings, *served, register=slot == 0), sock)
            for slot in range(settings.processes)
        ]
        workers = [Process(Order("worker", slot, settings)) for slot in range(settings.workers)]
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
                process.stop(settings.drain + 2.0)

    def _start(self, process: Process, started: list[Process]) -> None:
        if not self._stopping:
            process.start()
            started.append(process)

    def _look(self, started: list[Process], keeper: Process, found: ServerFile, root: Path) -> None:
        if select.select([self._wake_read], [], [], 0.05)[0]:
            os.read(self._wake_read, 64)
        now = time.monotonic()
        for process in started:
            assert process.process is not None
            before = process.process.pid
            if not self._stopping and process.tend(now):
                self._pool.retire(before)
                if process is keeper:
                    self._meet(keeper, found, root)
        self._roll(started)

    def _roll(self, started: list[Process]) -> None:
        """Give the replicas fresh processes, one after the other."""
        if self._asked_to_roll and not self._rolling:
            self._asked_to_roll = False
            self._rolling = [each for each in started if each.order.role == "replica"]
        if self._rolling and not self._stopping:
            gone = self._rolling[0].roll(self.settings.drain + 2.0)
            if gone is not None:
                self._pool.retire(gone)
                self._rolling.pop(0)

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
        def heed(number: int, frame: object) -> None:
            if number == signal.SIGHUP:
                self._asked_to_roll = True
            else:
                self._stopping = True
            os.write(self._wake_write, b"x")

        heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, heed) for number in heeded}
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
    gc.collect()
    gc.freeze()
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
        watch = _register(order, registry)
    loop.serving.refresh(force=True)
    troubles = [service.trouble for service in loop.serving.services() if service.trouble]
    if order.successor and troubles:
        _say(order, "; ".join(troubles))
        raise SystemExit(1)
    settle_memory()
    pool = loop.metrics.pool = Pool(data_path(order.settings) / METRICS, os.getpid())

    def also() -> None:
        pool.publish(loop.metrics, time.monotonic())
        watch()

    # The collection itself is the pause to avoid, so while serving there is only the freeze.
    follower = Follower(loop, also, gc.freeze)
    threading.Thread(target=follower.run, name="follower", daemon=True).start()
    _serve_http(order, loop, parent)
    pool.publish(loop.metrics)
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
    from loopline.adapters.http import create
    from loopline.adapters.lane import Server

    assert order.socket is not None
    settings, door = order.settings, create(loop)
    sock = socket.socket(fileno=order.socket)
    lane = (door.admit, door.tally) if settings.lane else (None, None)
    more = (*lane, open_listeners(loop, order.slot), settings.max_body)
    server = Server(door, sock, settings.drain, settings.root_path, *more)

    def started() -> None:
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGTERM, server.leave)
        running.add_signal_handler(signal.SIGHUP, server.leave, True)
        parent.watch(server.leave)
        _say(order, "ready")

    try:
        server.run(started)
    finally:
        door.close()


def main() -> None:
    """Run in a child: read the order and be what it says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    level = logging.DEBUG if order.settings.debug else logging.WARNING
    shape = f"%(asctime)s {order.role}-{order.slot} %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=shape)
    logging.getLogger("loopline").setLevel(level)
    run = {"keeper": _run_keeper, "worker": _run_worker, "replica": _run_replica}[order.role]
    try:
        run(order, _Parent())
    except LooplineError as error:
        if order.role != "replica" or order.ready is None:
            raise
        _say(order, error.detail)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
