"""`loopline train`: from options to a definition, and from a job to what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline import connectors
from loopline.cli.console import Console
from loopline.client import Client
from loopline.errors import InvalidInput, LooplineError, WrongState

if TYPE_CHECKING:
    import pandas as pd

BOOSTING = "sklearn.ensemble.HistGradientBoosting"


def check_table(data: str) -> None:
    """See that there is such a file or function, before anything is made."""
    source = connectors.source(data)
    if isinstance(source, Path) and not source.is_file():
        raise InvalidInput(f"there is no file {data}")


def definition(
    data: str, options: dict[str, Any], params: dict[str, Any], beside: bool
) -> dict[str, Any]:
    """A model's definition as in a table of `loopline.toml`.

    Args:
        data: a path, or text for a query or a function, as in `connectors.source`.
        options: of the command.
        params: of the estimator.
        beside: whether whoever reads the definition finds the same file under the same path. All
            else is read here, with the rights and the environment of whoever gives the command.
    """
    source = connectors.source(data)
    table = {name: options[name] for name in ("target", "task", "description", "log", "formula")}
    table |= {"estimator": options["estimator"], "model": options["built_in"]}
    open_ended = not any(table[way] for way in ("estimator", "model", "formula"))
    if isinstance(source, Path) and beside:
        table["data"] = str(source.resolve())
    frame = connectors.read(source) if open_ended or "data" not in table else None
    if frame is not None and open_ended:
        table["estimator"] = _default(frame, options["target"], options["task"])
    if frame is not None and "data" not in table:
        table["data"] = frame.to_dict("records")
    if options["retrain_every"]:
        table["retrain"] = {"outcomes": options["retrain_every"], "mode": options["mode"]}
        table["retrain"] = {k: v for k, v in table["retrain"].items() if v is not None}
    table["parameters"] = params
    return {name: value for name, value in table.items() if value is not None}


def _default(frame: pd.DataFrame, target: str, task: str | None) -> str:
    """Gradient boosting, of the kind that the target asks for."""
    from loopline.schema import Schema

    if task is None and target in frame.columns:
        output = Schema.infer(frame, target).output
        task = "regression" if output and output.kind in ("number", "integer") else None
    return f"{BOOSTING}{'Regressor' if task == 'regression' else 'Classifier'}"


def newest(client: Client, model: str) -> str | None:
    """The id of a model's newest job."""
    found = client.jobs(model=model, most=1)["jobs"]
    return found[0]["job"] if found else None


def submit(client: Client, model: str, before: str | None, params: dict[str, Any]) -> str:
    """The job to follow: the one that a new model's first training made, or a new one."""
    fresh = newest(client, model)
    if fresh is not None and fresh != before:
        return fresh
    return str(client.train(model, params or None)["job"])


def show(console: Console, client: Client, model: str, job: dict[str, Any]) -> None:
    """Show what a training's job has come to.

    Raises:
        LooplineError: it failed, or was cancelled.
    """
    if job["state"] != "done":
        if console.json:
            console.value(job)
        if job["state"] == "cancelled":
            raise WrongState(f"the training of {model!r} was cancelled")
        raise LooplineError((job["error"] or {}).get("detail") or f"the training {job['state']}")
    result = job["result"] or {}
    number = result.get("version")
    decisions = client.decisions(model)
    decision = next((each for each in decisions if each["job"] == job["job"]), None)
    told = {"job": job["job"], "state": "done", "model": model, "version": number}
    told |= {"metrics": result.get("metrics") or {}, "decision": decision}
    if decision:
        console.line(f"{decision['verdict']}: {decision['reason']}")
    rows = [{"metric": name, "value": value} for name, value in told["metrics"].items()]
    console.line(f"{model} version {number}, trained in {result.get('seconds', 0.0):.1f} s")
    console.show(told, ["metric", "value"], rows)
