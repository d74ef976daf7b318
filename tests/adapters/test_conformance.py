"""Every adapter passes one suite, over one real server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loopline.access import Access
from loopline.client import Client
from loopline.opening import open_store
from loopline.testing import AdapterSuite
from loopline.testing.adapter import APP, SETTINGS, Speak
from tests.adapters.drivers.grpc_service import GrpcService
from tests.adapters.drivers.http_json import HttpJson
from tests.adapters.drivers.inference_grpc import InferenceGrpc
from tests.adapters.drivers.inference_http import InferenceHttp
from tests.adapters.drivers.messagepack import MessagePack
from tests.adapters.drivers.ndjson import NdJson
from tests.adapters.drivers.websocket import WebSocket
from tests.adapters.drivers.zerorpc import ZerorpcDriver
from tests.servers import Server

ROOT = Path(__file__).parents[2]


class Place(NamedTuple):
    """Where the server is, on each protocol, and the right to do everything there."""

    url: str
    grpc: str
    zerorpc: str
    token: str


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Place]:
    """The server that the suite describes, with two versions of its classifier."""
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "app.py").write_text(APP)
    (folder / "data").mkdir()
    token = Access(open_store(f"sqlite:///{folder}/data/store.db")).issue("suite", ["admin"])
    port, *others = free_ports(3)
    grpc, zerorpc = (f"127.0.0.1:{other}" for other in others)
    doors = ("--grpc", grpc, "--zerorpc", f"tcp://{zerorpc}")
    server = Server(folder, port, "app.py", "--token-required", *doors)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setitem(os.environ, name, value)
        server.start("/livez")
    try:
        with Client(server.url, token=token) as client:
            for name in ("iris", "line"):
                until_answered(client, name)
            client.train("iris", wait=100)
        yield Place(server.url, grpc, f"tcp://{zerorpc}", token)
    finally:
        server.stop()


def until_answered(client: Client, model: str) -> None:
    """Wait for a model's first training."""
    deadline = time.monotonic() + 100.0
    while client.describe(model)["champion"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


DRIVERS: dict[type[Any], str] = {
    HttpJson: "url",
    MessagePack: "url",
    NdJson: "url",
    WebSocket: "url",
    InferenceHttp: "url",
    InferenceGrpc: "grpc",
    GrpcService: "grpc",
    ZerorpcDriver: "zerorpc",
}
"""Every driver, and which address of the server it is given."""
SHOWN = {
    "null": "nulls",
    "ids": "ids of the caller's",
    "deadline": "a deadline",
    "stream": "streams",
    "outcome": "outcomes",
    "learn": "learning",
    "train": "training",
    "describe": "descriptions",
}


def test_the_reference_says_what_each_protocol_can() -> None:
    """The table of the docs is what the drivers claim, and the suite tries."""
    head = " | ".join(driver.name for driver in DRIVERS)
    lines = [f"| | {head} |", "| --- |" + " --- |" * len(DRIVERS)]
    for verb, words in SHOWN.items():
        cells = ["yes |" if verb in driver.verbs else "|" for driver in DRIVERS]
        lines.append(f"| {words} | {' '.join(cells)}")
    assert "\n".join(lines) in (ROOT / "docs/reference/protocols.md").read_text("utf-8")
    assert {verb for driver in DRIVERS for verb in driver.verbs} == {"predict", *SHOWN}


class TestEveryAdapter(AdapterSuite):
    """The suite, through one driver after the other."""

    @pytest.fixture
    def token(self, place: Place) -> str:
        return place.token

    @pytest.fixture
    def client(self, place: Place) -> Iterator[Client]:
        with Client(place.url, token=place.token) as client:
            yield client

    @pytest.fixture(params=DRIVERS, ids=lambda driver: driver.name)
    def speak(self, request: pytest.FixtureRequest, place: Place) -> Speak:
        driver = request.param
        return lambda token: driver(getattr(place, DRIVERS[driver]), token)
