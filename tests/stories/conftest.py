"""Stories run against a real server, as a user would start it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import Server

Serve = Callable[..., Server]
Ports = Callable[[int], list[int]]


def serving(folder: Path, free_ports: Ports) -> Iterator[Serve]:
    """A function that serves an application given as source text, and stops it afterwards."""
    servers: dict[tuple[str, ...], Server] = {}

    def start(source: str, *arguments: str, ready: str = "/readyz") -> Server:
        key = (source, *arguments)
        if key not in servers:
            (folder / "app.py").write_text(source)
            servers[key] = Server(folder, free_ports(1)[0], "app.py", *arguments)
            servers[key].start(ready)
        return servers[key]

    yield start
    for server in servers.values():
        server.stop()


@pytest.fixture
def serve(tmp_path: Path, free_ports: Ports) -> Iterator[Serve]:
    """Servers for one test."""
    yield from serving(tmp_path, free_ports)


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory, free_ports: Ports) -> Iterator[Serve]:
    """Servers for all tests of a module that leave them as they were."""
    yield from serving(tmp_path_factory.mktemp("shared"), free_ports)
