"""Scores as they were knowable at the time: additive sums, coverage, and losses per row.

The sums are kept by the join, per version and hour of prediction time, from the answer that was
given then; they add, so a correction subtracts the old part and adds the new one exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loopline.records import Tally

if TYPE_CHECKING:
    import numpy

COHORT = 3600
FLOOR = 1e-15
"""Probabilities are clipped to this before their logarithm is taken."""

Sums = dict[str, float]


def cohort(at: float) -> int:
    """The hour a prediction belongs to, counted from the epoch."""
    return int(at // COHORT)


def contribution(
    task: str,
    output: Any,
    probabilities: Sequence[float] | None,
    classes: Sequence[Any] | None,
    label: Any,
) -> Sums:
    """What one matured prediction adds to the sums of its version and hour.

    Returns:
        For classification: n, correct, and log_loss with scored where probabilities are known.
        For regression: n, absolute, squared, label, label2. Otherwise: n.
    """
    if task == "classification":
        sums = {"n": 1.0, "correct": float(output == label)}
        if probabilities is not None and classes is not None:
            sums["log_loss"] = -math.log(_chance(probabilities, classes, label))
            sums["scored"] = 1.0
        return sums
    if task == "regression" and _number(output) and _number(label):
        error = output - label
        return {
            "n": 1.0,
            "absolute": abs(error),
            "squared": error * error,
            "label": label,
            "label2": label * label,
        }
    return {"n": 1.0}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _chance(probabilities: Sequence[float], classes: Sequence[Any], label: Any) -> float:
    for name, chance in zip(classes, probabilities, strict=False):
        if name == label:
            return min(1.0, max(FLOOR, chance))
    return FLOOR


def add(a: Mapping[str, float], b: Mapping[str, float], sign: int = 1) -> Sums:
    """Add sums up; `sign=-1` takes `b` out again."""
    total = dict(a)
    for name, value in b.items():
        total[name] = total.get(name, 0.0) + sign * value
    return total


def metrics(task: str, sums: Mapping[str, float]) -> dict[str, float]:
    """The scores that sums amount to; `r2` is one minus squared error over variance."""
    n = sums.get("n", 0.0)
    if n <= 0:
        return {}
    if task == "classification":
        found = {"accuracy": sums.get("correct", 0.0) / n}
        if sums.get("scored"):
            found["log_loss"] = sums["log_loss"] / sums["scored"]
        return found
    if "squared" not in sums:
        return {}
    spread = sums["label2"] - sums["label"] ** 2 / n
    found = {"mae": sums["absolute"] / n, "rmse": math.sqrt(max(0.0, sums["squared"] / n))}
    if spread > 0:
        found["r2"] = 1.0 - sums["squared"] / spread
    return found


def summary(
    tallies: Sequence[Tally],
    served: Mapping[tuple[int, int], int],
    task: str,
    maturity: float | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """Progressive scores by version and over time, with coverage beside every number.

    Each prediction is scored by the answer it was given then, in the hour it was made. `coverage`
    is the share of the predictions served there whose outcome is known by now.

    Args:
        tallies: sums by version and hour.
        served: predictions made, by (version, hour).
        task: classification or regression.
        maturity: seconds after which outcomes are expected to be in.
        now: seconds since the epoch; with `maturity`, the coverage of older predictions is given.

    Returns:
        {"task", "versions": [one entry per version], "history": [one per version and hour]}.
    """
    by_key = {(tally.version, tally.cohort): tally.sums for tally in tallies}
    keys = sorted({*by_key, *served}, key=lambda key: (key[1], key[0]))
    history = [
        {
            "version": version,
            "from": hour * COHORT,
            **_entry(task, by_key.get((version, hour), {}), served.get((version, hour), 0)),
        }
        for version, hour in keys
    ]
    versions = []
    for version in sorted({key[0] for key in keys}):
        hours = [key for key in keys if key[0] == version]
        sums: Sums = {}
        for key in hours:
            sums = add(sums, by_key.get(key, {}))
        entry = {"version": version, **_entry(task, sums, sum(served.get(k, 0) for k in hours))}
        if maturity is not None and now is not None:
            old = [key for key in hours if (key[1] + 1) * COHORT + maturity <= now]
            joined = sum(by_key.get(key, {}).get("n", 0.0) for key in old)
            made = sum(served.get(key, 0) for key in old)
            entry["coverage_matured"] = joined / made if made else None
        versions.append(entry)
    return {"task": task, "maturity": maturity, "versions": versions, "history": history}


def _entry(task: str, sums: Mapping[str, float], served: int) -> dict[str, Any]:
    joined = int(sums.get("n", 0.0))
    return {
        "predictions": served,
        "outcomes": joined,
        "coverage": joined / served if served else None,
        "metrics": metrics(task, sums),
    }


def losses(
    task: str,
    labels: Sequence[Any],
    outputs: Sequence[Any],
    probabilities: Sequence[Sequence[float]] | None,
    classes: Sequence[Any] | None,
) -> numpy.ndarray[Any, numpy.dtype[numpy.float64]]:
    """The loss of every row: log-loss where probabilities are known, else 0 or 1; squared error.

    Returns:
        float64 of shape (n,).
    """
    import numpy

    if task != "classification":
        errors = numpy.asarray(outputs, dtype=float) - numpy.asarray(labels, dtype=float)
        return numpy.asarray(errors**2, dtype=float)
    if probabilities is None or classes is None:
        wrong = [output != label for output, label in zip(outputs, labels, strict=True)]
        return numpy.asarray(wrong, dtype=float)
    chances = [
        _chance(row, classes, label) for row, label in zip(probabilities, labels, strict=True)
    ]
    return numpy.asarray(-numpy.log(chances), dtype=float)


def evaluate(
    task: str,
    labels: Sequence[Any],
    outputs: Sequence[Any],
    probabilities: Sequence[Sequence[float]] | None = None,
    classes: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Score whole arrays at once.

    Returns:
        accuracy, f1 (macro), log_loss and, for two classes, auc; or mae, rmse and r2.
    """
    if task == "classification":
        return _evaluate_classes(labels, outputs, probabilities, classes)
    sums: Sums = {}
    for label, output in zip(labels, outputs, strict=True):
        sums = add(sums, contribution("regression", output, None, None, label))
    return metrics("regression", sums)


def _evaluate_classes(
    labels: Sequence[Any],
    outputs: Sequence[Any],
    probabilities: Sequence[Sequence[float]] | None,
    classes: Sequence[Any] | None,
) -> dict[str, float]:
    from sklearn.metrics import f1_score, roc_auc_score

    texts, told = [str(label) for label in labels], [str(output) for output in outputs]
    right = sum(label == output for label, output in zip(labels, outputs, strict=True))
    found = {
        "accuracy": right / len(labels),
        "f1": float(f1_score(texts, told, average="macro", zero_division=0)),
    }
    if probabilities is None or classes is None:
        return found
    found["log_loss"] = float(
        losses("classification", labels, outputs, probabilities, classes).mean()
    )
    if len(classes) == 2 and len(set(texts)) == 2:
        positive = [row[1] for row in probabilities]
        found["auc"] = float(roc_auc_score([label == classes[1] for label in labels], positive))
    return found
