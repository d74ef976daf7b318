"""The quick way to scikit-learn's own answers: the same bits, or the library itself."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import make_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC

from loopline import folding

SCALERS = [
    (),
    (StandardScaler(),),
    (StandardScaler(with_mean=False),),
    (StandardScaler(with_std=False),),
    (StandardScaler(copy=False),),
    (MinMaxScaler((-2, 5)),),
    (MaxAbsScaler(),),
    (RobustScaler(),),
    (RobustScaler(with_centering=False),),
    (SimpleImputer(), MinMaxScaler(), StandardScaler()),
]
CLASSIFIERS = [
    LogisticRegression(),
    LogisticRegression(fit_intercept=False, C=100.0),
    SGDClassifier(loss="log_loss", random_state=0),
    SGDClassifier(random_state=0),
    LinearSVC(),
    RidgeClassifier(),
    Perceptron(),
    LinearDiscriminantAnalysis(),
]
REGRESSORS = [
    LinearRegression(),
    LinearRegression(fit_intercept=False),
    Ridge(),
    Lasso(0.01),
    ElasticNet(0.01),
    SGDRegressor(random_state=0),
]


def data(width: int, classes: int) -> tuple[Any, Any]:
    """Rows of as many columns, each on a scale of its own, and classes or numbers."""
    X, y = make_classification(
        120, width, n_informative=width, n_redundant=0, n_classes=max(classes, 2),
        n_clusters_per_class=1, random_state=width,
    )  # fmt: skip
    labels = np.array(["red", "green", "blue"])[y] if classes else X @ np.arange(width) + y
    return X * 10.0 ** (np.arange(width) % 5 - 2), labels


def fitted(scalers: tuple[Any, ...], last: Any, width: int, classes: int) -> Any:
    """A fitted pipeline, or the bare estimator."""
    X, y = data(width, classes)
    steps = [clone(each) for each in (*scalers, last)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return (make_pipeline(*steps) if scalers else steps[0]).fit(X, y)


def same(found: Any, expected: Any) -> bool:
    """Whether two arrays are the same to the bit."""
    alike = (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return bool(alike and found.tobytes() == expected.tobytes())


def is_quick(way: Callable[[Any], Any]) -> bool:
    """Whether a way is not the library's own method."""
    return getattr(way, "__module__", "") == "loopline.folding"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_quick_answers_are_the_librarys(draw: st.DataObject) -> None:
    """Every bit agrees, for any known pipeline, width, batch size and magnitude."""
    classes = draw.draw(st.sampled_from([0, 2, 3]))
    last = draw.draw(st.sampled_from(CLASSIFIERS if classes else REGRESSORS))
    width = draw.draw(st.integers(2, 12))
    native = fitted(draw.draw(st.sampled_from(SCALERS)), last, width, classes)
    rng = np.random.default_rng(draw.draw(st.integers(0, 10**6)))
    X = rng.standard_normal((draw.draw(st.integers(1, 300)), width))
    X *= 10.0 ** draw.draw(st.integers(-8, 8))
    for method in ("predict", "predict_proba"):
        if hasattr(native, method):
            way = folding.quick(native, method)
            assert is_quick(way)
            given_X = X.copy()
            assert same(way(given_X), getattr(native, method)(X.copy()))
            assert same(given_X, X)


@functools.cache
def ways() -> list[tuple[Any, Callable[[Any], Any]]]:
    """Some pipelines with their quick ways, made once."""
    kinds = ((), (StandardScaler(),), (SimpleImputer(), RobustScaler()))
    natives = [fitted(scalers, LogisticRegression(), 3, 3) for scalers in kinds]
    return [(native, folding.quick(native, "predict_proba")) for native in natives]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(width=64), min_size=3, max_size=3), min_size=1, max_size=9))
def test_any_numbers(rows: list[list[float]]) -> None:
    """What the library refuses is refused in its words; the rest is the same, gaps and all."""
    for native, way in ways():
        with np.errstate(all="ignore"):
            try:
                expected = native.predict_proba(np.array(rows))
            except ValueError as error:
                with pytest.raises(ValueError, match=str(error)[:20]):
                    way(np.array(rows))
            else:
                assert same(way(np.array(rows)), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_what_is_not_finite_is_left_to_the_library(value: float) -> None:
    """A scaler that overflows, or a value that is none, raises as it always did."""
    native = fitted((MinMaxScaler((0, 1e5)),), LogisticRegression(), 3, 2)
    X = np.full((4, 3), value)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="Input X contains"):
        folding.quick(native, "predict_proba")(X)


def test_other_inputs_are_left_to_the_library() -> None:
    """Lists, other types, other layouts and other widths are answered, or refused, as ever."""
    native = fitted((StandardScaler(),), LogisticRegression(), 4, 3)
    way, X = folding.quick(native, "predict_proba"), data(4, 3)[0]
    for other in (X.tolist(), X.astype(np.float32), np.asfortranarray(X), X[::2]):
        assert same(way(other), native.predict_proba(other))
    for wrong in (X[:, :1], X[0]):
        with pytest.raises(ValueError):
            way(wrong.copy())


@pytest.mark.parametrize(
    "native",
    [
        make_pipeline(MinMaxScaler(clip=True), LogisticRegression()),
        make_pipeline(PolynomialFeatures(2), RidgeClassifier()),
        make_pipeline(Normalizer(), LogisticRegression()),
        make_pipeline(FunctionTransformer(np.cbrt), LogisticRegression()),
        make_pipeline("passthrough", LogisticRegression()),
        SVC(kernel="linear"),
        SGDClassifier(loss="modified_huber", random_state=0),
    ],
    ids=str,
)
def test_what_is_not_known_stays_as_it_is(native: Any) -> None:
    """Anything else is asked itself."""
    native = clone(native).fit(*data(4, 2))
    method = "predict_proba" if hasattr(native, "predict_proba") else "predict"
    assert not is_quick(folding.quick(native, method))


def test_subclasses_and_foreign_steps_stay_as_they_are() -> None:
    """A class of somebody else's may do anything, whatever it is derived from."""

    class Sly(LogisticRegression):
        """Knows better."""

        def predict_proba(self, X: Any) -> Any:
            return super().predict_proba(X)[:, ::-1]

    class Mine(TransformerMixin, BaseEstimator):
        """Somebody's own step."""

        scale_ = 2.0

        def fit(self, X: Any, y: Any = None) -> Mine:
            return self

        def transform(self, X: Any) -> Any:
            return X / 2

    X, y = data(4, 2)
    Mine.__name__ = "MaxAbsScaler"
    for native in (Sly(), make_pipeline(Mine(), LogisticRegression())):
        assert not is_quick(folding.quick(native.fit(X, y), "predict_proba"))


@pytest.mark.parametrize(
    "change",
    [
        lambda native: native.steps[0][1].mean_.__imul__(1 + 1e-15),
        lambda native: native.steps[-1][1].coef_.__imul__(1 + 1e-15),
        lambda native: native.steps[-1][1].intercept_.__iadd__(1e-9),
    ],
    ids=["mean", "coefficients", "intercept"],
)
def test_a_wrong_way_is_noticed(change: Callable[[Any], Any]) -> None:
    """One that differs in the last bits is not taken."""
    native, odd = (fitted((StandardScaler(),), LogisticRegression(), 4, 3) for _ in range(2))
    change(odd)
    right, wrong = (folding._short(each, "predict_proba") for each in (native, odd))
    assert right is not None and wrong is not None
    trials = list(folding._trials(4, ()))
    with np.errstate(all="ignore"):
        assert all(folding._same(right, native.predict_proba, X) for X in trials)
        assert not all(folding._same(wrong, native.predict_proba, X) for X in trials)


def test_a_library_that_works_otherwise_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version that rounds otherwise, or keeps its state elsewhere, only costs time."""
    native = fitted((StandardScaler(),), LogisticRegression(), 4, 3)
    once = LogisticRegression.predict_proba
    with monkeypatch.context() as patch:
        patch.setattr(LogisticRegression, "predict_proba", lambda s, X: once(s, X) * (1 - 1e-16))
        assert not is_quick(folding.quick(native, "predict_proba"))
    assert is_quick(folding.quick(native, "predict_proba"))
    del native.steps[0][1].with_mean
    assert not is_quick(folding.quick(native, "predict_proba"))


def test_ranges_are_tried_too() -> None:
    """The values that the data had are among those that the way is tried on."""
    first = next(folding._trials(2, [(1e6, 1e6 + 1), (-5.0, -4.0)]))
    assert (first[:, 0] >= 1e6).all() and (first[:, 1] <= -4.0).all()


@pytest.mark.parametrize("most", [None, 4])
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 6) | st.none()), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcxyz"), st.integers(0, 9) | st.none()), min_size=1),
)
def test_encoders(most: int | None, seen: list[Any], asked: list[Any]) -> None:
    """Values become the codes and indicators that the encoder gives, rare and unseen ones too."""
    known, rows = np.array(seen, dtype=object), np.array(asked, dtype=object)
    hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=most, sparse_output=False
    )
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    for made in (hot.fit(known), codes.fit(known)):
        encode = folding.encoder(made)
        assert encode is not None
        assert np.array_equal(encode(list(zip(*asked, strict=True))), made.transform(rows))


def test_an_encoder_that_does_otherwise_is_asked_itself() -> None:
    """One that drops columns, or refuses what it has not seen, has no quick way."""
    known = np.array([["a"], ["b"], ["c"]], dtype=object)
    for made in (
        OneHotEncoder(drop="first", sparse_output=False, handle_unknown="ignore"),
        OneHotEncoder(sparse_output=False),
        OrdinalEncoder(),
        StandardScaler(),
    ):
        X = known if "Encoder" in type(made).__name__ else [[1.0], [2.0]]
        assert folding.encoder(made.fit(X)) is None


@pytest.mark.parametrize("gap", [0.0, -1.0])
def test_a_parameter_that_changes_the_arithmetic_is_tried_anew(gap: float) -> None:
    """What was tried with one parameter says nothing of the same model with another."""
    X, y = data(3, 0)
    X[0, 0] = gap
    usual = make_pipeline(SimpleImputer(), LinearRegression()).fit(X, y)
    assert is_quick(folding.quick(usual, "predict"))
    other = make_pipeline(SimpleImputer(missing_values=gap), LinearRegression()).fit(X, y)
    assert same(folding.quick(other, "predict")(X), other.predict(X))
