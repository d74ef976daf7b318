"""The checks for a user's model pass on good models, and each fails on a model that breaks it."""

from __future__ import annotations

import random
from typing import Any

import lightgbm
import numpy as np
import pytest
from river import compose, linear_model, preprocessing
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import loopline.testing
from loopline.builtin import Polynomial
from loopline.errors import ModelFailed
from loopline.model import Model
from loopline.testing import check_model

NAMES = {
    "column_order_is_irrelevant",
    "extra_field_is_refused",
    "inputs_are_untouched",
    "missing_field_is_refused",
    "order_is_kept",
    "repeatable",
    "save_and_load",
    "single_is_batch",
    "unseen_category_is_answered",
}
ROWS = [{"size": float(i), "color": "red" if i % 3 else "blue"} for i in range(60)]
LABELS = ["big" if i > 30 else "small" for i in range(60)]
NUMBERS = [{"x": float(i), "z": float(i * i % 7)} for i in range(60)]
SUMS = [row["x"] - row["z"] for row in NUMBERS]


def add(x: float, z: float) -> float:
    """Add two numbers."""
    return x + z


GOOD = {
    "sklearn": (LogisticRegression(), ROWS, LABELS),
    "forest": (RandomForestClassifier(5), ROWS, LABELS),
    "lightgbm": (lightgbm.LGBMClassifier(n_estimators=5, verbose=-1), ROWS, LABELS),
    "built in": (Polynomial(2), NUMBERS, SUMS),
    "river": (
        compose.Pipeline(preprocessing.StandardScaler(), linear_model.LinearRegression()),
        NUMBERS,
        SUMS,
    ),
    "function": (add, NUMBERS, SUMS),
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_models_pass(kind: str) -> None:
    """Every kind of model passes every check."""
    checks = dict(check_model(*GOOD[kind]))
    assert set(checks) == NAMES
    for check in checks.values():
        check()


class Plain(Model):
    """A good model, to be spoiled in one way each."""

    inputs = "rows"

    def fit(self, X: Any, y: Any) -> None:
        self.known_ = {row["color"] for row in X}

    def predict(self, X: Any) -> list[float]:
        return [row["size"] for row in X]


class Peeks(Plain):
    """Answers a row by its neighbours."""

    def predict(self, X: Any) -> list[float]:
        return [float(np.mean([row["size"] for row in X]))] * len(X)


class Sorts(Plain):
    """Answers in an order of its own."""

    def predict(self, X: Any) -> list[float]:
        return sorted(super().predict(X))


class Guesses(Plain):
    """Never says the same twice."""

    def predict(self, X: Any) -> list[float]:
        return [random.random() for _ in X]


class Forgets(Plain):
    """Loses what it learned on the way through storage."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def predict(self, X: Any) -> list[float]:
        return [float(hasattr(self, "known_")) for _ in X]


class Picky(Plain):
    """Fails on what it has not seen."""

    def predict(self, X: Any) -> list[float]:
        return [{color: 1.0 for color in self.known_}[row["color"]] for row in X]


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Peeks, "single_is_batch"),
        (Sorts, "order_is_kept"),
        (Guesses, "repeatable"),
        (Forgets, "save_and_load"),
        (Picky, "unseen_category_is_answered"),
    ],
)
def test_each_check_catches_its_fault(kind: type[Plain], broken: str) -> None:
    """A model with one fault fails the check that is named after it."""
    checks = dict(check_model(kind(), ROWS, [row["size"] for row in ROWS]))
    with pytest.raises((AssertionError, ModelFailed)):
        checks[broken]()
    checks["inputs_are_untouched"]()
    checks["extra_field_is_refused"]()


def test_names_are_loaded_when_asked_for() -> None:
    """The package advertises its suites and loads each when it is used."""
    assert set(loopline.testing.__all__) <= set(dir(loopline.testing))
    assert all(getattr(loopline.testing, name).__doc__ for name in loopline.testing.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        loopline.testing.no_such  # noqa: B018 - the access itself is what fails
