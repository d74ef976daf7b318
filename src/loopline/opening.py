"""From URLs to backends, lazily: the only place that knows which is which."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loopline.contracts import BlobStore, Doorbell, EventLog, Inlet, Store
from loopline.errors import InvalidInput, Unavailable
from loopline.settings import Settings, data_path

if TYPE_CHECKING:
    from loopline.adapters.lane import Listener
    from loopline.loop import Loop

SERVER_FILE = "server.json"
SERVER_FILE_SIZE = 4096
LOCK_FILE = "server.lock"


class Parts(msgspec.Struct):
    """The opened backends of one process."""

    store: Store
    log: EventLog
    blobs: BlobStore
    doorbell: Doorbell
    inlet: Inlet | None = None

    def close(self) -> None:
        """Close what has to be closed."""
        if self.inlet is not None:
            self.inlet.close()
        self.log.close()
        self.store.close()


class ServerFile(msgspec.Struct):
    """What the lock's holder says of itself to those who find the data directory in use."""

    pid: int
    url: str = ""
    keeper: Any = None
    started: float = 0.0


def urls(settings: Settings) -> tuple[str, str, str]:
    """The URLs of log, store and blobs, with the data directory's files as defaults."""
    root = data_path(settings)
    return (
        settings.log or f"sqlite:///{root}/log.db",
        settings.store or f"sqlite:///{root}/store.db",
        settings.blobs or f"file://{root}/blobs",
    )


def open_store(url: str) -> Store:
    """Open a store: `memory:`, `sqlite:///path` or `postgresql+psycopg://…`."""
    if url == "memory:":
        from loopline.backends.memory_store import MemoryStore

        return MemoryStore()
    from loopline.backends.store import SqlStore

    return SqlStore.open(url)


def open_blobs(url: str) -> BlobStore:
    """Open a blob store: `memory:` or `file:///path`."""
    if url == "memory:":
        from loopline.backends.memory_store import MemoryBlobs

        return MemoryBlobs()
    if url.startswith("file://"):
        from loopline.backends.files import FileBlobs

        return FileBlobs(Path(url.removeprefix("file://")))
    raise InvalidInput(f"no blob store speaks {url!r}; use memory: or file:///path")


def open_log(url: str) -> EventLog:
    """Open an event log to write it in this process: `memory:` or `sqlite:///path`."""
    if url == "memory:":
        from loopline.backends.memory import MemoryLog

        return MemoryLog()
    from loopline.backends.sqlite import SqliteLog

    return SqliteLog(_sqlite_path(url))


def _sqlite_path(url: str) -> Path:
    if not url.startswith("sqlite:///"):
        raise InvalidInput(f"no event log speaks {url!r}; use memory: or sqlite:///path")
    return Path(url.removeprefix("sqlite:///"))


def _doorbell(store: str, log: str) -> Doorbell:
    if store.startswith("sqlite:///"):
        from loopline.backends.doorbell import PollingDoorbell

        return PollingDoorbell([_sqlite_path(store)])
    from loopline.backends.memory import MemoryDoorbell

    return MemoryDoorbell()


def open_single(settings: Settings) -> Parts:
    """Open everything for one process that is its own keeper."""
    log, store, blobs = urls(settings)
    return Parts(open_store(store), open_log(log), open_blobs(blobs), _doorbell(store, log))


def open_keeper(settings: Settings) -> Parts:
    """Open everything for the keeper: the log's writer, with an inlet for the others."""
    from loopline.backends.handover import LogInlet
    from loopline.backends.sqlite import SqliteLog

    parts = open_single(settings)
    if isinstance(parts.log, SqliteLog):
        parts.inlet = LogInlet(parts.log, str(data_path(settings) / "keeper.sock"))
    return parts


def open_served(settings: Settings) -> Parts:
    """Open everything for a replica or a worker: the log through the keeper."""
    from loopline.backends.handover import LogClient

    log, store, blobs = urls(settings)
    root = data_path(settings)

    def address() -> Any:
        found = read_server_file(root)
        if found is None or found.keeper is None:
            raise Unavailable("the keeper has not said yet where it listens", retry_after=1.0)
        return found.keeper

    client = LogClient(_sqlite_path(log), address, max_buffer=settings.max_buffer)
    return Parts(open_store(store), client, open_blobs(blobs), _doorbell(store, log))


def open_listeners(loop: Loop, slot: int) -> list[Listener]:
    """The other protocols' servers of a replica; an endpoint that takes one has the first's.

    Raises:
        InvalidInput: an address cannot be understood, or may not be open without keys.
        MissingExtra: the protocol's library is not installed.
    """
    found: list[Listener] = []
    if loop.settings.grpc:
        from loopline.adapters import grpc

        found.append(grpc.create(loop))
    if loop.settings.zerorpc and slot == 0:
        from loopline.adapters import zerorpc_models

        found.append(zerorpc_models.create(loop))
    return found


def read_server_file(root: Path) -> ServerFile | None:
    """What the running server says of itself, if it has said so."""
    try:
        return msgspec.json.decode((root / SERVER_FILE).read_bytes(), type=ServerFile)
    except (OSError, msgspec.DecodeError):
        return None


def write_server_file(root: Path, found: ServerFile) -> None:
    """Say where the server and its keeper are; replaced in one step, or in place on a full disk.

    Raises:
        Unavailable: the disk is full, and there is no file yet.
    """
    # Always the same length, so that writing over the old one needs no room.
    data = msgspec.json.encode(found).ljust(SERVER_FILE_SIZE)
    path, fresh = root / SERVER_FILE, root / f".{SERVER_FILE}.{os.getpid()}"
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if not path.exists():
            raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
        with path.open("r+b") as file:
            file.write(data)


@contextlib.contextmanager
def locked(root: Path, patience: float = 5.0) -> Iterator[None]:
    """Hold the data directory for this process alone.

    Args:
        root: the data directory; made if it is not there.
        patience: seconds to wait for a holder that is just going.

    Raises:
        Unavailable: another server has it; the message names it.
    """
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK_FILE, "a+b") as file:
        deadline = time.monotonic() + patience
        while not _try_lock(file):
            if time.monotonic() > deadline:
                found = read_server_file(root)
                who = f"process {found.pid} at {found.url or 'no port'}" if found else "another"
                raise Unavailable(f"the data directory {root} is in use by {who}")
            time.sleep(0.02)
        try:
            yield
        finally:
            (root / SERVER_FILE).unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)


def _try_lock(file: Any) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running(root: Path) -> ServerFile | None:
    """The server that holds this data directory, None when nobody does."""
    if not (root / LOCK_FILE).exists():
        return None
    with open(root / LOCK_FILE, "a+b") as file:
        if _try_lock(file):
            return None
    return read_server_file(root)
