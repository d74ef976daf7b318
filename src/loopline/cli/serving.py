"""`loopline serve`: what was named is found, the supervisor runs, two lines say where."""

from __future__ import annotations

import re
from pathlib import Path

from loopline.cli.connect import Session
from loopline.client import Client
from loopline.errors import InvalidInput, LooplineError

APP = re.compile(r"(.+\.py)(?::\w+)?")


def run(session: Session, targets: tuple[str, ...]) -> None:
    """Serve until told to stop.

    Args:
        targets: at most one `app.py[:name]`, and model files, perhaps as `name=file`.

    Raises:
        InvalidInput: one of them is not there, or cannot be served.
        Unavailable: the data directory or the port is in use.
    """
    from loopline.supervisor import Supervisor

    apps = [target for target in targets if APP.fullmatch(target)]
    if len(apps) > 1:
        raise InvalidInput(f"{apps[0]} and {apps[1]} are two applications; serve one")
    for path in (match[1] for match in map(APP.fullmatch, apps) if match):
        _check_file(path)
    files = [_named(target) for target in targets if target not in apps]

    def announce(url: str) -> None:
        session.console.line(f"Loopline answers at {url}; the API is described at {url}/docs")
        for name in ("gRPC", "ZeroRPC"):
            if address := getattr(session.settings, name.lower()):
                session.console.line(f"{name} answers at {address}")
        note = _contents(url)
        if note:
            session.console.line(note)

    config = None if session.config is None else str(session.config)
    Supervisor(session.settings, apps[0] if apps else None, config, files, announce).run()
    session.console.line("Goodbye.")


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise InvalidInput(f"there is no file {path}")


def _named(target: str) -> str:
    """A model file with the name it is served under, made from the file's if none is given."""
    name, equals, path = target.partition("=")
    if not equals:
        name, path = re.sub(r"\W+", "_", Path(target).stem.lower()).lstrip("0123456789_"), target
    _check_file(path)
    return f"{name or 'model'}={path}"


def _contents(url: str) -> str:
    """What is served, as far as one may ask."""
    try:
        with Client(url, timeout=5.0) as client:
            found = client.models()
    except LooplineError:
        return ""
    if not found:
        return "It has no models yet: `loopline train NAME DATA --target COLUMN` makes one."
    return f"Models: {', '.join(_model(each['name'], each['champion']) for each in found)}"


def _model(name: str, champion: int | None) -> str:
    return f"{name} (not trained yet)" if champion is None else f"{name} (version {champion})"
