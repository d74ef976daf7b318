"""Scores: sums that add up to what numpy says, corrections, coverage."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.records import Tally
from loopline.scoring import add, cohort, contribution, evaluate, losses, metrics, summary

numbers = st.floats(-1e3, 1e3)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40)


@given(pairs)
def test_regression_sums_are_numpys_figures(rows: list[tuple[float, float]]) -> None:
    """MAE, RMSE and R² from additive sums equal those from the whole arrays."""
    sums: dict[str, float] = {}
    for output, label in rows:
        sums = add(sums, contribution("regression", output, None, None, label))
    told = metrics("regression", sums)
    outputs, labels = numpy.array(rows).T
    error = outputs - labels
    assert told["mae"] == pytest.approx(numpy.abs(error).mean(), abs=1e-9)
    assert told["rmse"] == pytest.approx(math.sqrt((error**2).mean()), abs=1e-6)
    assert evaluate("regression", labels.tolist(), outputs.tolist()) == pytest.approx(told)
    spread = ((labels - labels.mean()) ** 2).sum()
    if spread > 1e-3:
        assert told["r2"] == pytest.approx(1 - (error**2).sum() / spread, rel=1e-6, abs=1e-4)


@given(pairs, numbers)
def test_a_correction_leaves_what_a_first_telling_would(
    rows: list[tuple[float, float]], value: float
) -> None:
    """Subtract the old part, add the new one: the sums of the corrected rows."""
    wrong, right = {}, {}
    for output, label in rows:
        wrong = add(wrong, contribution("regression", output, None, None, label))
    for output, label in [(rows[0][0], value), *rows[1:]]:
        right = add(right, contribution("regression", output, None, None, label))
    old = contribution("regression", rows[0][0], None, None, rows[0][1])
    new = contribution("regression", rows[0][0], None, None, value)
    corrected = add(add(wrong, old, -1), new)
    assert corrected == pytest.approx(right, rel=1e-6, abs=1e-3)


def test_classification_counts_and_clips() -> None:
    """Accuracy and log-loss; a class the version never saw costs the clipped floor."""
    classes = ("a", "b")
    sums = contribution("classification", "a", (0.8, 0.2), classes, "a")
    sums = add(sums, contribution("classification", "a", (0.6, 0.4), classes, "b"))
    told = metrics("classification", sums)
    assert told["accuracy"] == 0.5
    assert told["log_loss"] == pytest.approx((-math.log(0.8) - math.log(0.4)) / 2)
    never = contribution("classification", "a", (1.0, 0.0), classes, "c")
    assert never["log_loss"] == pytest.approx(-math.log(1e-15))
    assert never["correct"] == 0.0
    bare = contribution("classification", "a", None, None, "a")
    assert "log_loss" not in bare


def test_losses_per_row() -> None:
    """Log-loss with probabilities, 0 or 1 without, squared error for numbers."""
    chances = [(0.9, 0.1), (0.5, 0.5)]
    found = losses("classification", ["a", "b"], ["a", "a"], chances, ("a", "b"))
    assert found.tolist() == pytest.approx([-math.log(0.9), -math.log(0.5)])
    assert losses("classification", ["a", "b"], ["a", "a"], None, None).tolist() == [0.0, 1.0]
    assert losses("regression", [1.0, 2.0], [3.0, 2.0], None, None).tolist() == [4.0, 0.0]


def test_evaluate_knows_auc_and_f1() -> None:
    """Two classes give an AUC by ranks; F1 is the macro average."""
    told = evaluate(
        "classification",
        [0, 0, 1, 1],
        [0, 1, 1, 1],
        [(0.9, 0.1), (0.4, 0.6), (0.3, 0.7), (0.1, 0.9)],
        (0, 1),
    )
    assert told["auc"] == 1.0 and told["accuracy"] == 0.75
    assert told["f1"] == pytest.approx((2 / 3 + 0.8) / 2)


def test_the_summary_has_coverage_beside_every_number() -> None:
    """By version and by hour; matured coverage looks only at hours that are old enough."""
    hour = cohort(1_700_000_000.0)
    sums = contribution("regression", 1.0, None, None, 2.0)
    tallies = [
        Tally(version=1, cohort=hour, sums=sums),
        Tally(version=2, cohort=hour + 2, sums=add(sums, sums)),
    ]
    served = {(1, hour): 4, (2, hour + 2): 2, (2, hour + 3): 6}
    told = summary(tallies, served, "regression", maturity=3600.0, now=(hour + 4) * 3600.0)
    first, second = told["versions"]
    assert (first["predictions"], first["outcomes"], first["coverage"]) == (4, 1, 0.25)
    assert (second["predictions"], second["coverage"]) == (8, 0.25)
    assert second["coverage_matured"] == 1.0
    assert [h["version"] for h in told["history"]] == [1, 2, 2]
    assert told["history"][2]["metrics"] == {} and told["history"][2]["coverage"] == 0.0
