"""Loopline: one Python model behind every protocol, and a closed loop around it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopline.app import Loopline
    from loopline.client import Client
    from loopline.connectors import Query
    from loopline.errors import LooplineError
    from loopline.model import Model, adopt
    from loopline.policy import Every
    from loopline.records import Decision, Job, Prediction, Version
    from loopline.schema import Schema
    from loopline.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Decision",
    "Every",
    "Job",
    "Loopline",
    "LooplineError",
    "Model",
    "Prediction",
    "Query",
    "Schema",
    "Settings",
    "Version",
    "adopt",
]

_HOMES = {
    "Client": "client",
    "Decision": "records",
    "Every": "policy",
    "Job": "records",
    "Loopline": "app",
    "LooplineError": "errors",
    "Model": "model",
    "Prediction": "records",
    "Query": "connectors",
    "Schema": "schema",
    "Settings": "settings",
    "Version": "records",
    "adopt": "model",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
