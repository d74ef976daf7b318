"""For the tests of models, backends and adapters that other people write."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AdapterSuite": "adapter",
    "BlobSuite": "blobs",
    "DurableLogSuite": "log",
    "LogSuite": "log",
    "StoreSuite": "store",
    "check_model": "checks",
}

__all__ = ["AdapterSuite", "BlobSuite", "DurableLogSuite", "LogSuite", "StoreSuite", "check_model"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
