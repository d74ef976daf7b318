"""The front door: models and URLs in, a running loop out.

    app = Loopline()
    app.add("sales", Formula("Sales ~ TV"), data="Advertising.csv", target="Sales")

`app.start()` runs the whole loop inside this process (a keeper thread and a worker thread);
`loopline serve app.py` runs the same app as processes under a supervisor (`supervisor.py`).
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from loopline.access import Access
from loopline.artifacts import Keys, own_process
from loopline.errors import InvalidInput, WrongState
from loopline.keeper import Keeper
from loopline.loop import Loop
from loopline.metrics import Metrics
from loopline.opening import Parts, locked, open_blobs, open_single, urls
from loopline.policy import Every
from loopline.registry import Definition, Registry
from loopline.serving import Serving
from loopline.settings import Settings, data_path, read_settings
from loopline.worker import Worker

logger = logging.getLogger("loopline.app")

ATTEMPT = "loopline.app:attempt"
FOLLOW = 0.25


class Loopline:
    """An application: models, and where their log, store and artifacts live.

    Args:
        data_dir: the data directory; default `./loopline-data` or `LOOPLINE_DATA_DIR`.
        settings: any field of `Settings`, for instance `log="memory:"`.
    """

    def __init__(self, data_dir: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        where = None if data_dir is None else os.fspath(data_dir)
        self.settings = read_settings(os.environ, data_dir=where, **settings)
        self.definitions: dict[str, Definition] = {}
        self._running: Running | None = None

    def add(
        self,
        name: str,
        model: Any,
        *,
        data: Any = None,
        target: str | None = None,
        schema: Any = None,
        retrain: Every | None = None,
        task: str | None = None,
        description: str = "",
        log: str = "async",
        redact: tuple[str, ...] = (),
    ) -> Loopline:
        """Declare a model.

        Args:
            name: matches `[a-z][a-z0-9_]*`.
            model: an estimator, fitted or not; an object or class with `predict`; a function.
            data: a file, a DataFrame, a `Query` or a function; see `connectors.read`.
            target: the column of the data to predict.
            schema: a typed record that declares the input where there are no data.
            retrain: when to retrain and what a candidate must show.
            task: "classification" or "regression", where the data leave it open.
            log: "async" (default), "sync" or "none"; see the README for what each can lose.
            redact: fields that are never logged.

        Returns:
            This application, for chaining.

        Raises:
            InvalidInput: the name is taken.
        """
        if name in self.definitions:
            raise InvalidInput(f"a model named {name!r} was added already")
        self.definitions[name] = Definition(
            name=name,
            model=model,
            data=data,
            target=target,
            schema=schema,
            retrain=retrain,
            task=task,
            description=description,
            log=log,
            redact=tuple(redact),
        )
        if self._running is not None:
            self._running.registry.register(self.definitions[name])
            self._running.loop.serving.refresh()
        return self

    def start(self) -> Loop:
        """Run the loop in this process: serving, a keeper thread, a worker thread.

        Returns:
            The loop, whose verbs can be called from any thread.

        Raises:
            Unavailable: the data directory is in use by a server.
        """
        if self._running is None:
            self._running = Running(self.settings)
            for definition in self.definitions.values():
                self._running.registry.register(definition)
            self._running.start()
        return self._running.loop

    @property
    def loop(self) -> Loop:
        """The running loop.

        Raises:
            WrongState: `start` was not called.
        """
        if self._running is None:
            raise WrongState("the application is not running; call start() first")
        return self._running.loop

    def stop(self) -> None:
        """Stop what `start` began; everything acknowledged is on disk."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def __enter__(self) -> Loopline:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Running:
    """An installation that lives inside one process."""

    def __init__(self, settings: Settings) -> None:
        self._stack = ExitStack()
        root = data_path(settings)
        if urls(settings) != ("memory:", "memory:", "memory:"):
            self._stack.enter_context(locked(root))
        self.parts = open_single(settings)
        self._stack.callback(self.parts.close)
        self.loop, self.registry = build(settings, self.parts)
        self._keeper = Keeper(self.parts.log, self.parts.store, settings, self.parts.doorbell)
        self._worker = make_worker(settings, self.parts, f"local-{os.getpid()}")
        self._follower = Follower(self.loop)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        self.loop.serving.refresh()
        for name, run in (
            ("keeper", self._keeper.run),
            ("worker", self._worker.run),
            ("follower", self._follower.run),
        ):
            thread = threading.Thread(target=run, name=f"loopline-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop the threads, then close the backends."""
        for part in (self._worker, self._follower, self._keeper):
            part.stop()
        for thread in self._threads:
            thread.join()
        self.loop.serving.close()
        self._stack.close()


class Follower:
    """Keeps the versions in memory as the store's aliases say.

    Args:
        loop: whose versions.
        also: called on every turn.
        changed: called after a version was loaded.
    """

    def __init__(
        self,
        loop: Loop,
        also: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._also = also
        self._changed = changed
        self._stop = threading.Event()

    def run(self) -> None:
        """Follow until `stop` is called."""
        while not self._stop.is_set():
            self._loop.doorbell.wait(FOLLOW)
            try:
                if self._loop.serving.refresh():
                    self._changed()
                self._also()
            except Exception:
                logger.exception("following the store failed; trying again")
                self._stop.wait(FOLLOW)

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()
        self._loop.doorbell.ring()


def build(settings: Settings, parts: Parts) -> tuple[Loop, Registry]:
    """Put a loop together from opened backends."""
    metrics = Metrics()
    metrics.watch_collector()
    keys = Keys(_key_file(settings))
    serving = Serving(parts.store, parts.log, parts.blobs, keys, settings, metrics)
    registry = Registry(parts.store, parts.blobs, keys, parts.doorbell.ring)
    loop = Loop(
        store=parts.store,
        log=parts.log,
        blobs=parts.blobs,
        serving=serving,
        registry=registry,
        doorbell=parts.doorbell,
        settings=settings,
        access=Access(parts.store, settings.token_required),
        metrics=metrics,
    )
    _sample(metrics, loop)
    return loop, registry


def _sample(metrics: Metrics, loop: Loop) -> None:
    """Numbers that are looked up when somebody asks for them."""
    metrics.sample(
        "loopline_model_info",
        lambda: {
            (service.record.name, str(service.aliases.champion)): 1.0
            for service in loop.serving.services()
            if service.aliases.champion is not None
        },
    )
    metrics.sample(
        "loopline_jobs",
        lambda: {
            (state,): float(count)
            for state, count in loop.store.job_figures().items()
            if state != "oldest"
        },
    )
    metrics.sample("loopline_log_buffer_bytes", lambda: {(): float(loop.log.buffered)})


def _key_file(settings: Settings) -> Path:
    return data_path(settings) / "keys.json"


def make_worker(settings: Settings, parts: Parts, name: str) -> Worker:
    """A worker whose attempts open the same blobs and keys."""
    context = {"blobs": urls(settings)[2], "keys": str(_key_file(settings))}
    return Worker(
        parts.store, parts.blobs, ATTEMPT, context, settings, name, doorbell=parts.doorbell
    )


def attempt(arguments: dict[str, Any], progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Run one training in an attempt's child process; the entry that workers name."""
    from loopline import training

    own_process()
    plan = msgspec.convert(arguments["plan"], training.Plan)
    blobs = open_blobs(arguments["blobs"])
    outcome = training.run(plan, blobs, Keys(Path(arguments["keys"])), progress)
    plain: dict[str, Any] = msgspec.to_builtins(outcome)
    return plain


def load_app(target: str) -> Loopline:
    """Import an application from `path/to/app.py[:name]`.

    Raises:
        InvalidInput: there is no such file, it does not import, or it holds no `Loopline`.
    """
    path, _, name = target.partition(":")
    module = _import_file(Path(path))
    if name:
        found = getattr(module, name, None)
    else:
        apps = [value for value in vars(module).values() if isinstance(value, Loopline)]
        found = apps[0] if len(apps) == 1 else getattr(module, "app", None)
    if not isinstance(found, Loopline):
        raise InvalidInput(f"{path} has no Loopline named {name or 'app'!r}")
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidInput(f"{path} does not import: {type(error).__name__}: {error}") from error
    return module


def settle_memory() -> None:
    """Collect once, then keep what is there out of every later collection."""
    gc.collect()
    gc.freeze()
