"""What a person or a program reads: tables, progress, JSON; plain where it is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

WIDEST = 60
"""Characters after which a cell is cut, in all columns but the last."""


class Console:
    """Standard output and standard error of one command.

    Args:
        json: whether standard output is for a program.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.live = sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Write a line for a person; for a program there is only JSON."""
        if not self.json:
            print(text, flush=True)

    def value(self, value: Any) -> None:
        """Write a value as one line of JSON."""
        print(msgspec.json.encode(value).decode(), flush=True)

    def show(self, value: Any, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `value` as JSON for a program, and the columns of `rows` for a person."""
        if self.json:
            self.value(value)
        else:
            self.table(columns, list(rows))

    def table(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows under headings, aligned."""
        cells = [[_cut(show(row.get(name))) for name in columns[:-1]] for row in rows]
        last = [show(row.get(columns[-1])) for row in rows]
        heads = [name.replace("_", " ") for name in columns]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=False)]
        for *front, back in [heads, *([*cell, end] for cell, end in zip(cells, last, strict=True))]:
            padded = (text.ljust(width) for text, width in zip(front, widths, strict=True))
            print("  ".join((*padded, back)).rstrip())

    def show_report(self, told: Mapping[str, Any]) -> None:
        """Write a model's report: its single figures, then each of its tables."""
        tables = {k: v for k, v in dict(told["json"]).items() if v and isinstance(v, list)}
        tables = {k: v for k, v in tables.items() if all(isinstance(row, dict) for row in v)}
        figures = {k: v for k, v in dict(told["json"]).items() if k not in tables}
        self.show(told, ["", "value"], [{"": k, "value": v} for k, v in figures.items()])
        for name, rows in tables.items():
            self.line(f"\n{name.replace('_', ' ')}")
            if not self.json:
                self.table(list(rows[0]), rows)

    @contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[Progress]:
        """Show on standard error how far something long has come."""
        if not self.live:
            yield _Plain(title)
            return
        from rich.console import Console as Terminal
        from rich.progress import Progress as Bars

        with Bars(transient=True, console=Terminal(stderr=True)) as bars:
            yield _Bar(bars, bars.add_task(title, total=total), title)

    @contextmanager
    def screen(self, beat: float = 5.0) -> Iterator[Screen]:
        """A place for a few lines that change: in place, or every `beat` seconds a new line."""
        if self.json:
            yield Screen()
        elif not sys.stdout.isatty():
            yield _LineScreen(beat)
        else:
            from rich.live import Live

            with Live(refresh_per_second=8) as live:
                yield _LiveScreen(live)


class Progress:
    """How far something has come."""

    def at(self, step: int, of: int | None, message: str = "") -> None:
        """Say that `step` of `of` steps are done."""


class _Plain(Progress):
    """One line for each new message, where nobody watches a bar."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._said = ""

    def at(self, step: int, of: int | None, message: str = "") -> None:
        if message and message != self._said:
            self._said = message
            print(f"{self._title}: {message}", file=sys.stderr, flush=True)


class _Bar(Progress):
    def __init__(self, bars: Any, task: Any, title: str) -> None:
        self._bars, self._task, self._title = bars, task, title

    def at(self, step: int, of: int | None, message: str = "") -> None:
        title = f"{self._title}: {message}" if message else self._title
        self._bars.update(self._task, completed=step, total=of, description=title)


class Screen:
    """Lines that change; nobody looks at these."""

    def update(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the ones before."""

    def event(self, text: str) -> None:
        """Write a line that stays."""


class _LineScreen(Screen):
    """The first two of the lines, every few seconds, for output that is piped."""

    def __init__(self, beat: float) -> None:
        self._beat = beat
        self._due = 0.0

    def update(self, lines: Sequence[str]) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._beat
            print("  ".join(lines[:2]), flush=True)

    def event(self, text: str) -> None:
        print(text, flush=True)


class _LiveScreen(Screen):
    def __init__(self, live: Any) -> None:
        self._live = live

    def update(self, lines: Sequence[str]) -> None:
        from rich.text import Text

        self._live.update(Text("\n".join(lines)))

    def event(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)


def show(value: Any) -> str:
    """A value as a person reads it in a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {show(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def moment(seconds: float | None) -> str:
    """A time as a person reads it, in their own zone."""
    if not seconds:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
