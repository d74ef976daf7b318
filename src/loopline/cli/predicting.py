"""Predictions, outcomes and labelled rows of the command line, one by one or by the file."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec

from loopline.cli.connect import Session
from loopline.cli.console import Console
from loopline.cli.rows import Batch, batches, read_given
from loopline.client import Predicted
from loopline.errors import InvalidInput

PREDICTIONS = 1_000
OUTCOMES = 5_000
EXAMPLES = 100_000
"""Rows in one request, of each kind."""


def show(console: Console, model: str, found: Predicted | list[Predicted]) -> None:
    """Show one prediction or many; JSON has the form that HTTP answers."""
    many = found if isinstance(found, list) else [found]
    rows = [_row(each) for each in many]
    told: dict[str, Any] = {"model": model, "version": many[0].version if many else None}
    if isinstance(found, list):
        told["predictions"] = [_bare(each) for each in found]
    else:
        told = {"id": found.id, **told, **_bare(found)}
    chances = ["probabilities"] if any(each.probabilities for each in many) else []
    console.show(told, ["prediction", *chances, "version", "id"], rows)


def _row(each: Predicted) -> dict[str, Any]:
    exact = repr(each.prediction) if isinstance(each.prediction, float) else each.prediction
    return {**msgspec.to_builtins(each), "prediction": exact}


def _bare(each: Predicted) -> dict[str, Any]:
    told = {"id": each.id, "prediction": each.prediction}
    return told if each.probabilities is None else {**told, "probabilities": each.probabilities}


def file(
    session: Session,
    model: str,
    path: Path,
    output: str | None,
    form: str | None,
    options: dict[str, Any],
) -> None:
    """Predict a file in batches; answers keep its order, and a target in it is not looked at."""
    client = session.client()
    target = client.describe(model)["target"]
    form = form or ("csv" if (output or "").endswith(".csv") else "jsonl")
    with _opened(output) as stream, session.console.progress(f"predicting {path.name}") as progress:
        write = _writer(stream, form)
        done = 0
        for batch in batches(path, PREDICTIONS):
            for row in batch.rows if isinstance(batch.rows[0], dict) else ():
                row.pop(target, None)
            found = _located(
                batch, lambda rows, text: client.predict(model, rows, text=text, **options)
            )
            write(found)
            done += len(found)
            if output is not None or not sys.stdout.isatty():
                progress.at(done, None)


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with open(output, "w", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        raise InvalidInput(f"cannot write {output}: {error.strerror}") from error


def _writer(stream: TextIO, form: str) -> Callable[[Sequence[Predicted]], None]:
    table: Any = None

    def lines(found: Sequence[Predicted]) -> None:
        head = {"model": found[0].model, "version": found[0].version}
        stream.writelines(
            msgspec.json.encode({"id": each.id, **head, **_bare(each)}).decode() + "\n"
            for each in found
        )

    def cells(found: Sequence[Predicted]) -> None:
        nonlocal table
        if table is None:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["id", "version", "prediction", *(found[0].probabilities or ())])
        for each in found:
            chances = (each.probabilities or {}).values()
            table.writerow([each.id, each.version, each.prediction, *chances])

    return cells if form == "csv" else lines


def _located(batch: Batch, call: Callable[[list[Any], bool], Any]) -> Any:
    """Call with a batch's rows; what is wrong with them is told by the file's row numbers."""
    try:
        return call(batch.rows, batch.text)
    except InvalidInput as error:
        raise batch.located(error) from error


def learn(session: Session, model: str, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Add rows: all of them or none, as long as they fit into one request."""
    given = read_given(inputs)
    assert given is not None
    client = session.client()
    if given.path is None:
        return client.learn(model, given.value, text=given.text)
    accepted, told = 0, {"accepted": 0, "rows": None, "summary": None}
    for batch in batches(given.path, EXAMPLES):
        try:
            told = _located(batch, lambda rows, text: client.learn(model, rows, text=text))
        except InvalidInput as error:
            if not accepted:
                raise
            detail = f"{error.detail}; the {accepted} rows before were taken already"
            raise InvalidInput(detail, fields=error.fields) from error
        accepted += len(batch.rows)
    return {**told, "accepted": accepted}


def outcome(
    session: Session, model: str, id: str, value: str | None, at: str | None
) -> dict[str, Any]:
    """Tell one outcome, or those of a file."""
    client = session.client()
    if value is not None:
        return client.outcome(model, id, value, at=at, text=True)
    counts: Counter[str] = Counter()
    results: list[Any] = []
    with session.console.progress("sending outcomes") as progress:
        for batch in batches(Path(id), OUTCOMES):
            items = [{k: v for k, v in row.items() if k != "at" or v} for row in batch.rows]
            told = _located(
                msgspec.structs.replace(batch, rows=items),
                lambda rows, text: client.outcome(model, rows, text=text),
            )
            results.extend(told.pop("results"))
            counts.update(told)
            progress.at(len(results), None)
    return {**counts, "results": results}


def score(
    session: Session, model: str, rows: tuple[str, ...], version: int | None
) -> dict[str, Any]:
    """Score on the rows given, if any."""
    given, client = read_given(rows), session.client()
    if given is None:
        return client.score(model, version=version)
    if given.path is None:
        return client.score(model, given.value, version=version, text=given.text)
    found = list(batches(given.path, EXAMPLES))
    whole = Batch(given.path, 1, [row for batch in found for row in batch.rows], found[0].text)
    return _located(  # type: ignore[no-any-return]
        whole, lambda rows, text: client.score(model, rows, version=version, text=text)
    )


def counted(counts: dict[str, int]) -> Iterable[dict[str, Any]]:
    """Counts by status as rows of a table."""
    return [{"status": status, "outcomes": count} for status, count in counts.items()]


def served(told: dict[str, Any]) -> tuple[Sequence[str], Iterable[dict[str, Any]]]:
    """Progressive scores as columns and rows of a table, one row per version."""
    rows = [
        {**each, "coverage": "-" if each["coverage"] is None else f"{each['coverage']:.1%}"}
        for each in told["versions"]
    ]
    return ["version", "predictions", "outcomes", "coverage", "metrics"], rows
