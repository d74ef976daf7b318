"""Stories run against a real server, as a user would start it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers import Server


@pytest.fixture
def serve(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> Iterator[Callable[..., Server]]:
    """A function that serves an application given as source text, and stops it afterwards."""
    servers: list[Server] = []

    def start(source: str, *arguments: str, ready: str = "/readyz") -> Server:
        (tmp_path / "app.py").write_text(source)
        server = Server(tmp_path, free_ports(1)[0], "app.py", *arguments)
        servers.append(server)
        server.start(ready)
        return server

    yield start
    for server in servers:
        server.stop()
