"""`python -m tests.bench`: measure, keep the raw rows, print the tables."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import eventlog, footprint, machine, outcomes, pauses, protocols, report, serving
from tests.bench.peers import PEERS
from tests.bench.rows import Plan, read

SUITES: dict[str, Callable[[Plan], None]] = {
    "serving": serving.run,
    "protocols": protocols.run,
    "pauses": pauses.run,
    "log": eventlog.run,
    "outcomes": outcomes.run,
    "start": footprint.start,
    "memory": footprint.memory,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = _parser().parse_args(arguments)
    if options.list:
        _list()
        return
    if options.report:
        rows = [row for file in options.report for row in read(file)]
    else:
        rows = _measure(options)
    text = report.write(rows)
    print(f"\n{text}")
    if options.markdown:
        options.markdown.write_text(text)


def _measure(options: argparse.Namespace) -> list[dict[str, object]]:
    # One thread per process, as on a server whose cores all have work; alike for the peers.
    os.environ.update({name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    for name in [name for name in os.environ if name.startswith("LOOPLINE_")]:
        if name != "LOOPLINE_BENCH_PEERS":
            del os.environ[name]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    plan = Plan(
        options.json or RESULTS / f"{stamp}.jsonl",
        rounds=1 if options.quick else options.rounds,
        seconds=options.seconds or (1.0 if options.quick else 6.0),
        only=options.only,
        quick=options.quick,
        long=options.long,
    )
    plan.keep("machine", "machine", **machine.describe())
    missing = sorted({peer.home for peer in PEERS if not peer.installed})
    if missing:
        print(f"  not installed: {', '.join(missing)} (make bench-peers)")
    for name in options.suites or SUITES:
        SUITES[name](plan)
    print(f"\nRaw rows: {plan.file}")
    return plan.rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("suites", nargs="*", choices=[*SUITES, []], metavar="suite", help=f"{', '.join(SUITES)}")
    add("--only", action="append", default=[], metavar="PATTERN", help="cases, as in a shell")
    add("--rounds", type=int, default=3, help="how often each case is measured, in turn; 3")
    add("--seconds", type=float, help="how long each time; 6, or 1 if quick")
    add("--quick", action="store_true", help="one short round, to see that it runs")
    add("--long", action="store_true", help="also memory after five million requests")
    add("--json", type=Path, metavar="FILE", help="append the raw rows here")
    add("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    add("--report", type=Path, nargs="+", metavar="FILE", help="tables from earlier raw rows")
    add("--list", action="store_true", help="list the cases")
    return parser


def _list() -> None:
    for case in serving.CASES:
        print(f"serving   {case.name}")
    for peer in PEERS:
        print(f"serving   {peer.name}{'' if peer.installed else ' (not installed)'}")
    for each in protocols.CASES:
        print(f"protocols {each.name}{''.join(f', {peer}' for peer in each.peers)}")
    for name in pauses.CASES:
        print(f"pauses    {name}")
    for name in eventlog.CASES:
        print(f"log       {name}")
    for name in outcomes.CASES:
        print(f"outcomes  {name}")
    for name in footprint.STARTS:
        print(f"start     {name}")
    print("memory    memory")


if __name__ == "__main__":
    main()
