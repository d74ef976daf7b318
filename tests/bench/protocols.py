"""Every protocol on the same model, beside the peer that speaks it too."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.bench import load, machine, wires
from tests.bench.peers import MLSERVER, RPC, Peer
from tests.bench.rows import Plan
from tests.bench.running import Target, free_port, ours
from tests.bench.workloads import IRIS, WORKLOADS

INFER = "/inference.GRPCInferenceService/ModelInfer"
TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [*IRIS.values()]}
V2 = json.dumps({"inputs": [TENSOR]}).encode()


class Case(NamedTuple):
    """One protocol: how it is loaded, and the peers it is compared with."""

    name: str
    load: Any
    peers: tuple[str, ...] = ()


def run(plan: Plan) -> None:
    """Measure every protocol once per round, ours and the peer's one after the other."""
    for number in range(plan.rounds):
        for case in CASES:
            if plan.wants(case.name):
                _measure(plan, case, number)


def _measure(plan: Plan, case: Case, number: int) -> None:
    with _own() as (server, grpc, zerorpc):
        load = case.load(server, grpc, zerorpc)
        plan.keep("protocols", case.name, round=number, **_loaded(plan, server, load))
    for name in case.peers:
        peer = next(peer for peer in (MLSERVER, *RPC) if peer.name == name)
        if peer.installed:
            _theirs(plan, case, peer, number)


@contextlib.contextmanager
def _own() -> Iterator[tuple[Any, str, str]]:
    grpc, zerorpc = f"127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    with ours(also=("--grpc", grpc, "--zerorpc", zerorpc)) as server:
        yield server, grpc, zerorpc


def _theirs(plan: Plan, case: Case, peer: Peer, number: int) -> None:
    server = peer.server()
    about = {"round": number, "peer": peer.name}
    try:
        server.start(peer.body, patience=120.0)
        figures = _loaded(plan, server, _PEER_LOADS[peer.name](server))
        plan.keep("protocols", f"{case.name}: {peer.name}", **about, **figures)
    except (OSError, RuntimeError) as error:
        plan.keep("protocols", f"{case.name}: {peer.name}", **about, error=str(error))
    finally:
        server.stop()


def _loaded(plan: Plan, server: Target, run: wires.Load) -> load.Figures:
    run(plan.warm)
    watch = machine.Watch(server.pid)
    figures = run(plan.seconds)
    return figures | watch.read()


def _http(url: str, body: bytes) -> wires.Load:
    return lambda seconds: load.closed(url, body, seconds, machine.LOAD_CPU)


def infer_message(model: str) -> bytes:
    """The tensor above as a request over gRPC, with typed contents."""
    from loopline.adapters.grpc_inference import describe
    from loopline.adapters.grpc_messages import class_of, pool_of

    request = class_of(pool_of(describe()), "inference.ModelInferRequest")
    tensor = {**TENSOR, "contents": {"fp64_contents": TENSOR["data"]}}
    del tensor["data"]
    data: bytes = request(model_name=model, inputs=[tensor]).SerializeToString()
    return data


def _socket(server: Any, *_: str) -> wires.Load:
    message = json.dumps({"id": 1, "inputs": IRIS}).encode()
    port = int(server.url.split(":")[2].partition("/")[0])
    return wires.websocket("127.0.0.1", port, "/v1/models/bench/socket", message)


CASES = (
    Case("http", lambda s, g, z: _http(s.url, WORKLOADS["iris"].body())),
    Case(
        "v2 json",
        lambda s, g, z: _http(s.url.replace("/v1/", "/v2/").replace("predict", "infer"), V2),
        ("mlserver, batches",),
    ),
    Case(
        "grpc v2",
        lambda s, g, z: wires.grpc(g, INFER, infer_message("bench")),
        ("mlserver, grpc",),
    ),
    Case(
        "zerorpc",
        lambda s, g, z: wires.zerorpc(z, "bench_predict", IRIS, "setosa"),
        ("zerorpc-python",),
    ),
    Case("websocket", _socket),
)
_PEER_LOADS = {
    "mlserver, batches": lambda server: _http(server.url, V2),
    "mlserver, grpc": lambda server: wires.grpc(
        f"127.0.0.1:{server.second}", INFER, infer_message("iris")
    ),
    "zerorpc-python": lambda server: wires.zerorpc(
        f"tcp://127.0.0.1:{server.second}", "predict", [*IRIS.values()], "setosa"
    ),
}
