"""Loops that the adapters' tests speak to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.loop import Loop
from tests.adapters.speaking import Http, running, speaking


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A loop that the tests of one file share."""
    with running(tmp_path_factory.mktemp("loop")) as loop:
        yield loop


@pytest.fixture(scope="module")
def http(loop: Loop) -> Iterator[Http]:
    """A client of the shared loop."""
    with speaking(loop) as http:
        yield http


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Http]:
    """A client of a loop of this test's own."""
    with running(tmp_path) as loop, speaking(loop) as http:
        yield http
