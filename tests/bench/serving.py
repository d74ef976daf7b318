"""How many requests a second, and how long each takes: ours and the peers', in turn."""

from __future__ import annotations

from typing import NamedTuple

from tests.bench import load, machine
from tests.bench.peers import PEERS, Peer
from tests.bench.rows import Plan
from tests.bench.running import Ours, Target, check, ours
from tests.bench.workloads import WORKLOADS

TRIES = 3
"""How often a disturbed run is tried before it is kept as it is, and marked."""


class Case(NamedTuple):
    """One way to serve a workload with Loopline."""

    name: str
    workload: str = "iris"
    log: str = "async"
    replicas: int = 1
    placement: str = "one"
    rows: int = 1


CASES = (
    Case("loopline"),
    Case("loopline, apart", placement="apart"),
    Case("loopline, no log", log="none"),
    Case("loopline, 2 replicas", replicas=2),
    Case("loopline, 2 replicas, apart", replicas=2, placement="apart"),
    Case("loopline, 2 replicas, free", replicas=2, placement="free"),
    Case("loopline, 10 rows", rows=10),
    Case("loopline, 100 rows", rows=100),
    Case("loopline, trees", "trees"),
    Case("loopline, trees, no log", "trees", log="none"),
    Case("loopline, frame", "frame"),
    Case("loopline, frame, no log", "frame", log="none"),
    Case("loopline, note", "note"),
    Case("loopline, note, apart", "note", placement="apart"),
    Case("loopline, note, no log", "note", log="none"),
)


def run(plan: Plan) -> None:
    """Measure every case once per round, so that a slow hour of the machine hits all alike."""
    everything = (CASES[0], *PEERS, *CASES[1:])
    wanted = [case for case in everything if plan.wants(case.name)]
    for number in range(plan.rounds):
        for case in wanted:
            if isinstance(case, Case):
                _ours(plan, case, number)
            elif case.installed:
                _theirs(plan, case, number)


def _ours(plan: Plan, case: Case, number: int) -> None:
    options = {"log": case.log, "replicas": case.replicas, "placement": case.placement}
    with ours(case.workload, **options) as server:
        body = WORKLOADS[case.workload].body(case.rows)
        cpus = machine.CPUS if case.placement == "free" else [machine.LOAD_CPU]
        figures = measure(plan, server, body, cpus)
        figures["drained"] = server.drained()
        figures["keeper_pss"] = machine.megabytes(server.role("keeper"))["pss"]
        check(server.url, case.workload)
        about = {"round": number, "workload": case.workload, "rows": case.rows}
        plan.keep("serving", case.name, **about, **figures)


def _theirs(plan: Plan, peer: Peer, number: int) -> None:
    about = {"round": number, "workload": peer.workload, "rows": peer.rows}
    server = peer.server()
    try:
        start = server.start(peer.body, patience=120.0)
        _check(server.url, peer)
        figures = measure(plan, server, peer.body, [machine.LOAD_CPU])
        _check(server.url, peer)
        figures["start"] = round(start, 2)
        plan.keep("serving", peer.name, **about, **figures)
    except (OSError, RuntimeError) as error:
        plan.keep("serving", peer.name, **about, error=str(error))
    finally:
        server.stop()


def _check(url: str, peer: Peer) -> None:
    found = load.post(url, peer.body).decode()
    if peer.wanted not in found:
        raise RuntimeError(f"{peer.name} answers {found[:300]!r}")


def measure(plan: Plan, server: Target, body: bytes, cpus: list[int]) -> load.Figures:
    """Warm a server up and load it; again while other programs took part of the machine."""
    load.closed(server.url, body, plan.warm, *cpus)
    for _ in range(1 if plan.quick else TRIES):
        watch = machine.Watch(server.pid)
        figures = load.closed(server.url, body, plan.seconds, *cpus)
        figures |= watch.read()
        if figures["others"] <= machine.NOISY:
            break
    return figures | machine.megabytes(machine.tree(server.pid))


def capacity(plan: Plan, server: Ours, body: bytes) -> float:
    """Requests a second that a server answers at most, by the closed loop."""
    return float(measure(plan, server, body, [machine.LOAD_CPU])["rps"])
