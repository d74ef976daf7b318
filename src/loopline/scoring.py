"""Scores as they were knowable at the time: additive sums, coverage, and losses per row.

The sums are kept by the join, per version and hour of prediction time, from the answer that was
given then; they add, so a correction subtracts the old part and adds the new one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loopline.errors import InvalidInput
from loopline.records import Tally

if TYPE_CHECKING:
    import numpy

COHORT = 3600
FLOOR = 1e-15
"""Probabilities are clipped to this before their logarithm is taken."""
AGES = (3600.0, 86_400.0, 7 * 86_400.0)
"""Coverage is also given of the predictions older than these many seconds."""

Sums = dict[str, float]
Key = tuple[int, int]


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

    It never raises, since one odd answer must not stop the join.

    Returns:
        For classification: n, correct, and log_loss with scored where probabilities are known; a
        label that is not among the classes costs the logarithm of `FLOOR`. For regression: n,
        absolute, squared, label, label2. For other tasks: those of regression where both are
        numbers, else n and correct. Where the answer or the label is not a finite number but
        has to be one: only unscored, which counts for coverage and for nothing else.
    """
    numbers = _number(output) and _number(label)
    if task != "regression" and not (numbers and task != "classification"):
        sums = {"n": 1.0, "correct": float(bool(output == label))}
        if probabilities is not None and classes is not None:
            chance = _chance(probabilities, classes, label)
            if not math.isnan(chance):
                sums |= {"log_loss": -math.log(chance), "scored": 1.0}
        return sums
    if not numbers:
        return {"unscored": 1.0}
    error, truth = float(output) - float(label), float(label)
    sums = {
        "n": 1.0,
        "absolute": abs(error),
        "squared": error * error,
        "label": truth,
        "label2": truth * truth,
    }
    return sums if all(map(math.isfinite, sums.values())) else {"unscored": 1.0}


def _number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold; true and false count as 1 and 0."""
    if isinstance(value, int):
        return value.bit_length() < 1024
    return isinstance(value, float) and math.isfinite(value)


def _chance(probabilities: Sequence[float], classes: Sequence[Any], label: Any) -> float:
    """The clipped probability of the label; NaN where that is what the model answered."""
    for name, chance in zip(classes, probabilities, strict=False):
        if name == label:
            return chance if math.isnan(chance) else min(1.0, max(FLOOR, chance))
    return FLOOR


def add(a: Mapping[str, float], b: Mapping[str, float], sign: int = 1) -> Sums:
    """Add sums up; `sign=-1` takes `b` out again."""
    total = dict(a)
    accumulate(total, b, sign)
    return total


def accumulate(total: Sums, part: Mapping[str, float], sign: int = 1) -> None:
    """Add to sums in place."""
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + sign * value


def metrics(task: str, sums: Mapping[str, float]) -> dict[str, float]:
    """The scores that sums amount to; what they do not define is left out.

    Returns:
        accuracy and log_loss (mean, natural logarithm), or mae, rmse and the progressive r2:
        1 - sum of squared errors / sum of squared deviations of the labels from their mean.
    """
    n = sums.get("n", 0.0)
    if n <= 0:
        return {}
    if "squared" in sums and "correct" not in sums:
        squared = max(0.0, sums["squared"])
        found = {"mae": max(0.0, sums["absolute"]) / n, "rmse": math.sqrt(squared / n)}
        spread = sums["label2"] - sums["label"] ** 2 / n
        # Below this the spread is what rounding left of a difference between two large numbers.
        return found | ({"r2": 1.0 - squared / spread} if spread > 1e-12 * sums["label2"] else {})
    found = {}
    if "correct" in sums and "squared" not in sums:
        found["accuracy"] = sums["correct"] / n
    if sums.get("scored", 0.0) > 0:
        found["log_loss"] = max(0.0, sums["log_loss"]) / sums["scored"]
    return found


def summary(
    tallies: Iterable[Tally],
    served: Mapping[Key, int],
    task: str,
    maturity: float | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """Progressive scores by version and over time, with coverage beside every number.

    Progressive means that each prediction is scored by the answer it was given then, by the
    version that gave it, in the hour it was made, once its outcome is known: nothing is answered
    again with what was learned later. A correction replaces the outcome it corrects.

    `predictions` is how many answers were served, `outcomes` how many of them have one by now,
    and `coverage` the share, None where nothing was served. Scores of fresh hours rest on the
    outcomes that came quickly, so `coverage_by_age` gives the share among predictions older
    than so many seconds, in whole hours; `coverage_matured` is that for the maturity window.

    Args:
        tallies: sums by version and hour.
        served: predictions made, by (version, hour); hours of which the log no longer has all
            count as covered.
        task: classification, regression or other.
        maturity: seconds after which outcomes are expected to be in.
        now: seconds since the epoch; the clock's time by default.

    Returns:
        {"task", "maturity", "versions": one entry per version, "history": one per hour and
        version, in time order, each with "from" and "to" in seconds}. An entry has "version",
        "predictions", "outcomes", "coverage" and "metrics" (see `metrics`).
    """
    moment = time.time() if now is None else now
    sums = {(tally.version, tally.cohort): tally.sums for tally in tallies}
    keys = sorted({*sums, *served}, key=lambda key: (key[1], key[0]))
    history = [
        {
            "version": key[0],
            "from": key[1] * COHORT,
            "to": (key[1] + 1) * COHORT,
            **_entry(task, [key], sums, served),
        }
        for key in keys
    ]
    versions = []
    ages = sorted({*AGES, *([maturity] if maturity else [])})
    for version in sorted({key[0] for key in keys}):
        own = [key for key in keys if key[0] == version]
        older = {
            age: _coverage([k for k in own if (k[1] + 1) * COHORT + age <= moment], sums, served)
            for age in ages
        }
        entry = {"version": version, **_entry(task, own, sums, served)}
        entry["coverage_by_age"] = [{"older_than": age, **older[age]} for age in ages]
        if maturity:
            entry["coverage_matured"] = older[maturity]["coverage"]
        versions.append(entry)
    return {"task": task, "maturity": maturity, "versions": versions, "history": history}


def _entry(
    task: str, keys: Sequence[Key], sums: Mapping[Key, Sums], served: Mapping[Key, int]
) -> dict[str, Any]:
    total: Sums = {}
    for key in keys:
        total = add(total, sums.get(key, {}))
    return {**_coverage(keys, sums, served), "metrics": metrics(task, total)}


def _coverage(
    keys: Sequence[Key], sums: Mapping[Key, Sums], served: Mapping[Key, int]
) -> dict[str, Any]:
    """Predictions and outcomes of these hours, and the share of the first that have the second."""
    joined, made = 0, 0
    for key in keys:
        found = sums.get(key, {})
        outcomes = round(found.get("n", 0.0) + found.get("unscored", 0.0))
        joined += outcomes
        # Retention may have taken predictions whose outcomes are in the sums.
        made += max(outcomes, served.get(key, 0))
    return {"predictions": made, "outcomes": joined, "coverage": joined / made if made else None}


def losses(
    task: str,
    labels: Sequence[Any],
    outputs: Sequence[Any],
    probabilities: Sequence[Sequence[float]] | None = None,
    classes: Sequence[Any] | None = None,
    metric: str | None = None,
) -> numpy.ndarray[Any, numpy.dtype[numpy.float64]]:
    """The loss of every row: smaller is better, and NaN where the answer is none.

    Args:
        task: classification, or anything else for numbers.
        labels: the truth, of length n; outputs: the answers, in the same order.
        probabilities: of shape (n, number of classes), in the order of `classes`.
        metric: log_loss; accuracy (0 right, 1 wrong); mse (squared error); mae (absolute error).
            None is log_loss where probabilities are given, else accuracy; mse for numbers.

    Returns:
        float64 of shape (n,).

    Raises:
        InvalidInput: the metric does not fit the task or what was given.
    """
    import numpy as np

    if task != "classification":
        if metric not in (None, "mse", "mae"):
            raise InvalidInput(f"the metric {metric!r} is for classes, and the answers are numbers")
        errors = _numbers(outputs) - _numbers(labels)
        return np.abs(errors) if metric == "mae" else errors**2
    if metric not in (None, "accuracy", "log_loss"):
        raise InvalidInput(f"the metric {metric!r} is for numbers, and the answers are classes")
    if metric == "accuracy" or (metric is None and (probabilities is None or classes is None)):
        wrong = [output != label for output, label in zip(outputs, labels, strict=True)]
        return np.array(wrong, dtype=np.float64)
    if probabilities is None or classes is None:
        raise InvalidInput("the metric 'log_loss' needs a model that answers with probabilities")
    chances = [_chance(row, classes, y) for row, y in zip(probabilities, labels, strict=True)]
    return -np.log(np.array(chances, dtype=np.float64))


def evaluate(
    task: str,
    labels: Sequence[Any],
    outputs: Sequence[Any],
    probabilities: Sequence[Sequence[float]] | None = None,
    classes: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Score whole arrays at once; what is not defined is left out.

    The arguments are those of `losses`; other tasks are judged by what the labels are.

    Returns:
        accuracy, f1 (macro), log_loss and, for two classes, auc (of the second one); or mae,
        rmse and r2. `unscored` counts answers that are no finite number, where there are any.
    """
    if not len(labels):
        return {}
    numbers = all(_number(label) for label in labels)
    if task == "regression" or (task != "classification" and numbers):
        return _evaluate_numbers(labels, outputs)
    found = _evaluate_classes(labels, outputs)
    if probabilities is not None and classes is not None:
        found["log_loss"] = float(losses(task, labels, outputs, probabilities, classes).mean())
        if len(classes) == 2:
            found |= _area(labels, [row[1] for row in probabilities], classes)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _numbers(values: Sequence[Any]) -> numpy.ndarray[Any, numpy.dtype[numpy.float64]]:
    """float64 of shape (n,), NaN where a value is no finite number."""
    import numpy as np

    return np.array([float(v) if _number(v) else math.nan for v in values], dtype=np.float64)


def _evaluate_numbers(labels: Sequence[Any], outputs: Sequence[Any]) -> dict[str, float]:
    import numpy as np

    truth, told = _numbers(labels), _numbers(outputs)
    scored = np.isfinite(truth) & np.isfinite(told)
    truth, errors = truth[scored], told[scored] - truth[scored]
    found = {} if scored.all() else {"unscored": float((~scored).sum())}
    if not len(truth):
        return found
    found |= {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean()))}
    spread = float(((truth - truth.mean()) ** 2).sum())
    return found | ({"r2": 1.0 - float((errors**2).sum()) / spread} if spread > 0 else {})


def _evaluate_classes(labels: Sequence[Any], outputs: Sequence[Any]) -> dict[str, float]:
    pairs = list(zip(labels, outputs, strict=True))
    truth, told = Counter(labels), Counter(outputs)
    right = Counter(label for label, output in pairs if output == label)
    names = truth.keys() | told.keys()
    each = [2 * right[name] / (truth[name] + told[name]) for name in names]
    return {"accuracy": right.total() / len(pairs), "f1": math.fsum(each) / len(each)}


def _area(
    labels: Sequence[Any], chances: Sequence[float], classes: Sequence[Any]
) -> dict[str, float]:
    """The area under the ROC curve as a rank statistic (Mann and Whitney), ties sharing ranks."""
    import numpy as np
    from scipy.stats import rankdata

    known = [(y, c) for y, c in zip(labels, chances, strict=True) if y in classes]
    positive = np.array([label == classes[1] for label, _ in known], dtype=bool)
    above, below = int(positive.sum()), int((~positive).sum())
    if not above or not below:
        return {}
    ranks = rankdata([chance for _, chance in known])
    return {"auc": float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))}
