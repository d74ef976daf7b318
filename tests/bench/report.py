"""From raw rows to tables that read well in a terminal and as Markdown, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.machine import NOISY
from tests.bench.peers import BY_HAND
from tests.bench.rows import Row, cases, median, spread

CAVEATS = """\
How to read this. Server and load share one machine and its loopback, so there is no network in any
figure; the load generator has a core of its own only where there are two. wrk sends one identical
row on 64 connections that stay open, which caches and branch predictors like, and it looks at the
status alone; an answer is checked before and after each run. A closed loop finds the capacity, and
its p99 is that of a full server; the figures at half of the capacity come from requests on a
schedule, timed from when they were due. Each figure is the median of its rounds, which took turns;
"spread" is how far the rounds lie apart, in percent of the best, and a case marked ~ was disturbed
by other programs in at least one round. A tail (p99 and beyond) on a shared machine is good to a
factor of two, requests a second to some percent. The models answer in well under a millisecond:
with a slow model every server here is as slow as the model. Peers run near their defaults, batch up
to 64 rows where they batch, and keep no log of their predictions; FastAPI by hand does one call of
the model per request and knows no ids, versions or metrics. Memory is the proportional set size."""

Cells = Sequence[Sequence[str]]


def table(head: Sequence[str], body: Cells) -> str:
    """A Markdown table whose columns are aligned: text to the left, figures to the right."""
    lines = [list(head), *map(list, body)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def shown(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "| " + " | ".join([first, *rest]) + " |"

    return "\n".join(map(shown, [lines[0], rule, *lines[1:]]))


def number(value: Any, digits: int = 0) -> str:
    """A figure for a cell; nothing where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"


def write(rows: Sequence[Row]) -> str:
    """All tables that the rows allow, and how to read them."""
    parts = [_machine(rows)]
    for title, make in TABLES.items():
        text = make(rows)
        if text:
            parts.append(f"### {title}\n\n{text}")
    return "\n\n".join([*parts, CAVEATS]) + "\n"


def _machine(rows: Sequence[Row]) -> str:
    about = [row for row in rows if row["suite"] == "machine"][-1:]
    hidden = ("suite", "case", "at")
    told = (f"{name} {value}" for row in about for name, value in row.items() if name not in hidden)
    return "Measured on: " + ", ".join(told) + "."


def _serving(rows: Sequence[Row]) -> str:
    found = cases(rows, "serving")
    body = []
    for name, own in found.items():
        good = [row for row in own if "error" not in row]
        if not good:
            body.append([f"{name}: failed", *[""] * 11])
            continue
        noisy = any(row["others"] > NOISY for row in good)
        hand = _by_hand(found, good[0])
        rate = median(good, "rps") or 0.0
        body.append(
            [
                f"{name} ~" if noisy else name,
                number(rate),
                number(spread(good, "rps")),
                number(rate / hand, 1) if hand else "",
                *(number(median(good, each), 2) for each in ("p50", "p99", "p999")),
                *(number(median(good, each)) for each in ("server_cpu", "others", "pss")),
                number(median(good, "keeper_pss")),
                number(sum(row["failed"] for row in good)),
            ]
        )
    head = "case,req/s,spread %,x by hand,p50 ms,p99,p99.9,cpu %,others %,PSS MB,keeper MB,failed"
    return table(head.split(","), body) if body else ""


def _by_hand(found: dict[str, list[Row]], like: Row) -> float | None:
    """What FastAPI by hand did in this run with the same model and as many rows a request."""
    for name, own in found.items():
        same = all(own[0].get(key) == like.get(key) for key in ("workload", "rows"))
        if name.startswith(BY_HAND) and same:
            return median(own, "rps")
    return None


def _tail(rows: Sequence[Row]) -> str:
    """The closed loop's p99 with the log over that without."""
    found = cases(rows, "serving")
    body = []
    for plain, own in found.items():
        without = found.get(f"{plain.removesuffix(', apart')}, no log")
        p99 = median(own, "p99")
        bare = median(without, "p99") if without else None
        if p99 and bare:
            body.append([plain, number(p99, 2), number(bare, 2), number(p99 / bare, 2)])
    return table(["case", "p99 ms, log on", "off", "ratio"], body) if body else ""


def _pauses(rows: Sequence[Row]) -> str:
    body = []
    for name, own in cases(rows, "pauses").items():
        kinds = {row["kind"]: [each for each in own if each["kind"] == row["kind"]] for row in own}
        steady = median(kinds.get("steady", []), "p99")
        for kind, windows in kinds.items():
            steps = [step for row in windows for step in row["steps"]]
            p99 = median(windows, "p99")
            body.append(
                [
                    f"{name}, {kind}",
                    number(median(windows, "rate")),
                    str(len(windows)),
                    *(number(median(windows, each), 2) for each in ("p50", "p99")),
                    number(p99 / steady, 2) if p99 and steady else "",
                    number(max(row["longest"] for row in windows), 1),
                    f"{len(steps)}: {max(steps):.1f}" if steps else "",
                    number(max(row["late"] for row in windows), 2),
                    number(sum(row["failed"] for row in windows)),
                ]
            )
    head = "case,req/s,windows,p50 ms,p99,x steady,longest,swaps: longest,load late,failed"
    return table(head.split(","), body) if body else ""


def _protocols(rows: Sequence[Row]) -> str:
    found = cases(rows, "protocols")
    body = []
    for name, own in found.items():
        rps, ours = median(own, "rps"), median(found[name.partition(":")[0]], "rps")
        ratio = number(ours / rps, 1) if rps and ours and ":" in name else ""
        tails = [number(median(own, each), 2) for each in ("p50", "p99")]
        body.append([name, number(rps), ratio, *tails, number(spread(own, "rps"))])
    head = ["case", "req/s", "ours is x times", "p50 ms", "p99", "spread %"]
    return table(head, body) if body else ""


def _plainly(suite: str, columns: dict[str, tuple[str, int]]) -> Callable[[Sequence[Row]], str]:
    """A table of medians: from a column's title to its figure and digits."""

    def make(rows: Sequence[Row]) -> str:
        body = [
            [name, *(number(median(own, key), digits) for key, digits in columns.values())]
            for name, own in cases(rows, suite).items()
        ]
        return table(["case", *columns], body) if body else ""

    return make


def _memory(rows: Sequence[Row]) -> str:
    body = [
        [
            row["case"],
            number(row.get("requests")),
            *(number(row.get(each), 1) for each in ("pss", "uss", "rss", "above")),
        ]
        for row in rows
        if row["suite"] == "memory"
    ]
    head = ["process", "after requests", "PSS MB", "USS", "RSS", "above the libraries"]
    return table(head, body) if body else ""


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "One request after the other on 64 connections": _serving,
    "What the prediction log costs the tail": _tail,
    "The same model over every protocol": _protocols,
    "Trainings and swaps, at half of the capacity, on a schedule": _pauses,
    "The event log": _plainly("log", {"events/s": ("events_s", 0), "p99 ms": ("p99", 2)}),
    "Outcomes": _plainly(
        "outcomes",
        {"joined/s": ("joined_s", 0), "predicted/s": ("predicted_s", 0), "joined": ("joined", 0)},
    ),
    "Start to the first answer": _plainly(
        "start", {"s": ("seconds", 2), "libraries' imports": ("imports", 2), "own": ("own", 2)}
    ),
    "Memory": _memory,
}
