"""The quick way to the very answer that scikit-learn gives, for scalers and linear models.

The library checks its input at every step, which costs ten times what a small model's arithmetic
does. Here the same NumPy calls are made in the same order without the checks. Whether the bits
are the same is tried when the way is made; where one differs, the library's own method is kept.
The calls depend on a model's parameters and on the shapes and types of what was fitted, not on the
fitted numbers, so a later version of a model whose way was tried thoroughly is tried on a few rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from loopline.natives import home_of, is_a

Array = np.ndarray[Any, Any]
Call = Callable[[Any], Any]


def _filled(X: Array, by: Array, out: Array | None = None) -> Array:
    return np.where(np.isnan(X), by, X)


_SCALERS: dict[str, Callable[[Any], list[tuple[Any, Any]]]] = {
    "StandardScaler": lambda s: [(np.subtract, s.with_mean and s.mean_), (np.divide, s.scale_)],
    "RobustScaler": lambda s: [(np.subtract, s.center_), (np.divide, s.scale_)],
    "MinMaxScaler": lambda s: [(np.multiply, s.scale_), (np.add, s.min_)],
    "MaxAbsScaler": lambda s: [(np.divide, s.scale_)],
    "SimpleImputer": lambda s: [(_filled, s.statistics_)],
}
# What all linear models of scikit-learn's are made from; SVC, whose sums go another way, is not.
_tried: set[Any] = set()
_LINEAR = ("LinearClassifierMixin", "LinearModel", "BaseSGDRegressor")


def quick(native: Any, method: str, ranges: Sequence[tuple[float, float]] = ()) -> Call:
    """A method of a fitted model, or a function that gives bit for bit the same in less time.

    The model is not changed, and must not change afterwards. The ranges say where the values of
    each column usually lie, to try it there, too.
    """
    slow: Call = getattr(native, method)
    try:
        short = _short(native, method)
        with np.errstate(all="ignore"):
            trials = _trials(native.n_features_in_, ranges)
            if short is None:
                return slow
            form = (method, _form(native))
            most = 2 if form in _tried else None
            if not all(_same(short, slow, X) for X in islice(trials, most)):
                return slow
            _tried.add(form)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return slow

    def ask(X: Any) -> Any:
        found = short(X)
        return slow(X) if found is None else found

    return ask


def _short(native: Any, method: str) -> Call | None:
    """The same arithmetic without the checks; it gives None where the library has to be asked."""
    steps = [step for _, step in native.steps] if is_a(native, "Pipeline") else [native]
    known = all(home_of(each).startswith("sklearn.") for each in (native, *steps))
    last = None if method == "transform" else steps.pop()
    clipped = any(getattr(step, "clip", False) for step in steps)
    strange = last is not None and not is_a(last, *_LINEAR)
    if not known or clipped or strange or hasattr(native, "feature_names_in_"):
        return None
    every = [each for step in steps for each in _SCALERS[type(step).__name__](step)]
    scaling = [(change, by) for change, by in every if isinstance(by, np.ndarray)]
    finish, shape = _finish(last, method), (native.n_features_in_,)

    def short(X: Any) -> Any:
        if type(X) is not np.ndarray or X.dtype != np.float64 or X.shape[1:] != shape:
            return None
        made = X
        for change, by in scaling:
            made = change(made, by, None if made is X else made)
        flat = made.reshape(-1)
        # The library refuses NaN and infinities.
        sound = X.flags.c_contiguous and np.isfinite(flat).all()
        return finish(made) if sound else None

    return short


def _finish(last: Any, method: str) -> Call:
    """What a linear model makes of scaled rows, for one of its methods."""
    if last is None:
        return np.array
    from scipy.special import expit

    coefficients, intercept = last.coef_.T, last.intercept_
    classes: Any = getattr(last, "classes_", None)
    apart = is_a(last, "SGDClassifier")

    def scores(X: Array) -> Array:
        found: Array = X @ coefficients + intercept
        return found.reshape(-1) if found.ndim > 1 and found.shape[1] == 1 else found

    def named(X: Array) -> Any:
        found = scores(X)
        best = (found > 0).astype(np.intp) if found.ndim == 1 else found.argmax(axis=1)
        return classes.take(best, axis=0)

    def chances(X: Array) -> Array | None:
        found = scores(X)
        if found.ndim == 1:
            both = np.empty((len(found), 2))
            np.subtract(1, expit(found, both[:, 1]), both[:, 0])
            return both
        if apart:
            expit(found, found)
        else:
            found -= np.maximum.reduce(found, axis=1, keepdims=True)
            np.exp(found, found)
        total = np.add.reduce(found, axis=1, keepdims=True)
        return np.divide(found, total, found) if total.all() else None

    if method == "predict":
        return scores if classes is None else named
    return chances


def encoder(made: Any) -> Call | None:
    """An encoder's `transform` as a function of columns of values, None where it is not the same.

    A dictionary knows the code of each value, or the column in which it shows as one.
    """
    hot = is_a(made, "OneHotEncoder")
    if getattr(made, "drop", None) is not None or not (hot or is_a(made, "OrdinalEncoder")):
        return None
    tables: list[tuple[dict[Any, int], Any]] = []
    end = 0
    rare = getattr(made, "infrequent_categories_", None) or [None] * len(made.categories_)
    for values, few in zip(made.categories_, rare, strict=True):
        shared = [] if few is None else few.tolist()
        alone = [value for value in values.tolist() if value not in shared]
        table = {value: i for i, value in enumerate(alone, end if hot else 0)}
        end += len(alone)
        # What is in no column shows in one after the last, which is cut off.
        other = end if shared else -1 if hot else made.unknown_value
        tables.append((table | dict.fromkeys(shared, end), other))
        end += bool(shared)

    def encode(columns: Sequence[Sequence[Any]]) -> Array:
        both = zip(tables, columns, strict=True)
        found = np.array([[known.get(v, o) for v in column] for (known, o), column in both])
        if not hot:
            return found.T.astype(np.float64)
        shown = np.zeros((found.shape[1], end + 1))
        shown[np.arange(found.shape[1]), found] = 1.0
        return shown[:, :-1]

    longest = 1 + max(len(table) for table, _ in tables)
    trial = [([*table, "\0"] * longest)[:longest] for table, _ in tables]
    try:
        expected = made.transform(np.array(list(zip(*trial, strict=True)), dtype=object))
        return encode if np.array_equal(encode(trial), expected) else None
    except (TypeError, ValueError):
        return None


def _form(native: Any, fitted: bool = False) -> Any:
    """What decides which arithmetic a model does: all but the numbers that it was fitted to."""
    if hasattr(native, "get_params"):
        known = vars(native).items()
        return (type(native), *((name, _form(each, name.endswith("_"))) for name, each in known))
    if isinstance(native, list | tuple):
        return tuple(_form(each, fitted) for each in native)
    if fitted and isinstance(native, np.ndarray):
        return native.dtype.str, native.shape, native.strides
    return type(native) if fitted and not isinstance(native, bool | str) else repr(native)


def _same(short: Call, slow: Call, X: Array) -> bool:
    """Whether two functions give the same bits, or the quick one leaves it to the other."""
    found = short(X)
    if found is None:
        return True
    # A scaler may have been told to work in place.
    expected = slow(X.copy())
    alike: bool = (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return alike and found.tobytes() == expected.tobytes()


def _trials(width: int, ranges: Sequence[tuple[float, float]]) -> Iterator[Array]:
    """Rows to try a way on: usual ones, large and small ones, gaps, in batches of many sizes."""
    rng = np.random.default_rng(0)
    low, high = np.array(ranges).T if len(ranges) == width else (0.0, 1.0)
    for count in (1, 2, 5, 32, 130):
        spread = rng.standard_normal((count, width))
        yield low + (high - low) * rng.random((count, width))
        yield spread * 10.0 ** rng.integers(-4, 4, (count, 1))
    for extreme in (0.0, -0.0, 1e-308, 1e150, -1e308, math.nan, math.inf):
        yield np.where(np.arange(2 * width).reshape(2, width) % 2, extreme, 1.0)
