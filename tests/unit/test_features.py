"""The features that an estimator gets when it brings none of its own."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from loopline import features
from loopline.errors import InvalidInput
from loopline.fields import Field, Output
from loopline.model import adopt
from loopline.natives import brings_features, grows_trees, picked, takes_missing, wants_frame
from loopline.schema import Schema
from tests.tables import plain_frame

ROWS = 300


@pytest.fixture
def frame() -> pd.DataFrame:
    """Every kind of column, with gaps, and a class that some of them decide."""
    rng = np.random.default_rng(1)
    job = rng.choice(["clerk", "driver", "nurse"], ROWS)
    age = rng.integers(18, 80, ROWS).astype(float)
    frame = pd.DataFrame(
        {
            "age": np.where(np.arange(ROWS) % 19 == 0, np.nan, age),
            "job": job,
            "member": rng.choice(np.array([True, False, None], dtype=object), ROWS),
            "mixed": rng.choice(np.array([1, "x", None], dtype=object), ROWS),
            "name": [f"person {i}" for i in range(ROWS)],
        }
    )
    frame["high"] = np.where((job == "nurse") | (age > 60), "yes", "no")
    return frame


def rows_of(schema: Schema, frame: pd.DataFrame, target: str) -> list[Any]:
    """The rows of a frame, nulls as None."""
    inputs = frame.drop(columns=target).astype(object)
    return [schema.row(r) for r in inputs.where(inputs.notna(), None).to_dict("records")]


ESTIMATORS = [
    LogisticRegression(max_iter=500),
    SGDClassifier(random_state=0),
    GaussianNB(),
    RandomForestClassifier(9, random_state=0),
    ExtraTreesClassifier(9, random_state=0),
    GradientBoostingClassifier(n_estimators=9),
    HistGradientBoostingClassifier(max_iter=9),
    lightgbm.LGBMClassifier(n_estimators=9, verbose=-1),
    GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1.0]}, cv=2),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_estimators_read_any_schema(estimator: Any, frame: pd.DataFrame) -> None:
    """Gaps, truths, mixed categories and categories never seen all get an answer."""
    schema = Schema.infer(frame, "high")
    rows = rows_of(schema, frame, "high")
    labels = frame["high"].tolist()
    model = adopt(estimator).fit(schema, rows, labels)
    answers = model.answer(schema, rows)
    right = sum(a == b for a, b in zip(answers.outputs, labels, strict=True))
    assert right / ROWS > 0.75
    strange = (None, "astronaut", None, "never seen", "nobody")
    (answer,) = model.answer(schema, [strange]).outputs
    assert answer in ("yes", "no")


def test_free_text_is_left_out_and_said(frame: pd.DataFrame) -> None:
    """A text that is different in every row is no feature, and the model says so."""
    schema = Schema.infer(frame, "high")
    model = adopt(LogisticRegression())
    assert model.fields(schema) == ("age", "job", "member", "mixed")
    fitted = model.fit(schema, rows_of(schema, frame, "high"), frame["high"].tolist())
    assert fitted.description.endswith("Not used: name.")
    assert fitted.parameters()["C"] == 1.0


def test_few_texts_are_categories() -> None:
    """A declared text with few different values is a category after all."""
    schema = Schema(
        fields=(Field(name="color", kind="text"), Field(name="x", kind="number")),
        output=Output(name="y", kind="category", categories=("a", "b")),
    )
    rows = [(color, 0.0) for color in ("red", "blue") * 20]
    labels = ["a" if row[0] == "red" else "b" for row in rows]
    model = adopt(LogisticRegression()).fit(schema, rows, labels)
    assert model.answer(schema, rows).outputs == labels


def test_nothing_but_text_is_refused() -> None:
    """With no usable field at all, the error says why."""
    schema = Schema(fields=(Field(name="name", kind="text"),), output=Output(name="y", kind="any"))
    with pytest.raises(InvalidInput, match="free text"):
        features.pipeline(schema, LogisticRegression())


def test_unseen_and_missing_have_codes_of_their_own() -> None:
    """Trees see an unseen category apart from a missing one, and both apart from the known."""
    field = Field(name="job", kind="category", nullable=True, categories=("a", "b"))
    schema = Schema(fields=(field,), output=Output(name="y", kind="number"))
    pipeline = features.pipeline(schema, RandomForestClassifier(2))
    frame = plain_frame(schema, [("a",), ("b",), (None,)])
    codes = pipeline[:-1].fit(frame).transform(plain_frame(schema, [("b",), ("zzz",), (None,)]))
    assert codes.ravel().tolist() == [1.0, features.UNSEEN, 2.0]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_the_quick_way_is_the_same_way(estimator: Any, frame: pd.DataFrame) -> None:
    """Rows become features without a frame, and exactly those that the pipeline makes."""
    schema = Schema.infer(frame, "high")
    rows = rows_of(schema, frame, "high")
    native = adopt(estimator).fit(schema, rows, frame["high"].tolist()).native
    rows = [*rows, (None, "astronaut", None, "never seen", "nobody")]
    expected = native[:-1].transform(plain_frame(schema, rows)).astype(np.float64)
    assert np.array_equal(features.quick(native, schema)(rows), expected, equal_nan=True)


def test_indicators_are_capped() -> None:
    """A field with many categories makes a bounded number of columns; the rare ones share one."""
    field = Field(name="c", kind="category", categories=tuple(f"c{i}" for i in range(400)))
    schema = Schema(fields=(field,), output=Output(name="y", kind="number"))
    pipeline = features.pipeline(schema, LogisticRegression())
    made = pipeline[:-1].fit_transform(plain_frame(schema, [(f"c{i}",) for i in range(400)]))
    assert made.shape == (400, features.MOST_COLUMNS_PER_FIELD)


def test_numbers_with_gaps_are_filled_only_where_needed() -> None:
    """A numeric schema with gaps needs no features where the estimator takes NaN."""
    schema = Schema(
        fields=(Field(name="x", kind="number", nullable=True),),
        output=Output(name="y", kind="category", categories=(0, 1)),
    )
    rows, labels = [(None if i % 5 == 0 else float(i),) for i in range(60)], [0] * 30 + [1] * 30
    filled = adopt(LogisticRegression()).fit(schema, rows, labels)
    plain = adopt(HistGradientBoostingClassifier()).fit(schema, rows, labels)
    assert (filled.wrapped, plain.wrapped) == (True, False)
    assert filled.answer(schema, [(None,)]).outputs[0] in (0, 1)
    assert plain.answer(schema, [(None,)]).outputs[0] in (0, 1)


def test_what_is_told_of_an_estimator() -> None:
    """Trees, tolerance of gaps, own features and picked columns are seen by looking."""
    picks = ColumnTransformer([("a", StandardScaler(), ["x"]), ("b", OneHotEncoder(), "y")])
    own = make_pipeline(picks, LogisticRegression())
    assert picked(own) == ("x", "y")
    assert picked(make_pipeline(StandardScaler(), LogisticRegression())) is None
    assert picked(ColumnTransformer([("a", "passthrough", ["x"])], remainder="passthrough")) is None
    assert brings_features(own) and wants_frame(own)
    assert brings_features(GridSearchCV(own, {}))
    assert not brings_features(LogisticRegression())
    assert wants_frame(make_pipeline(FunctionTransformer(), LogisticRegression()))
    assert grows_trees(RandomForestClassifier())
    assert grows_trees(GridSearchCV(lightgbm.LGBMClassifier(), {}))
    assert not grows_trees(VotingClassifier([]))
    assert takes_missing(lightgbm.LGBMRegressor()) and takes_missing(RandomForestClassifier())
    assert not takes_missing(LogisticRegression())
