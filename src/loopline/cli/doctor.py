"""`loopline doctor`: what this machine, this installation and the data directory are like."""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from loopline import __version__
from loopline.opening import running
from loopline.settings import Settings

EXTRAS = {
    "stats": "statsmodels",
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "river": "river",
    "postgres": "psycopg",
}
Finding = tuple[str, str, str]
"""What was looked at; ok, note or wrong; and what was found."""


def examine(settings: Settings, root: Path) -> list[dict[str, str]]:
    """Look at everything.

    Returns:
        {"check", "state": ok | note | wrong, "detail"} for each thing looked at.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        _sqlite,
        _extras,
        lambda: _directory(root),
        lambda: _server(settings, root),
    )
    names = ("check", "state", "detail")
    return [dict(zip(names, found, strict=True)) for check in checks for found in check()]


def _machine() -> Iterator[Finding]:
    yield "Loopline", "ok", __version__
    good = sys.version_info >= (3, 11)
    yield "Python", "ok" if good else "wrong", f"{platform.python_version()}, {sys.executable}"
    serves = sys.platform != "win32"
    detail = platform.platform() + ("" if serves else "; a server needs Linux or macOS")
    yield "platform", "ok" if serves else "note", detail


def _sqlite() -> Iterator[Finding]:
    from loopline.backends.database import sqlite_module, wal_is_safe

    module = sqlite_module()
    version = module.sqlite_version_info
    where = module.__name__.partition(".")[0]
    detail = f"{module.sqlite_version} from {where}"
    if wal_is_safe(version):
        yield "SQLite", "ok", f"{detail}, with the WAL-reset fix"
    else:
        yield "SQLite", "note", f"{detail}, without the WAL-reset fix: pip install pysqlite3"


def _extras() -> Iterator[Finding]:
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        detail = "installed" if there else f"absent: pip install 'loopline[{extra}]'"
        yield f"extra {extra}", "ok" if there else "note", detail


def _directory(root: Path) -> Iterator[Finding]:
    if not root.is_dir():
        yield "data directory", "note", f"{root} is not there yet; serve and train make it"
        return
    yield "data directory", "ok", str(root)
    for name in ("log.db", "store.db"):
        if (root / name).is_file():
            yield name, *_file(root / name)
    blobs = [path.stat().st_size for path in (root / "blobs").rglob("*") if path.is_file()]
    yield "blobs", "ok", f"{len(blobs)} files, {_size(sum(blobs))}"
    keys = root / "keys.json"
    if keys.exists():
        open_to_all = keys.stat().st_mode & 0o077
        detail = "others on this machine can read it: chmod 600" if open_to_all else "mode 600"
        yield "signing keys", "wrong" if open_to_all else "ok", detail


def _file(path: Path) -> tuple[str, str]:
    """The size and soundness of a SQLite file, read without writing to it."""
    from loopline.backends.database import sqlite_module

    driver = sqlite_module()
    size = _size(path.stat().st_size)
    try:
        with closing(driver.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            sound = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
            found: Any = None
            if "loopline_alembic" in tables:
                found = database.execute("SELECT version_num FROM loopline_alembic").fetchone()
    except driver.Error as error:
        return "wrong", f"{size}, cannot be read: {error}"
    shape = f", format {found[0]}" if found else ""
    return ("ok" if sound == "ok" else "wrong"), f"{size}{shape}, {sound}"


def _server(settings: Settings, root: Path) -> Iterator[Finding]:
    found = running(root) if root.is_dir() else None
    if found is not None:
        where = found.url or "in a program of its own"
        yield "server", "ok", f"process {found.pid} has the data directory, {where}"
        return
    yield "server", "ok", "none has the data directory"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            yield f"port {settings.port}", "wrong", f"{error.strerror}; choose another: --port"
        else:
            yield f"port {settings.port}", "ok", "free"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
