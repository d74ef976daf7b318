"""Scores: sums that add up to what numpy and scikit-learn say at once, coverage, losses."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as reference

from loopline import scoring
from loopline.errors import InvalidInput
from loopline.records import Tally

HOUR = 3600
CLASSES = ("a", "b", "c")

number = st.floats(-1e4, 1e4)
pairs = st.lists(st.tuples(number, number), min_size=2, max_size=40)
chances = st.tuples(*[st.floats(0.01, 1.0)] * 3).map(lambda w: tuple(x / sum(w) for x in w))
answered = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES), chances), min_size=1, max_size=40
)


def summed(task: str, parts: list[tuple[Any, ...]]) -> dict[str, float]:
    """The sums of many contributions."""
    made = [scoring.contribution(task, *part) for part in parts]
    return reduce(scoring.add, made, {})


def test_scoring_comes_without_numpy() -> None:
    """The keeper imports it and stays light."""
    code = "import sys, loopline.scoring; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_cohort_is_an_hour() -> None:
    """The hour belongs to the prediction's own time."""
    assert [scoring.cohort(at) for at in (0.0, 3599.9, 3600.0, 7200.5)] == [0, 0, 1, 2]


@given(pairs)
def test_sums_of_numbers_agree_with_numpy(told: list[tuple[float, float]]) -> None:
    """Mean errors and the progressive r2 are those of the whole arrays."""
    outputs, labels = map(np.array, zip(*told, strict=True))
    sums = summed("regression", [(o, None, None, y) for o, y in told])
    found = scoring.metrics("regression", sums)
    assert found["mae"] == pytest.approx(np.abs(outputs - labels).mean(), abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(((outputs - labels) ** 2).mean()), abs=1e-6)
    assume(labels.std() > 1.0)
    assert found["r2"] == pytest.approx(reference.r2_score(labels, outputs), rel=1e-4, abs=1e-4)


@given(answered)
def test_sums_of_classes_agree_with_the_reference(told: list[tuple[Any, ...]]) -> None:
    """Accuracy and log-loss are those of the whole arrays."""
    parts = [(output, likely, CLASSES, label) for output, label, likely in told]
    found = scoring.metrics("classification", summed("classification", parts))
    outputs, labels, likely = zip(*told, strict=True)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, outputs))
    expected = reference.log_loss(labels, np.array(likely), labels=list(CLASSES))
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)


@given(pairs, number)
def test_a_correction_takes_the_old_part_out(told: list[tuple[float, float]], new: float) -> None:
    """Subtracting the old contribution and adding the new one is as if it had come at once."""
    parts = [(o, None, None, y) for o, y in told]
    (output, _), *_ = told
    corrected = scoring.add(
        summed("regression", parts), scoring.contribution("regression", *parts[0]), -1
    )
    corrected = scoring.add(corrected, scoring.contribution("regression", output, None, None, new))
    fresh = summed("regression", [(output, None, None, new), *parts[1:]])
    assert corrected == pytest.approx(fresh, rel=1e-6, abs=1e-3)


def test_adding_does_not_change_what_is_added() -> None:
    """Sums in the store are values, not places."""
    a, b = {"n": 1.0}, {"n": 2.0, "correct": 1.0}
    assert scoring.add(a, b) == {"n": 3.0, "correct": 1.0}
    assert scoring.add(a, b, -1) == {"n": -1.0, "correct": -1.0}
    assert (a, b) == ({"n": 1.0}, {"n": 2.0, "correct": 1.0})


def test_a_class_the_version_never_saw_costs_the_floor() -> None:
    """It counts as wrong, and its log-loss is that of the clipped floor."""
    part = scoring.contribution("classification", "a", (0.9, 0.1), ("a", "b"), "new")
    assert (part["correct"], part["log_loss"]) == (0.0, pytest.approx(-math.log(1e-15)))
    (loss,) = scoring.losses("classification", ["new"], ["a"], [(0.9, 0.1)], ("a", "b"))
    assert loss == pytest.approx(-math.log(1e-15))


def test_a_probability_of_nothing_is_clipped() -> None:
    """One overconfident answer costs much, and not everything."""
    part = scoring.contribution("classification", "a", (1.0, 0.0), ("a", "b"), "b")
    assert part["log_loss"] == pytest.approx(-math.log(1e-15))


def test_without_probabilities_there_is_no_log_loss() -> None:
    """Accuracy needs only the answer."""
    sums = scoring.contribution("classification", "a", None, None, "a")
    found = scoring.metrics("classification", sums)
    assert found["accuracy"] == 1.0 and "log_loss" not in found


def test_nothing_has_no_scores() -> None:
    """No outcome, no number."""
    assert scoring.metrics("classification", {}) == {}
    assert scoring.metrics("regression", {"n": 0.0}) == {}


@given(answered)
def test_evaluate_agrees_with_the_reference(told: list[tuple[Any, ...]]) -> None:
    """Accuracy, macro F1 and log-loss over arrays."""
    outputs, labels, likely = (list(each) for each in zip(*told, strict=True))
    found = scoring.evaluate("classification", labels, outputs, likely, CLASSES)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, outputs))
    expected = reference.f1_score(labels, outputs, average="macro", zero_division=0)
    assert found["f1"] == pytest.approx(expected)
    expected = reference.log_loss(labels, np.array(likely), labels=list(CLASSES))
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])),
        min_size=2,
        max_size=40,
    )
)
def test_auc_gives_ties_their_share(told: list[tuple[bool, float]]) -> None:
    """The area under the curve is that of the reference, with many equal probabilities too."""
    labels = ["yes" if label else "no" for label, _ in told]
    assume(len(set(labels)) == 2)
    likely = [(1 - chance, chance) for _, chance in told]
    outputs = ["yes" if chance > 0.5 else "no" for _, chance in told]
    found = scoring.evaluate("classification", labels, outputs, likely, ("no", "yes"))
    truth = [label for label, _ in told]
    assert found["auc"] == pytest.approx(reference.roc_auc_score(truth, [c for _, c in told]))


@given(pairs)
def test_evaluate_of_numbers_agrees_with_numpy(told: list[tuple[float, float]]) -> None:
    """Mean absolute error, root mean squared error and r2 over arrays."""
    outputs, labels = (list(each) for each in zip(*told, strict=True))
    found = scoring.evaluate("regression", labels, outputs)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(labels, outputs), abs=1e-6)
    expected = reference.root_mean_squared_error(labels, outputs)
    assert found["rmse"] == pytest.approx(expected, abs=1e-6)
    assume(np.std(labels) > 1.0)
    assert found["r2"] == pytest.approx(reference.r2_score(labels, outputs), rel=1e-4, abs=1e-4)


def test_losses_are_one_number_per_row() -> None:
    """Squared error; log-loss where there are probabilities, else right or wrong."""
    assert scoring.losses("regression", [1.0, 2.0], [1.5, 0.0], None, None).tolist() == [0.25, 4.0]
    told = scoring.losses("classification", ["a", "b"], ["a", "a"], None, None)
    assert told.tolist() == [0.0, 1.0]
    likely = [(0.75, 0.25), (0.75, 0.25)]
    told = scoring.losses("classification", ["a", "b"], ["a", "a"], likely, ("a", "b"))
    assert told == pytest.approx([-math.log(0.75), -math.log(0.25)])


def tallies() -> tuple[list[Tally], dict[tuple[int, int], int]]:
    """Two versions over two hours: 8 of 20 and 3 of 4 predictions have an outcome."""
    sums = [(1, 0, 6.0, 3.0), (1, 1, 2.0, 2.0), (2, 1, 3.0, 3.0)]
    made = [Tally(version=v, cohort=c, sums={"n": n, "correct": k}) for v, c, n, k in sums]
    return made, {(1, 0): 10, (1, 1): 10, (2, 1): 4}


def test_every_score_has_its_coverage_beside_it() -> None:
    """By version, and by version and hour."""
    summary = scoring.summary(*tallies(), "classification")
    one, two = summary["versions"]
    assert (one["version"], one["predictions"], one["outcomes"]) == (1, 20, 8)
    assert (one["coverage"], one["metrics"]["accuracy"]) == (0.4, 0.625)
    assert (two["version"], two["coverage"], two["metrics"]["accuracy"]) == (2, 0.75, 1.0)


def test_history_is_in_the_order_of_time() -> None:
    """A line chart draws it as it stands."""
    history = scoring.summary(*tallies(), "classification")["history"]
    assert [(each["from"], each["version"]) for each in history] == [(0, 1), (HOUR, 1), (HOUR, 2)]
    assert [each["coverage"] for each in history] == [0.6, 0.2, 0.75]
    assert [each["metrics"]["accuracy"] for each in history] == [0.5, 1.0, 1.0]


def test_coverage_of_matured_predictions_leaves_the_fresh_hours_out() -> None:
    """Only hours that ended a maturity window ago are counted."""
    summary = scoring.summary(*tallies(), "classification", maturity=60.0, now=HOUR + 60.0)
    one, two = summary["versions"]
    assert one["coverage_matured"] == 0.6
    assert two["coverage_matured"] is None


def test_hours_without_an_outcome_are_there_with_coverage_nought() -> None:
    """What nobody has told yet is not left out of the picture."""
    summary = scoring.summary([], {(1, 5): 3}, "regression")
    (entry,) = summary["history"]
    assert (entry["predictions"], entry["outcomes"], entry["coverage"]) == (3, 0, 0.0)
    assert entry["metrics"] == {}
    assert scoring.summary([], {}, "regression")["versions"] == []


@pytest.mark.parametrize("odd", [math.nan, math.inf, 10**400, 1e200, "text", None])
def test_an_odd_answer_cannot_poison_the_sums(odd: Any) -> None:
    """It counts for coverage only, can be taken out again, and never stops the join."""
    good = scoring.contribution("regression", 2.0, None, None, 1.0)
    part = scoring.contribution("regression", odd, None, None, 1.0)
    assert part == {"unscored": 1.0}
    assert scoring.metrics("regression", scoring.add(good, part))["mae"] == 1.0
    (entry,) = scoring.summary(
        [Tally(version=1, cohort=0, sums=scoring.add(good, part))], {(1, 0): 4}, "regression"
    )["versions"]
    assert (entry["outcomes"], entry["coverage"]) == (2, 0.5)


def test_a_probability_that_is_no_number_is_not_scored() -> None:
    """The answer still counts as right or wrong."""
    part = scoring.contribution("classification", "a", (math.nan, 0.5), ("a", "b"), "a")
    assert part == {"n": 1.0, "correct": 1.0}
    (loss,) = scoring.losses("classification", ["a"], ["a"], [(math.nan, 0.5)], ("a", "b"))
    assert math.isnan(loss)


def test_evaluate_leaves_out_what_is_not_defined() -> None:
    """No row, no spread, one class, an answer that is no number: never NaN in the metrics."""
    assert scoring.evaluate("classification", [], []) == {}
    assert "r2" not in scoring.evaluate("regression", [3.0, 3.0], [3.0, 4.0])
    found = scoring.evaluate("regression", [1.0, 2.0], [math.nan, 4.0])
    assert found == {"unscored": 1.0, "mae": 2.0, "rmse": 2.0}
    likely = [(0.5, 0.5)]
    assert "auc" not in scoring.evaluate("classification", ["a"], ["a"], likely, ("a", "b"))


def test_r2_survives_labels_far_from_nought() -> None:
    """Where rounding ate the spread of the sums there is no r2; whole arrays still have it."""
    labels, outputs = [1e9, 1e9 + 1, 1e9 + 2], [1e9, 1e9 + 1, 1e9 + 2.5]
    assert scoring.evaluate("regression", labels, outputs)["r2"] == pytest.approx(0.875)
    sums = summed("regression", [(o, None, None, y) for o, y in zip(outputs, labels, strict=True)])
    assert "r2" not in scoring.metrics("regression", sums)


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        ("regression", "mse", [0.25]),
        ("regression", "mae", [0.5]),
        ("classification", "accuracy", [1.0]),
        ("classification", "log_loss", [-math.log(0.25)]),
    ],
)
def test_the_metric_of_the_losses_can_be_named(
    task: str, metric: str, expected: list[float]
) -> None:
    """And one that does not fit the task is refused."""
    numbers = task == "regression"
    labels, outputs = ([1.0], [1.5]) if numbers else (["b"], ["a"])
    likely, classes = (None, None) if numbers else ([(0.75, 0.25)], ("a", "b"))
    found = scoring.losses(task, labels, outputs, likely, classes, metric)
    assert found == pytest.approx(expected)
    wrong = "log_loss" if numbers else "mae"
    with pytest.raises(InvalidInput, match=wrong):
        scoring.losses(task, labels, outputs, likely, classes, wrong)


def test_coverage_by_age_needs_no_policy() -> None:
    """The share of predictions older than an hour, a day and a week that have an outcome."""
    summary = scoring.summary(*tallies(), "classification", now=2 * HOUR + 3600.0)
    one, _ = summary["versions"]
    ages = {each["older_than"]: each["coverage"] for each in one["coverage_by_age"]}
    assert ages == {3600.0: 0.4, 86_400.0: None, 604_800.0: None}


def test_coverage_is_never_more_than_everything() -> None:
    """Retention takes predictions away; their outcomes stay in the sums."""
    made, _ = tallies()
    summary = scoring.summary(made, {(1, 0): 2}, "classification")
    assert all(each["coverage"] == 1.0 for each in summary["history"])


def test_evaluate_takes_labels_the_version_never_saw() -> None:
    """They are wrong, cost the floor, and are left out of the area under the curve."""
    labels, likely = ["new", "a", "b"], [(0.9, 0.1), (0.9, 0.1), (0.2, 0.8)]
    found = scoring.evaluate("classification", labels, ["a", "a", "b"], likely, ("a", "b"))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["log_loss"] > 11, found["auc"]) == (True, 1.0)
    alone = scoring.evaluate("classification", labels[:2], ["a", "a"], likely[:2], ("a", "b"))
    assert "auc" not in alone
