"""The built-in least squares against known numbers and against statsmodels."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loopline import builtin
from loopline.builtin import Formula, Linear, Polynomial
from loopline.errors import InvalidInput
from loopline.formulas import parse
from loopline.model import adopt
from loopline.schema import Schema

ADVERTISING = Path(__file__).parents[3] / "shared" / "data" / "Advertising.csv"


@pytest.fixture
def advertising() -> pd.DataFrame:
    """The 200 markets of the advertising data."""
    if not ADVERTISING.exists():
        pytest.skip(f"needs {ADVERTISING.name} in ../shared/data")
    return pd.read_csv(ADVERTISING, index_col=0)


@pytest.fixture
def markets() -> pd.DataFrame:
    """Made-up data with numbers and categories."""
    rng = np.random.default_rng(11)
    frame = pd.DataFrame(rng.uniform(1, 9, (90, 3)), columns=["x", "z", "w w"])
    frame["g"] = rng.choice(["lo", "mid", "hi"], 90)
    frame["h"] = rng.choice(["u", "v"], 90)
    frame["y"] = frame["x"] - 2 * frame["z"] + 3 * (frame["g"] == "hi") + rng.normal(size=90)
    return frame


def table(frame: pd.DataFrame, formula: str, target: str) -> dict[str, Any]:
    """The figures of a fit, with the coefficients by name."""
    model = Formula(formula).fit(frame.drop(columns=target), frame[target])
    report = model.report()["json"]
    return {**report, **{row["name"]: row for row in report["coefficients"]}}


def test_advertising_by_formula(advertising: pd.DataFrame) -> None:
    """Sales by TV gives the well-known numbers."""
    figures = table(advertising, "Sales ~ TV", "Sales")
    expected = {
        "r_squared": 0.611875050850071,
        "f_statistic": 312.1449943727128,
        "log_likelihood": -519.0456637681739,
        "aic": 1042.0913275363478,
        "condition_number": 338.11962418237727,
        "n": 200,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert figures["Intercept"]["coefficient"] == pytest.approx(7.032593549127698, rel=1e-9)
    assert figures["TV"]["coefficient"] == pytest.approx(0.047536640433019764, rel=1e-9)


def test_advertising_after_one_more_row(advertising: pd.DataFrame) -> None:
    """The 201st row moves the numbers as it should."""
    row = pd.DataFrame([[3.14, 34.6, 12.2, 8.4]], columns=advertising.columns)
    figures = table(pd.concat([advertising, row], ignore_index=True), "Sales ~ TV", "Sales")
    assert figures["Intercept"]["coefficient"] == pytest.approx(7.055812812861933, rel=1e-9)
    assert figures["TV"]["coefficient"] == pytest.approx(0.04741937629505706, rel=1e-9)
    assert figures["r_squared"] == pytest.approx(0.6138484970699256, rel=1e-9)


def test_advertising_through_the_face(advertising: pd.DataFrame) -> None:
    """Adopted and given a schema, the formula answers a row with only the field it reads."""
    model = adopt(Formula("Sales ~ TV"))
    whole = Schema.infer(advertising, "Sales")
    schema = Schema.infer(advertising, "Sales", used=model.fields(whole))
    assert [field.name for field in schema.fields if field.used] == ["TV"]
    pairs = schema.labelled(advertising.to_dict("records"))
    fitted = model.fit(schema, [row for row, _ in pairs], [label for _, label in pairs])
    (answer,) = fitted.answer(schema, [schema.row({"TV": 50})]).outputs
    assert answer == pytest.approx(9.409425570778684, rel=1e-9)
    report = fitted.report()
    assert report is not None
    assert report["json"]["target"] == "Sales"
    assert "Durbin-Watson" in report["html"]


def test_advertising_on_all_columns(advertising: pd.DataFrame) -> None:
    """The multivariate fit gives the well-known numbers."""
    model = Linear().fit(advertising.drop(columns="Sales"), advertising["Sales"])
    assert model.intercept_ == pytest.approx(2.938889, abs=5e-7)
    assert model.coef_ == pytest.approx([0.045765, 0.188530, -0.001037], abs=5e-7)
    assert model.table_["r_squared"] == pytest.approx(0.897211, abs=5e-7)


def test_cubic_is_recovered() -> None:
    """Degree 3 on points of a cubic gives back its coefficients."""
    x = np.linspace(-4, 4, 60)
    y = 3 + 0.4 * x - 3 * x**2 + 2 * x**3
    model = Polynomial(degree=3).fit(x[:, None], y)
    assert model.beta_ == pytest.approx([3, 0.4, -3, 2], rel=1e-9)
    assert model.table_["r_squared"] == pytest.approx(1)
    assert model.score(x[:, None], y) == pytest.approx(1)


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x",
        "y ~ x + z",
        "y ~ x - 1",
        "y ~ 0 + x",
        "y ~ x*z",
        "y ~ x:z",
        "y ~ x + I(x**2) + np.log(z)",
        "y ~ I(x + 2*z) + I(-x/z)",
        'y ~ x + Q("w w")',
        "y ~ (x + z)**2",
        "y ~ x/g",
        "y ~ C(g)",
        "y ~ g - 1",
        "y ~ g + h",
        "y ~ 0 + g + h",
        "y ~ g*h + x",
        "y ~ g*x",
        "y ~ g:x",
        "y ~ x + z - z",
        "y ~ 1",
    ],
)
def test_every_figure_is_that_of_statsmodels(markets: pd.DataFrame, formula: str) -> None:
    """Names, coefficients and every figure of the table agree to nine digits."""
    smf = pytest.importorskip("statsmodels.formula.api", reason="needs statsmodels")
    from statsmodels.stats.stattools import durbin_watson, jarque_bera, omni_normtest

    theirs = smf.ols(formula, markets).fit()
    ours = table(markets, formula, "y")
    normal, jarque = omni_normtest(theirs.resid), jarque_bera(theirs.resid)
    expected = {
        "n": theirs.nobs,
        "df_model": theirs.df_model,
        "df_residual": theirs.df_resid,
        "r_squared": theirs.rsquared,
        "adjusted_r_squared": theirs.rsquared_adj,
        "log_likelihood": theirs.llf,
        "aic": theirs.aic,
        "bic": theirs.bic,
        "omnibus": normal.statistic,
        "prob_omnibus": normal.pvalue,
        "jarque_bera": jarque[0],
        "prob_jarque_bera": jarque[1],
        "skew": jarque[2],
        "kurtosis": jarque[3],
        "durbin_watson": durbin_watson(theirs.resid),
        "condition_number": theirs.condition_number,
    }
    if formula != "y ~ 1":
        expected |= {"f_statistic": theirs.fvalue, "prob_f": theirs.f_pvalue}
    assert {n: ours[n] for n in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    limits = theirs.conf_int()
    assert [row["name"] for row in ours["coefficients"]] == [
        name.replace('"', "'") for name in theirs.params.index
    ]
    for row in ours["coefficients"]:
        name = row["name"].replace("'", '"')
        assert [row[key] for key in ("coefficient", "std_err", "t", "p", "low", "high")] == (
            pytest.approx(
                [
                    theirs.params[name],
                    theirs.bse[name],
                    theirs.tvalues[name],
                    theirs.pvalues[name],
                    *limits.loc[name],
                ],
                rel=1e-9,
            )
        )


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("y ~ nope", "nope"),
        ("y ~ x +", "can't be read"),
        ("~", "can't be read"),
        ("log(y) ~ x", "not a column"),
        ("y ~ __import__('os').system('true')", "not known"),
        ("y ~ x.__class__", "no meaning"),
        ("y ~ eval(x)", "eval is not known"),
        ("y ~ [x for x in z]", "no meaning"),
        ("y ~ x[0]", "no meaning"),
        ("y ~ (lambda: x)()", "can't be read"),
        ("y ~ I(9**9**9*x)", "not a finite number"),
        ("y ~ log(x - 100)", "can't be read|not a finite number|names no column"),
        ("y ~ np.log(g)", "can't be computed"),
        ("y ~ " + "(" * 500 + "x" + ")" * 500, "can't be read"),
        ("y ~ " + "*".join(f"x{i}" for i in range(40)), "terms"),
        ("y ~ 'x'", "no meaning"),
        ("y ~ 7", "names no column"),
        ("y ~ x**0.5", r"I\(x\*\*2\)"),
    ],
)
def test_what_is_no_formula(markets: pd.DataFrame, formula: str, told: str) -> None:
    """A formula that can't be read, or reads what is not there, is refused with the reason."""
    with pytest.raises(InvalidInput, match=told):
        Formula(formula).fit(markets.drop(columns="y"), markets["y"])


@given(st.text("xyzgI()C*+-:/~ 12^.'\"[]\n", max_size=30))
def test_any_text_is_a_formula_or_is_refused(text: str) -> None:
    """Nothing but `InvalidInput` ever comes out of reading a formula."""
    try:
        parsed = parse(text)
    except InvalidInput:
        return
    assert all(field in text for field in parsed.fields)


def test_fields_and_target_are_known_before_the_fit() -> None:
    """What a formula reads marks the other fields as unused."""
    model = Formula('Sales ~ TV + C(region):Radio + I(TV**2) + Q("a b")')
    assert model.fields == ("TV", "region", "Radio", "a b")
    assert model.target == "Sales"
    assert Formula("x + z").target is None


def test_the_target_is_checked(markets: pd.DataFrame) -> None:
    """A formula about another column than the model's target is refused."""
    with pytest.raises(InvalidInput, match="'y', but the target is 'x'"):
        adopt(Formula("y ~ z")).fields(Schema.infer(markets, "x"))


def test_an_unknown_column_is_named_before_training(markets: pd.DataFrame) -> None:
    """Registering a formula over data without one of its columns says which."""
    with pytest.raises(InvalidInput, match="nope"):
        adopt(Formula("y ~ x + nope")).fields(Schema.infer(markets, "y"))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_no_data_make_it_fail(rows: int, width: int, seed: int) -> None:
    """Few rows, constant and repeated columns give a fit, finite answers and a JSON-able table."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-1, 2, (rows, width)).astype(float)
    y = rng.integers(-1, 2, rows).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Linear().fit(X, y)
    assert np.isfinite(model.predict(X)).all()
    json.dumps(model.table_, allow_nan=False)


def test_collinear_columns_share_their_effect() -> None:
    """A column given twice changes no answer."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 1)), rng.normal(size=30)
    once, twice = Linear().fit(x, y), Linear().fit(np.hstack([x, x]), y)
    assert twice.predict(np.hstack([x, x])) == pytest.approx(once.predict(x), rel=1e-9)
    assert twice.coef_ == pytest.approx([once.coef_[0] / 2] * 2)


def test_gaps_and_unseen_categories(markets: pd.DataFrame) -> None:
    """Rows with gaps are left out of the fit, and any row is answered."""
    markets.loc[3, "x"] = np.nan
    markets.loc[4, "g"] = None
    model = Linear().fit(markets.drop(columns="y"), markets["y"])
    assert model.table_["n"] == 88
    rows = markets.drop(columns="y").head(2).copy()
    rows.loc[0, "g"] = "never seen"
    rows.loc[1, "x"] = np.nan
    assert np.isfinite(model.predict(rows)).all()


def test_report_is_escaped(markets: pd.DataFrame) -> None:
    """Names from the data cannot become markup."""
    markets = markets.rename(columns={"x": "<script>"})
    html = Linear().fit(markets.drop(columns="y"), markets["y"]).report()["html"]
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


@pytest.mark.parametrize("model", [Linear(), Polynomial(2), Formula("y ~ C(g)*x + sqrt(z)")])
def test_state_is_the_whole_fit(markets: pd.DataFrame, model: Linear) -> None:
    """What JSON keeps answers to the last bit, frame or not."""
    X = markets.drop(columns="y")
    model = clone(model, safe=False).fit(X, markets["y"])
    again = builtin.restore(json.loads(json.dumps(model.state(), allow_nan=False)))
    assert (again.predict(X) == model.predict(X)).all()
    assert again.report() == model.report()
    assert again.get_params() == model.get_params()


def test_it_works_inside_scikit_learn(markets: pd.DataFrame) -> None:
    """Pipelines, clones and cross-validation take it as one of theirs."""
    X, y = markets[["x", "z"]], markets["y"]
    pipeline = make_pipeline(StandardScaler(), Polynomial(2))
    assert cross_val_score(pipeline, X, y, cv=3).shape == (3,)
    assert clone(pipeline).set_params(polynomial__degree=4)[-1].degree == 4


@pytest.mark.parametrize("degree", [0, 21, 2.5, True])
def test_degree_is_checked(degree: Any) -> None:
    """A degree that makes no sense is refused by name."""
    with pytest.raises(InvalidInput) as caught:
        Polynomial(degree).fit(np.ones((3, 1)), np.ones(3))
    assert [field.pointer for field in caught.value.fields] == ["/parameters/degree"]


def test_text_cannot_be_explained(markets: pd.DataFrame) -> None:
    """A target that is text is refused."""
    with pytest.raises(InvalidInput, match="numbers to explain"):
        Linear().fit(markets[["x"]], markets["g"])
