"""Ordinary least squares that explains itself: linear, polynomial, and by formula.

The three classes share one engine: named factors (a column, a power, an expression) make terms,
terms make the columns of a design matrix, and the fit comes with the whole table of statistics.
"""

from __future__ import annotations

import ast
import html
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np

from loopline.errors import InvalidInput
from loopline.fields import listing, native
from loopline.formulas import Array, Parsed, Term, called, computed, parse, unfit

MOST_LEVELS = 1_000
_STATE = ("columns", "target", "means", "levels", "table")


def _numbers(values: Any) -> Array:
    """A column as float64 where every value that is there is a number, as objects otherwise.

    Missing values are NaN in either, the only value that is not equal to itself.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iufb":
        return array.astype(np.float64)
    plain = [math.nan if value is None else value for value in map(native, array.tolist())]
    numbers = all(isinstance(value, int | float) for value in plain)
    return np.array(plain, dtype=np.float64 if numbers else object)


class Linear:
    """Least squares on all columns; a text column becomes one indicator per value but the first.

    Rows with a missing value are left out of the fit, and a missing number is answered with the
    mean of its column. A category that training did not see counts as none of the known ones.
    """

    kind: ClassVar[str] = "linear"
    _names: ClassVar[tuple[str, ...]] = ()
    degree: int = 1

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._names}

    def set_params(self, **given: Any) -> Linear:
        """Change constructor arguments; the fit, if there is one, stays as it was."""
        for name, value in given.items():
            if name not in self._names:
                raise ValueError(f"{name!r} is not a parameter of {type(self).__name__}")
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "table_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        takes, needs = InputTags(string=True, allow_nan=True), TargetTags(required=True)
        return Tags("regressor", needs, regressor_tags=RegressorTags(), input_tags=takes)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"

    def _parsed(self, texts: Collection[str]) -> Parsed:
        """The terms to fit; `texts` are the columns that hold no numbers."""
        if type(self.degree) is not int or not 1 <= self.degree <= 20:
            raise InvalidInput.at("degree is a whole number from 1 to 20", "/parameters/degree")
        factors: dict[str, ast.expr] = {}
        for name in self.columns_:
            factors[name] = base = ast.Name(id=name)
            for power in range(2, self.degree + 1) if name not in texts else ():
                to = ast.Constant(value=power)
                factors[f"{name}^{power}"] = ast.BinOp(left=base, op=ast.Pow(), right=to)
        return Parsed(None, factors, ((), *((label,) for label in factors)))

    def fit(self, X: Any, y: Any) -> Linear:
        """Fit to a frame or array of shape (rows, columns) and the numbers to explain.

        Raises:
            InvalidInput: a column that the formula names is not there, or no row is complete.
        """
        columns = self._columns(X, fitting=True)
        self.columns_ = list(columns)
        self.target_ = str(getattr(y, "name", None) or "y")
        goal = _numbers(y)
        if goal.dtype == object:
            raise InvalidInput("least squares needs numbers to explain")
        texts = {name for name, array in columns.items() if array.dtype == object}
        self._parts = parsed = self._parsed(texts)
        unknown = [name for name in parsed.fields if name not in columns]
        if unknown:
            have = listing(self.columns_)
            raise unfit(f"there is no column {listing(unknown)}; the columns are {have}")
        columns = {name: columns[name] for name in parsed.fields}
        if hasattr(X, "columns"):
            self.columns_ = [name for name in self.columns_ if name in columns]
        whole = np.all([array == array for array in (goal, *columns.values())], axis=0)
        if not whole.any():
            raise InvalidInput("no row is without a missing value")
        columns = {name: array[whole] for name, array in columns.items()}
        self.means_ = {n: float(a.mean()) for n, a in columns.items() if a.dtype != object}
        self.levels_ = _levels(parsed, columns)
        names, matrix = self._design(columns, int(whole.sum()))
        wild = [name for i, name in enumerate(names) if not np.isfinite(matrix[:, i]).all()]
        if wild:
            raise unfit(f"{listing(wild)} is not a finite number in every row")
        self.table_ = statistics(names, matrix, goal[whole])
        self.table_["target"] = parsed.target or self.target_
        self.beta_ = np.array([row["coefficient"] for row in self.table_["coefficients"]])
        return self

    def predict(self, X: Any) -> Array:
        """Answer a frame or array of shape (rows, columns) with float64 of shape (rows,)."""
        if type(self) is Linear and isinstance(X, np.ndarray) and not self.levels_:
            quick: Array = X @ self.beta_[1:] + self.beta_[0]
            if not np.isnan(quick).any():
                return quick
        columns = self._columns(X)
        for name in columns.keys() & self.means_.keys():
            given = columns[name]
            columns[name] = np.where(given == given, given, self.means_[name])
        answer: Array = self._design(columns, len(X))[1] @ self.beta_
        return answer

    def score(self, X: Any, y: Any) -> float:
        """The coefficient of determination, R squared, on these rows."""
        goal = np.asarray(y, dtype=np.float64)
        spread = float(((goal - goal.mean()) ** 2).sum())
        left = float(((goal - self.predict(X)) ** 2).sum())
        return 1.0 - left / spread if spread else float(left == 0.0)

    def report(self) -> dict[str, Any]:
        """The table of the fit: {"html": text, "json": the same numbers}."""
        title = f"{type(self).__name__}: {getattr(self, 'formula', self.table_['target'])}"
        return {"html": as_html(title, self.table_), "json": self.table_}

    @property
    def coef_(self) -> Array:
        """The coefficients, without the intercept, in the order of the table."""
        at = [i for i, row in enumerate(self.table_["coefficients"]) if row["name"] != "Intercept"]
        return self.beta_[at]

    @property
    def intercept_(self) -> float:
        """The intercept, 0 where the formula has none."""
        rows = self.table_["coefficients"]
        return next((row["coefficient"] for row in rows if row["name"] == "Intercept"), 0.0)

    def state(self) -> dict[str, Any]:
        """The whole fit (or only the arguments before it) as plain JSON-able data."""
        plain: dict[str, Any] = {"class": type(self).__name__, "parameters": self.get_params()}
        if hasattr(self, "table_"):
            plain |= {name: getattr(self, f"{name}_") for name in _STATE}
        return plain

    def _columns(self, X: Any, fitting: bool = False) -> dict[str, Array]:
        if hasattr(X, "columns"):
            return {str(name): _numbers(X[name]) for name in X.columns}
        matrix = np.asarray(X)
        names = [f"x{i + 1}" for i in range(matrix.shape[1])] if fitting else self.columns_
        return {name: _numbers(matrix[:, i]) for i, name in enumerate(names)}

    def _design(self, columns: Mapping[str, Array], rows: int) -> tuple[list[str], Array]:
        names, made = [], []
        for term, reduced in _codings(self._parts.terms, self.levels_):
            blocks = [self._block(label, columns, label in reduced) for label in term]
            # The first factor varies fastest, as readers of such tables expect.
            for combination in product(*reversed(blocks)):
                parts = combination[::-1]
                names.append(":".join(name for name, _ in parts) or "Intercept")
                made.append(math.prod((array for _, array in parts), start=np.ones(rows)))
        return names, np.column_stack(made) if made else np.empty((rows, 0))

    def _block(
        self, label: str, columns: Mapping[str, Array], reduced: bool
    ) -> list[tuple[str, Array]]:
        """The named columns of one factor."""
        node = self._parts.factors[label]
        try:
            with np.errstate(all="ignore"):
                values = computed(node, columns)
        except TypeError as error:
            raise unfit(f"{label} can't be computed: {error}") from error
        if label not in self.levels_:
            array = _numbers(values)
            if array.dtype == object:
                raise unfit(f"{label} holds text where the fit needs numbers")
            return [(label, array)]
        levels = self.levels_[label]
        mark = "T." if reduced else ""
        return [
            (f"{label}[{mark}{_shown(level)}]", np.array([each == level for each in values], float))
            for level in (levels[1:] if reduced else levels)
        ]


class Polynomial(Linear):
    """Least squares on the powers of every column up to a degree, without their products."""

    kind = "polynomial"
    _names = ("degree",)

    def __init__(self, degree: int = 3) -> None:
        self.degree = degree


class Formula(Linear):
    """Least squares by a formula such as `Sales ~ TV + Radio`; see `parse` for what it may hold."""

    kind = "formula"
    _names = ("formula",)

    def __init__(self, formula: str) -> None:
        self.formula = formula
        parse(formula)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the formula reads."""
        return parse(self.formula).fields

    @property
    def target(self) -> str | None:
        """The column that the formula explains, None where it names none."""
        return parse(self.formula).target

    def _parsed(self, texts: Collection[str]) -> Parsed:
        return parse(self.formula)


def restore(state: Mapping[str, Any]) -> Linear:
    """Make a model again from what its `state` returned."""
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (Linear, Polynomial, Formula)}
    made: Linear = kinds[state["class"]](**state["parameters"])
    if "table" in state:
        for name in _STATE:
            setattr(made, f"{name}_", state[name])
        made.beta_ = np.array([row["coefficient"] for row in made.table_["coefficients"]])
        made._parts = made._parsed(made.levels_)
    return made


def _levels(parsed: Parsed, columns: Mapping[str, Array]) -> dict[str, list[Any]]:
    """The sorted values of each factor that is a category."""
    levels: dict[str, list[Any]] = {}
    for label, node in parsed.factors.items():
        if called(node) == "C" or (isinstance(node, ast.Name) and columns[node.id].dtype == object):
            values = {native(value) for value in computed(node, columns)}
            if len(values) > MOST_LEVELS:
                raise unfit(f"{label} has more than {MOST_LEVELS} different values")
            levels[label] = sorted(values, key=lambda value: (isinstance(value, str), value))
    return levels


def _codings(
    terms: Sequence[Term], levels: Mapping[str, list[Any]]
) -> Iterator[tuple[Term, set[str]]]:
    """Order the terms, and say which categories of each give up their first level.

    Terms of categories alone come first, then those of each set of numbers, each by degree. A
    category gives up a level where the columns before it span what is left of its term.
    """
    numbers = {term: frozenset(label for label in term if label not in levels) for term in terms}
    groups = dict.fromkeys([frozenset(), *numbers.values()])
    spanned: set[frozenset[str]] = set()
    for group in groups:
        for term in sorted((t for t in terms if numbers[t] == group), key=len):
            reduced = set()
            for label in (each for each in term if each in levels):
                rest = frozenset(term) - {label}
                if rest in spanned:
                    reduced.add(label)
                spanned.add(rest)
            spanned.add(frozenset(term))
            yield term, reduced


def statistics(names: Sequence[str], X: Array, y: Array) -> dict[str, Any]:
    """Fit `y` of shape (n,) on `X` of shape (n, k) and compute everything a summary shows.

    Columns that depend on others share their effect (the least-norm solution); no input makes
    this fail. Figures that do not exist for these data are None.
    """
    with np.errstate(all="ignore"):
        beta, inverse, rank = _solved(X, y)
        rest = y - X @ beta
        figures = _figures(X, y, rest, rank)
        rows = _coefficients(names, beta, inverse, figures)
        return {**_finite(figures | _diagnostics(rest)), "coefficients": rows}


def _solved(X: Array, y: Array) -> tuple[Array, Array, int]:
    """Coefficients, the inverse of X'X (both by pseudo-inverse), and the rank."""
    scale = np.sqrt((X**2).sum(axis=0))
    scale[scale == 0.0] = 1.0
    u, s, vt = np.linalg.svd(X / scale, full_matrices=False)
    kept = s > (s.max(initial=0.0) * max(X.shape) * np.finfo(float).eps)
    half = (vt[kept].T / s[kept]) / scale[:, None]
    return half @ (u[:, kept].T @ y), half @ half.T, int(kept.sum())


def _figures(X: Array, y: Array, rest: Array, rank: int) -> dict[str, Any]:
    from scipy.special import fdtrc

    n = len(y)
    ones = np.column_stack([np.ones(n), X])
    constant = int(np.linalg.matrix_rank(ones / np.abs(ones).max(axis=0).clip(1e-300)) == rank)
    left = float(rest @ rest)
    total = float(((y - y.mean() * constant) ** 2).sum())
    model, free = rank - constant, n - rank
    explained = 1.0 - left / total if total else math.nan
    f = ((total - left) / model) / (left / free) if model and free and left else math.nan
    likelihood = -n / 2 * (math.log(2 * math.pi * left / n) + 1) if left > 0 else math.nan
    singular = np.linalg.svd(X, compute_uv=False)
    return {
        "n": n,
        "df_model": model,
        "df_residual": free,
        "r_squared": explained,
        "adjusted_r_squared": 1 - (n - constant) / free * (1 - explained) if free else math.nan,
        "f_statistic": f,
        "prob_f": float(fdtrc(model, free, f)),
        "log_likelihood": likelihood,
        "aic": 2 * rank - 2 * likelihood,
        "bic": math.log(n) * rank - 2 * likelihood,
        "residual_variance": left / free if free else math.nan,
        "condition_number": float(singular[0] / singular[-1]) if len(singular) else math.nan,
    }


def _coefficients(
    names: Sequence[str], beta: Array, inverse: Array, figures: Mapping[str, Any]
) -> list[dict[str, Any]]:
    from scipy.special import stdtr, stdtrit

    free = figures["df_residual"]
    error = np.sqrt(np.diag(inverse) * figures["residual_variance"])
    t = beta / error
    p = 2 * stdtr(free, -np.abs(t)) if free else t * math.nan
    reach = error * (stdtrit(free, 0.975) if free else math.nan)
    columns = np.column_stack([beta, error, t, p, beta - reach, beta + reach]).tolist()
    keys = ("coefficient", "std_err", "t", "p", "low", "high")
    return [
        {"name": name, **_finite(dict(zip(keys, row, strict=True)))}
        for name, row in zip(names, columns, strict=True)
    ]


def _diagnostics(rest: Array) -> dict[str, Any]:
    """What the residuals look like: normality, skew, kurtosis, correlation in their order."""
    from scipy import stats

    with warnings.catch_warnings():
        # Few or equal residuals make SciPy warn and answer NaN, which is then shown as absent.
        warnings.simplefilter("ignore")
        skew, kurtosis = float(stats.skew(rest)), float(stats.kurtosis(rest)) + 3
        omnibus, chance = stats.normaltest(rest) if len(rest) >= 8 else (math.nan, math.nan)
    jarque_bera = len(rest) / 6 * (skew**2 + (kurtosis - 3) ** 2 / 4)
    squares = float((rest**2).sum())
    return {
        "omnibus": float(omnibus),
        "prob_omnibus": float(chance),
        "skew": skew,
        "kurtosis": kurtosis,
        "durbin_watson": float((np.diff(rest) ** 2).sum()) / squares if squares else math.nan,
        "jarque_bera": jarque_bera,
        "prob_jarque_bera": math.exp(-jarque_bera / 2),
    }


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


# What the report says of a fit, two figures in a line.
_SHOWN = """\
Dependent variable: target, Observations: n, Df model: df_model, Df residuals: df_residual,
R-squared: r_squared, Adj. R-squared: adjusted_r_squared, F-statistic: f_statistic,
Prob (F-statistic): prob_f, AIC: aic, BIC: bic, Log-likelihood: log_likelihood,
Condition number: condition_number, Omnibus: omnibus, Prob (Omnibus): prob_omnibus,
Jarque-Bera (JB): jarque_bera, Prob (JB): prob_jarque_bera, Skew: skew, Kurtosis: kurtosis,
Durbin-Watson: durbin_watson, Residual variance: residual_variance"""


def as_html(title: str, table: Mapping[str, Any]) -> str:
    """The table of a fit as HTML that needs nothing else; every text in it is escaped."""
    head = ["", "coef", "std err", "t", "P>|t|", "[0.025", "0.975]"]
    rows = [head, *(list(row.values()) for row in table["coefficients"])]
    shown = (each.split(": ") for each in re.split(r",\s", _SHOWN))
    cells = [(name, table.get(key)) for name, key in shown]
    pairs = [[*left, *right] for left, right in zip(cells[::2], cells[1::2], strict=True)]
    body = "".join(map(_html_table, (pairs[:6], rows, pairs[6:])))
    return f'<div class="ols"><h2>{html.escape(title)}</h2>{body}</div>'


def _html_table(rows: Sequence[Sequence[Any]]) -> str:
    cells = ("".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
