"""Adopting models of every kind: what is seen in them, what they are handed, what they answer."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightgbm
import msgspec
import numpy as np
import pandas as pd
import pytest
import sklearn.linear_model
import statsmodels.api as sm
import statsmodels.formula.api as smf
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, dummy, linear_model, multiclass, preprocessing, tree
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from loopline.artifacts import Keys, load, save
from loopline.backends.files import FileBlobs
from loopline.builtin import Formula, Linear, Polynomial
from loopline.errors import InvalidInput, MissingExtra, ModelFailed, NotReady, WrongState
from loopline.fields import Field, Output
from loopline.model import Adopted, Model, adopt, estimator
from loopline.natives import booster_of
from loopline.schema import Schema
from tests.tables import plain_array, plain_frame

ROWS = 80
NUMERIC = Schema(
    fields=(Field(name="a", kind="number"), Field(name="b", kind="number")),
    output=Output(name="y", kind="number"),
)


def classes(*labels: Any) -> Schema:
    """A numeric schema with these classes."""
    return Schema(
        fields=NUMERIC.fields, output=Output(name="y", kind="category", categories=labels)
    )


def points() -> list[tuple[float, float]]:
    """Rows whose first field grows."""
    return [(float(i), float(i * 7 % 11)) for i in range(ROWS)]


def labels_of(*labels: Any) -> list[Any]:
    """As many labels as there are points, in equal runs."""
    return [labels[i * len(labels) // ROWS] for i in range(ROWS)]


def last_of(model: Adopted) -> Any:
    """The estimator at the end of a model's pipeline."""
    return model.native.steps[-1][1]


class Recorder:
    """A plain class that remembers what it was handed."""

    def __init__(self, inputs: str | None = None) -> None:
        if inputs:
            self.inputs = inputs

    def fit(self, X: Any, y: Any) -> None:
        self.seen_ = X

    def predict(self, X: Any) -> list[float]:
        self.seen_ = X
        return [0.0] * len(X)


class Answering:
    """A model that answers whatever it was told to."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def predict(self, X: Any) -> Any:
        return self.answer(X)


class Point(msgspec.Struct):
    """A typed row."""

    a: float
    b: float = 1.0


class Pair(NamedTuple):
    """The same as a named tuple."""

    a: float
    b: float


@dataclasses.dataclass
class Said:
    """A record with one field, as models of that manner answer with."""

    total: float


class Hosted:
    """An object in the manner of ml-base."""

    display_name = "Sum of Two"
    qualified_name = "sum_of_two"
    description = "Adds two numbers."
    major_version = 1
    minor_version = 0
    input_schema: Any = Point
    output_schema: Any = Said

    def predict(self, data: dict[str, float]) -> Any:
        return Said(total=np.float64(data["a"] + data["b"]))


class Pydantic:
    """What pydantic's models look like from outside."""

    def __init__(self, **data: Any) -> None:
        self.data = data

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        number = {"type": "number"}
        return {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}

    @classmethod
    def model_validate(cls, data: dict[str, Any]) -> Pydantic:
        return cls(**data)

    def model_dump(self) -> dict[str, Any]:
        return self.data


class HostedRecord(Hosted):
    """The same with records of pydantic's in and out."""

    input_schema = Pydantic
    output_schema = Pydantic

    def predict(self, data: Any) -> Any:
        return Pydantic(total=data.data["a"] + data.data["b"])


class SchemaPackage:
    """What the `schema` package's declarations look like from outside."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def json_schema(self, id: str) -> dict[str, Any]:
        number = {"type": "number"}
        return {"type": "object", "properties": dict.fromkeys(self.names, number)}


class TestSeeing:
    """Kind, task, capabilities and the rest, found without asking."""

    @pytest.mark.parametrize(
        ("obj", "kind", "task", "able"),
        [
            (LinearRegression(), "sklearn", "regression", {"fit", "score"}),
            (LogisticRegression(), "sklearn", "classification", {"fit", "score", "predict_proba"}),
            (LinearSVC(), "sklearn", "classification", {"fit", "score"}),
            (
                SGDClassifier(loss="log_loss"),
                "sklearn",
                "classification",
                {"fit", "learn", "score", "predict_proba"},
            ),
            (lightgbm.LGBMRegressor(), "lightgbm", "regression", {"fit", "score"}),
            (
                lightgbm.LGBMClassifier(),
                "lightgbm",
                "classification",
                {"fit", "score", "predict_proba"},
            ),
            (
                linear_model.LogisticRegression(),
                "river",
                "classification",
                {"fit", "learn", "predict_proba"},
            ),
            (
                compose.Pipeline(preprocessing.StandardScaler(), linear_model.LinearRegression()),
                "river",
                "regression",
                {"fit", "learn"},
            ),
            (Hosted(), "mlmodel", "regression", set()),
            (Recorder, "class", "other", {"fit"}),
            (lambda row: 1, "function", "other", set()),
            (Linear(), "linear", "regression", {"fit", "score", "report"}),
            (Polynomial(2), "polynomial", "regression", {"fit", "score", "report"}),
            (Formula("y ~ a"), "formula", "regression", {"fit", "score", "report"}),
        ],
    )
    def test_kind_and_capabilities(self, obj: Any, kind: str, task: str, able: set[str]) -> None:
        """Every kind advertises exactly what it can do."""
        adopted = adopt(obj)
        assert (adopted.kind, adopted.task) == (kind, task)
        assert adopted.capabilities == {"predict", *able}
        assert adopt(adopted) is adopted

    def test_what_the_base_class_only_sketches_is_no_capability(self) -> None:
        """A subclass of `Model` can do what it defines, and no more."""

        class Mine(Model):
            """Mine."""

            def predict(self, X: Any) -> Any:
                return [1] * len(X)

            def report(self) -> str:
                return "<p>fine</p>"

        adopted = adopt(Mine)
        assert adopted.capabilities == {"predict", "report"}
        assert adopted.report() == {"html": "<p>fine</p>", "json": {}}
        assert adopted.description == "Mine."

    @pytest.mark.parametrize("obj", [object(), StandardScaler(), 3, "model", dict])
    def test_what_cannot_predict_is_refused(self, obj: Any) -> None:
        """The error says what is missing and what would do."""
        with pytest.raises(InvalidInput, match=r"'thing' cannot be adopted.*predict"):
            adopt(obj, name="thing")

    def test_a_coroutine_is_refused(self) -> None:
        """An asynchronous predict would never be awaited."""

        class Later:
            async def predict(self, X: Any) -> Any:
                return X

        with pytest.raises(InvalidInput, match="async predict"):
            adopt(Later())

    def test_a_class_that_needs_arguments_is_refused(self) -> None:
        """A class that cannot be made without arguments names its constructor's complaint."""
        with pytest.raises(InvalidInput, match="answer"):
            adopt(Answering)

    def test_river_that_has_learned_is_fitted(self) -> None:
        """A River model that has seen rows serves at once; a fresh one, or its clone, does not."""
        for make in (
            linear_model.LinearRegression,
            tree.HoeffdingTreeRegressor,
            lambda: compose.Pipeline(
                preprocessing.StandardScaler(), linear_model.LinearRegression()
            ),
        ):
            model = make()
            assert not adopt(model).fitted
            for a, b in points()[:5]:
                model.learn_one({"a": a, "b": b}, a)
            adopted = adopt(model)
            assert adopted.fitted
            assert not adopted.recipe().fitted
            assert adopted.answer(NUMERIC, [(1.0, 2.0)]).outputs == [
                model.predict_one({"a": 1.0, "b": 2.0})
            ]

    def test_importing_is_light(self) -> None:
        """Neither LightGBM nor River, nor scikit-learn, is imported before a model needs it."""
        code = (
            "import sys, loopline.model, loopline.artifacts;"
            "print(*{'lightgbm', 'river', 'sklearn', 'skops', 'cloudpickle'} & set(sys.modules))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr

    def test_cheap_kinds(self) -> None:
        """Known quick kinds may run on the event loop; what a person wrote may not."""
        assert adopt(make_pipeline(StandardScaler(), LogisticRegression())).cheap
        assert adopt(lightgbm.LGBMClassifier()).cheap
        assert adopt(Linear()).cheap
        assert not adopt(Recorder()).cheap
        assert not adopt(linear_model.LinearRegression()).cheap

        class Sleepy(LinearRegression):
            """A subclass that may do anything."""

        assert not adopt(make_pipeline(StandardScaler(), Sleepy())).cheap


class TestHanding:
    """What a model is handed."""

    @pytest.mark.parametrize(
        ("inputs", "numeric", "kind"),
        [
            (None, True, np.ndarray),
            (None, False, pd.DataFrame),
            ("array", True, np.ndarray),
            ("frame", True, pd.DataFrame),
            ("rows", True, list),
            ("rows", False, list),
        ],
    )
    def test_plain_classes(self, inputs: str | None, numeric: bool, kind: type) -> None:
        """Numbers come as an array and anything else as a frame, unless it says otherwise."""
        schema, rows = NUMERIC, points()
        if not numeric:
            schema = Schema(
                fields=(Field(name="a", kind="number"), Field(name="c", kind="text")),
                output=NUMERIC.output,
            )
            rows = [(a, str(b)) for a, b in rows]
        model = adopt(Recorder(inputs)).fit(schema, rows, [0.0] * ROWS)
        assert isinstance(model.native.seen_, kind)
        model.answer(schema, rows)
        assert isinstance(model.native.seen_, kind)
        if kind is list:
            assert set(model.native.seen_[0]) == {field.name for field in schema.fields}

    def test_named_columns_get_a_frame(self) -> None:
        """A pipeline that names its columns gets names, and marks the others unused."""
        picks = ColumnTransformer([("n", StandardScaler(), ["b"])])
        adopted = adopt(make_pipeline(picks, LinearRegression()))
        assert adopted.fields(NUMERIC) == ("b",)
        fitted = adopted.fit(NUMERIC, points(), [b for _, b in points()])
        assert fitted.answer(NUMERIC, [(99.0, 10.0)]).outputs[0] == pytest.approx(10.0)

    @pytest.mark.parametrize("wrap", [lambda e: e, lambda e: make_pipeline(StandardScaler(), e)])
    @pytest.mark.parametrize("stored", [False, True])
    def test_models_fitted_on_a_frame(
        self, wrap: Callable[[Any], Any], stored: bool, tmp_path: Any
    ) -> None:
        """Names seen in a fit elsewhere decide the order, and cause no warning."""
        frame = pd.DataFrame(points(), columns=["a", "b"])
        native = wrap(LinearRegression()).fit(frame[["b", "a"]], 3 * frame["a"] - frame["b"])
        model = adopt(native)
        assert model.schema is not None
        assert [field.name for field in model.schema.fields] == ["b", "a"]
        if stored:
            blobs, keys = FileBlobs(tmp_path / "blobs"), Keys(tmp_path / "keys")
            model = load(save(model, blobs, keys), blobs, keys)
        assert model.answer(NUMERIC, [(5.0, 1.0)]).outputs[0] == pytest.approx(14)
        assert hasattr(native, "feature_names_in_")

    def test_lightgbm_fitted_on_categories(self) -> None:
        """A booster that was trained on pandas categories gets them, unseen ones included."""
        frame = pd.DataFrame({"c": pd.Categorical(["x", "y"] * 40), "n": np.arange(80.0)})
        native = lightgbm.LGBMClassifier(n_estimators=5, min_child_samples=2, verbose=-1)
        native.fit(frame, (frame["c"] == "x").tolist())
        schema = Schema(
            fields=(
                Field(name="c", kind="category", categories=("x", "y")),
                Field(name="n", kind="number"),
            )
        )
        answers = adopt(native).answer(schema, [("y", 0.0), ("x", 0.0), ("zzz", 0.0)])
        assert answers.outputs[:2] == [False, True]
        assert len(answers.outputs) == 3

    def test_open_schema(self) -> None:
        """Without declared fields a fitted estimator picks its columns from the objects."""
        frame = pd.DataFrame(points(), columns=["a", "b"])
        model = adopt(LinearRegression().fit(frame, frame["a"]))
        row = ({"b": 1.0, "a": 7.0, "z": 0.0},)
        assert model.answer(Schema(open=True), [row]).outputs == pytest.approx([7.0])

    @pytest.mark.parametrize("nulls", [False, True])
    def test_frames_are_those_of_the_schema(self, nulls: bool) -> None:
        """Columns, their order, their types and the index are what `Schema.frame` makes."""
        kinds = ("number", "integer", "boolean", "text", "any", "integer")
        fields = tuple(Field(name=f"f{i}", kind=k, nullable=True) for i, k in enumerate(kinds))
        schema = Schema(fields=fields, output=NUMERIC.output)
        rows: list[Any] = [(1.5, 2, True, "a", [1, 2], 3), (2, 3, False, "b", {"c": 1}, 4)]
        rows += [(None,) * 6] * nulls
        model = adopt(Recorder("frame")).fit(schema, rows, [0.0] * len(rows))
        for some in (rows, rows[:1], rows[1:]):
            model.answer(schema, some)
            pd.testing.assert_frame_equal(model.native.seen_, plain_frame(schema, some))
        some_fields = adopt(Recorder("frame")).fit(schema, rows, [0.0] * len(rows))
        some_fields.columns = ("f3", "f0")
        some_fields.answer(schema, rows)
        pd.testing.assert_frame_equal(
            some_fields.native.seen_, plain_frame(schema, rows)[["f3", "f0"]]
        )

    def test_arrays_are_those_of_the_schema(self) -> None:
        """Nulls are NaN, truth is one, unused fields are left out, and the order is the model's."""
        fields = (
            Field(name="a", kind="number", nullable=True),
            Field(name="b", kind="boolean"),
            Field(name="c", kind="number", used=False),
        )
        schema = Schema(fields=fields, output=NUMERIC.output)
        rows: list[Any] = [(1.0, True, 5.0), (None, False, None)]
        model = adopt(Recorder("array")).fit(schema, rows, [0.0, 0.0])
        for columns in (["a", "b"], ["b", "a"], ["b"]):
            model.columns, model._way = tuple(columns), None
            model.answer(schema, rows)
            picked = plain_array(schema, rows)[:, [["a", "b"].index(name) for name in columns]]
            assert np.array_equal(model.native.seen_, picked, equal_nan=True)

    def test_a_schema_without_the_models_columns(self) -> None:
        """A schema that lost a column the model was fitted on fails with its name."""
        model = adopt(LinearRegression()).fit(NUMERIC, points(), [0.0] * ROWS)
        with pytest.raises(ModelFailed, match="b"):
            model.answer(Schema(fields=NUMERIC.fields[:1]), [(1.0,)])


class TestFunctionsAndRecords:
    """Models that take one row at a time."""

    @pytest.mark.parametrize(
        "function",
        [
            lambda a, b: a + b,
            lambda **row: row["a"] + row["b"],
            lambda row: row["a"] + row["b"],
        ],
        ids=["keywords", "any keywords", "one row"],
    )
    def test_functions(self, function: Any) -> None:
        """Parameters are fields; a single one without a type is the whole row."""
        assert adopt(function).answer(NUMERIC, [(1.0, 2.0), (3.0, 4.0)]).outputs == [3.0, 7.0]

    def test_typed_functions_declare_their_schema(self) -> None:
        """A typed function needs no data to be validated."""

        def area(width: float, height: float = 2.0) -> float:
            """The area."""
            return width * height

        adopted = adopt(area)
        assert adopted.schema is not None
        assert adopted.task == "regression"
        assert adopted.fields(adopted.schema) == ("width", "height")
        row = adopted.schema.row({"width": 3})
        assert adopted.answer(adopted.schema, [row]).outputs == [6.0]

    @pytest.mark.parametrize("kind", [Point, Pair])
    def test_functions_of_a_record(self, kind: type) -> None:
        """A parameter of a record type gets that record."""

        def total(row: Any) -> float:
            assert type(row) is kind
            return float(row.a + row.b)

        total.__annotations__["row"] = kind
        adopted = adopt(total)
        assert adopted.schema is not None
        row = adopted.schema.row({"a": 1.5, "b": 2})
        assert adopted.answer(adopted.schema, [row]).outputs == [3.5]

    @pytest.mark.parametrize("model", [Hosted(), HostedRecord(), Hosted])
    def test_hosted_objects(self, model: Any) -> None:
        """Dict in and record out, or pydantic in and out; an output of one field is its value."""
        adopted = adopt(model)
        assert adopted.description == "Adds two numbers."
        assert adopted.schema is not None
        row = adopted.schema.row({"a": 1, "b": 2.5})
        (answer,) = adopted.answer(adopted.schema, [row]).outputs
        assert (answer, type(answer)) == (3.5, float)

    def test_declarations_of_the_schema_package(self) -> None:
        """An object that can only write JSON Schema is understood, too."""
        hosted = Hosted()
        hosted.input_schema, hosted.output_schema = SchemaPackage("a", "b"), SchemaPackage("total")
        schema = adopt(hosted).schema
        assert schema is not None and schema.output is not None
        assert [field.name for field in schema.fields] == ["a", "b"]
        assert (schema.output.name, schema.output.kind) == ("total", "number")

    def test_outputs_of_several_fields(self) -> None:
        """A record of several fields stays one."""
        hosted = Hosted()
        hosted.predict = lambda data: {"total": np.float32(1.5), "ok": True}  # type: ignore[method-assign]
        assert adopt(hosted).answer(NUMERIC, [(1.0, 2.0)]).outputs == [{"total": 1.5, "ok": True}]


class TestAnswers:
    """Plain values, one call, and errors that say what the model said."""

    @pytest.mark.parametrize("make", [LogisticRegression, RandomForestClassifier, LinearSVC, SVC])
    @pytest.mark.parametrize(
        "labels", [("no", "yes"), (0, 1), (False, True), (1, 2, 3), (0.5, 1.5), ("b", "a", "c")]
    )
    def test_labels_keep_their_type(self, make: Any, labels: tuple[Any, ...]) -> None:
        """Whatever the labels were in training, they come back as."""
        labels = tuple(int(label * 2) if isinstance(label, float) else label for label in labels)
        schema, given = classes(*labels), labels_of(*labels)
        model = adopt(make()).fit(schema, points(), given)
        answers = model.answer(schema, points())
        assert {type(label) for label in answers.outputs} == {type(labels[0])}
        assert set(answers.outputs) <= set(labels)
        assert model.classes == tuple(sorted(labels))
        assert (answers.probabilities is None) == (make in (LinearSVC, SVC))

    def test_lightgbm_answers_like_its_wrapper(self) -> None:
        """The booster's answers are the estimator's, alone and behind a transformer."""
        X = np.array(points())
        for labels in (("no", "yes"), ("a", "b", "c")):
            native = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1)
            given = labels_of(*labels)
            schema = classes(*labels)
            model = adopt(native).fit(schema, points(), given)
            answers = model.answer(schema, points())
            assert np.array_equal(answers.probabilities, native.fit(X, given).predict_proba(X))
            assert answers.outputs == native.predict(X).tolist()
            behind = adopt(make_pipeline(StandardScaler(), native)).fit(schema, points(), given)
            wrapper = make_pipeline(StandardScaler().set_output(transform="pandas"), native)
            expected = wrapper.fit(X, given).predict(X).tolist()
            assert behind.answer(schema, points()).outputs == expected

    @pytest.mark.parametrize("last", [LogisticRegression(), LinearSVC(), SGDClassifier(alpha=0.1)])
    @pytest.mark.parametrize("labels", [("no", "yes"), ("a", "b", "c")])
    def test_linear_models_answer_like_the_library(self, last: Any, labels: Any) -> None:
        """What is answered is bit for bit what the pipeline says of the same batch."""
        schema, native = classes(*labels), make_pipeline(StandardScaler(), last)
        model = adopt(native).fit(schema, points(), labels_of(*labels))
        for count in (1, 2, 33, ROWS):
            X = np.array(points()[:count])
            answers = model.answer(schema, points()[:count])
            assert answers.outputs == model.native.predict(X).tolist()
            if answers.probabilities is not None:
                said = model.native.predict_proba(X)
                assert answers.probabilities == list(map(tuple, said.tolist()))

    def test_a_value_that_the_library_refuses(self) -> None:
        """Infinity is refused in the library's own words, and the next row is answered."""
        model = adopt(LinearRegression()).fit(NUMERIC, points(), [a for a, _ in points()])
        with pytest.raises(ModelFailed, match="ValueError: Input X contains infinity"):
            model.answer(NUMERIC, [(float("inf"), 1.0)])
        assert model.answer(NUMERIC, [(3.0, 1.0)]).outputs == pytest.approx([3.0])

    def test_what_was_learned_since_counts(self) -> None:
        """The way to an answer is found anew after learning, and for another schema."""
        schema = classes("no", "yes")
        model = adopt(SGDClassifier(loss="log_loss", random_state=0))
        for turn in range(4):
            model.learn(schema, points(), labels_of("no", "yes")[:: 1 - turn % 2 * 2])
            expected = model.native.predict_proba(np.array(points())).tolist()
            for each in (schema, Schema(fields=schema.fields[::-1], output=schema.output)):
                rows = points() if each is schema else [(b, a) for a, b in points()]
                assert model.answer(each, rows).probabilities == list(map(tuple, expected))

    def test_xgboost_answers_like_its_wrapper(self) -> None:
        """The booster's answers are the estimator's, whatever it was fitted on, from one call."""
        X = pd.DataFrame(points(), columns=["a", "b"])
        for labels in (("no", "yes"), ("a", "b", "c"), None):
            made = xgboost.XGBClassifier if labels else xgboost.XGBRegressor
            schema = classes(*labels) if labels else NUMERIC
            given = labels_of(*labels) if labels else [a for a, _ in points()]
            model = adopt(made(n_estimators=5, n_jobs=1)).fit(schema, points(), given)
            codes = [labels.index(each) for each in given] if labels else given
            by_name = adopt(made(n_estimators=5, n_jobs=1).fit(X[["b", "a"]], codes))
            for each in (model, by_name):
                names = list(each.columns or ())
                expected = each.native.predict(X[names] if each is by_name else X.to_numpy())
                answers = each.answer(schema, points())
                said = [labels[i] for i in expected] if labels and each is model else expected
                assert answers.outputs == list(said)
                if labels:
                    chances = each.native.predict_proba(X[names] if each is by_name else X)
                    assert np.array_equal(answers.probabilities, chances.astype(float))
            bare = adopt(by_name.native.get_booster())
            assert (bare.task, bare.columns) == (by_name.task, ("b", "a"))
            assert bare.answer(schema, points()) == by_name.answer(schema, points())

    def test_xgboost_that_needs_its_wrapper(self) -> None:
        """A linear booster, classes for an answer and an early stop are the wrapper's to know."""
        X, y = np.array(points()), np.array(labels_of(0, 1, 2))
        linear = xgboost.XGBRegressor(n_estimators=3, booster="gblinear").fit(X, X[:, 0])
        hard = xgboost.XGBClassifier(n_estimators=3, objective="multi:softmax").fit(X, y)
        early = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=1, learning_rate=0.9)
        early.fit(X[::2], y[::2], eval_set=[(X[1::2], y[::-2])], verbose=False)
        assert early.best_iteration < early.get_booster().num_boosted_rounds() - 1
        for native in (linear, hard, early):
            answers = adopt(native).answer(NUMERIC, points())
            assert answers.outputs == native.predict(X).tolist()
            if native is not linear:
                assert np.array_equal(answers.probabilities, native.predict_proba(X).astype(float))

    def test_a_booster_behind_a_scaler(self) -> None:
        """The scaling in front of a booster is the library's, too."""
        X, y = np.array(points()), [a * b for a, b in points()]
        for last in (
            lightgbm.LGBMRegressor(verbose=-1),
            xgboost.XGBRegressor(n_estimators=4, n_jobs=1),
        ):
            model = adopt(make_pipeline(StandardScaler(), last)).fit(NUMERIC, points(), y)
            scaled = model.native[:-1].transform(X)
            assert (
                model.answer(NUMERIC, points()).outputs == last_of(model).predict(scaled).tolist()
            )

    def test_a_bare_booster(self) -> None:
        """A booster without its estimator answers with numbered classes, or with numbers."""
        X = np.array(points())
        y = np.array(labels_of(0, 1, 2))
        for objective, most in (("multiclass", 3), ("binary", 2), ("regression", 0)):
            given = {"objective": objective, "verbose": -1, "num_class": most if most > 2 else 1}
            target = y if most != 2 else y > 0
            model = adopt(lightgbm.train(given, lightgbm.Dataset(X, target), 3))
            assert model.fitted and "fit" not in model.capabilities
            assert model.classes == (tuple(range(most)) if most else None)
            answers = model.answer(NUMERIC, points())
            assert {type(each) for each in answers.outputs} == {int if most else float}

    def test_a_lightgbm_that_has_changed_inside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A version that keeps its predictor elsewhere is asked in public, and answers the same."""
        X = np.array(points())
        native = lightgbm.LGBMRegressor(n_estimators=4, verbose=-1).fit(X, X[:, 0])
        usual = booster_of(native)
        with monkeypatch.context() as patch:
            patch.delattr(lightgbm.basic, "_InnerPredictor")
            careful = booster_of(native)
        assert usual is not None and careful is not None
        assert usual[1].func != careful[1].func == native.booster_.predict  # type: ignore[attr-defined]
        assert usual[1](X).tolist() == careful[1](X).tolist() == native.predict(X).tolist()

    def test_an_own_objective_goes_through_the_estimator(self) -> None:
        """A booster with a custom objective knows no probabilities, so it is not asked for them."""

        def squared(y: Any, predicted: Any) -> tuple[Any, Any]:
            return predicted - y, np.ones_like(y)

        native = lightgbm.LGBMRegressor(objective=squared, n_estimators=4, verbose=-1)
        model = adopt(native).fit(NUMERIC, points(), [a for a, _ in points()])
        assert len(model.answer(NUMERIC, points()).outputs) == ROWS

    def test_a_class_that_is_not_the_arg_max(self) -> None:
        """A classifier with a threshold of its own keeps it; both of its methods are asked."""

        class Careful(ClassifierMixin, BaseEstimator):
            """Says yes only when it is very sure."""

            def fit(self, X: Any, y: Any) -> Careful:
                self.classes_ = np.unique(y)
                return self

            def predict_proba(self, X: Any) -> Any:
                return np.column_stack([1 - X[:, 0] / ROWS, X[:, 0] / ROWS])

            def predict(self, X: Any) -> Any:
                return self.classes_[(X[:, 0] / ROWS > 0.9).astype(int)]

        schema = classes("no", "yes")
        model = adopt(Careful()).fit(schema, points(), labels_of("no", "yes"))
        assert model.argmax is False
        answers = model.answer(schema, [(0.6 * ROWS, 0.0), (0.95 * ROWS, 0.0)])
        assert answers.outputs == ["no", "yes"]
        assert answers.probabilities is not None
        assert answers.probabilities[0][1] == pytest.approx(0.6)

    @pytest.mark.parametrize(
        "answer",
        [lambda X: [1.0], lambda X: 3.0, lambda X: "xx", lambda X: np.ones((5, 2)), lambda X: {}],
    )
    def test_wrong_number_of_outputs(self, answer: Any) -> None:
        """A model that does not answer each row failed."""
        with pytest.raises(ModelFailed):
            adopt(Answering(answer)).answer(NUMERIC, points()[:2])

    @pytest.mark.parametrize(
        "error",
        [ValueError("bad luck"), KeyError("x"), RecursionError("deep"), MemoryError()],
    )
    def test_exceptions_keep_type_and_message(self, error: Exception) -> None:
        """Whatever a model raises arrives as `model-failed` with its own words, and its cause."""

        def fail(X: Any) -> Any:
            raise error

        with pytest.raises(ModelFailed, match=f"{type(error).__name__}: ") as caught:
            adopt(Answering(fail)).answer(NUMERIC, points())
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize(
        "answer",
        [
            lambda X: np.zeros(len(X), dtype=np.float32),
            lambda X: np.zeros((len(X), 1), dtype=int),
            lambda X: pd.Series([np.int64(0)] * len(X)),
            lambda X: pd.DataFrame({"y": [0.0] * len(X)}),
            lambda X: [np.float64(0)] * len(X),
            lambda X: (0 for _ in X),
        ],
    )
    def test_numbers_are_floats(self, answer: Any) -> None:
        """However a regression says it, it comes out as Python floats."""
        native = Answering(answer)
        native.task = "regression"  # type: ignore[attr-defined]
        outputs = adopt(native).answer(NUMERIC, points()[:3]).outputs
        assert outputs == [0.0] * 3
        assert {type(each) for each in outputs} == {float}

    def test_unfitted_is_not_ready(self) -> None:
        """An estimator before its fit says so."""
        with pytest.raises(NotReady, match="not fitted"):
            adopt(LinearRegression()).answer(NUMERIC, points())

    def test_no_rows(self) -> None:
        """No rows, no call, no answers."""
        assert adopt(lambda row: 1 / 0).answer(NUMERIC, []).outputs == []

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=12))
    def test_single_is_batch(self, rows: list[tuple[float, float]]) -> None:
        """Rows alone are answered as they are together."""
        schema = classes("down", "up")
        model = adopt(LogisticRegression()).fit(schema, points(), labels_of("down", "up"))
        together = model.answer(schema, rows).outputs
        assert together == [model.answer(schema, [row]).outputs[0] for row in rows]


class TestFitting:
    """A fresh copy is fitted; parameters are checked; failures are the model's."""

    def test_the_recipe_is_not_changed(self) -> None:
        """Fitting makes a new model."""
        native = LogisticRegression()
        recipe = adopt(native)
        schema = classes("no", "yes")
        made = recipe.fit(schema, points(), labels_of("no", "yes"), {"C": 0.25})
        assert not recipe.fitted and not hasattr(native, "coef_")
        assert native.C == 1.0 and made.parameters()["C"] == 0.25

    @pytest.mark.parametrize(
        ("obj", "good"),
        [
            (LogisticRegression(), {"C": 2.0}),
            (make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": 2.0}),
            (lightgbm.LGBMClassifier(n_estimators=3, verbose=-1), {"num_leaves": 5, "max_bin": 50}),
            (linear_model.LogisticRegression(), {"l2": 0.5}),
            (Polynomial(1), {"degree": 2}),
            (Recorder(), {"inputs": "rows"}),
        ],
    )
    def test_parameters(self, obj: Any, good: dict[str, Any]) -> None:
        """Known parameters are set; an unknown one is named, with those that there are."""
        labels = labels_of(False, True)
        schema = NUMERIC if adopt(obj).task == "regression" else classes(False, True)
        if adopt(obj).task == "regression":
            labels = [float(label) for label in labels]
        made = adopt(obj).fit(schema, points(), labels, good)
        assert made.parameters().items() >= good.items()
        assert adopt(obj).parameters().items() != made.parameters().items()
        with pytest.raises(InvalidInput) as caught:
            adopt(obj).fit(schema, points(), labels, {**good, "no_such": 1})
        assert [field.pointer for field in caught.value.fields] == ["/parameters/no_such"]
        assert next(iter(good)) in caught.value.fields[0].detail

    def test_parameters_of_a_wrapped_estimator(self) -> None:
        """With features in front, parameters still are the estimator's own."""
        schema = Schema(
            fields=(Field(name="c", kind="category", categories=("u", "v")),),
            output=Output(name="y", kind="category", categories=("u", "v")),
        )
        rows = [(c,) for c in "uv" * 20]
        made = adopt(LogisticRegression()).fit(schema, rows, [c for (c,) in rows], {"C": 3.0})
        assert made.wrapped and made.parameters()["C"] == 3.0
        again = made.fit(schema, rows, [c for (c,) in rows], {"C": 4.0})
        assert again.parameters()["C"] == 4.0
        assert again.answer(schema, rows).outputs == [c for (c,) in rows]

    def test_a_failing_fit(self) -> None:
        """What a fit raises is the model's failure, in its own words."""
        with pytest.raises(ModelFailed, match=r"ValueError: .*one class"):
            adopt(LogisticRegression()).fit(classes("a", "b"), points(), ["a"] * ROWS)

    def test_nothing_to_fit(self) -> None:
        """No rows are refused, and so is a model that cannot be fitted."""
        with pytest.raises(InvalidInput, match="0 rows"):
            adopt(LinearRegression()).fit(NUMERIC, [], [])
        with pytest.raises(WrongState, match="no `fit`"):
            adopt(Hosted()).fit(NUMERIC, points(), [0.0] * ROWS)

    def test_learning_on_top(self) -> None:
        """`partial_fit`, `learn` and `learn_one` all continue from what is known."""

        class Counts:
            """Counts rows."""

            def fit(self, X: Any, y: Any) -> None:
                self.rows_ = len(X)

            def learn(self, X: Any, y: Any) -> None:
                self.rows_ += len(X)

            def predict(self, X: Any) -> list[float]:
                return [float(self.rows_)] * len(X)

        counts = adopt(Counts()).fit(NUMERIC, points(), [0.0] * ROWS)
        counts.learn(NUMERIC, points()[:5], [0.0] * 5)
        assert counts.answer(NUMERIC, [(0.0, 0.0)]).outputs == [ROWS + 5.0]
        schema = classes("no", "yes")
        online = adopt(SGDClassifier(loss="log_loss", random_state=0))
        for _ in range(30):
            online.learn(schema, points(), labels_of("no", "yes"))
        assert online.fitted and online.classes == ("no", "yes")
        assert online.answer(schema, [(ROWS, 0.0)]).outputs == ["yes"]
        with pytest.raises(WrongState, match="neither"):
            adopt(LinearRegression()).learn(NUMERIC, points(), [0.0] * ROWS)


class TestRiver:
    """Models that learn one row at a time."""

    @pytest.mark.parametrize("labels", [(False, True), ("no", "yes"), (0, 1), (7, 9)])
    def test_binary_labels_of_any_type(self, labels: tuple[Any, Any]) -> None:
        """River's two-class models know truth only; the labels come back as they were."""
        schema = classes(*labels)
        native = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
        model = adopt(native).fit(schema, points() * 3, labels_of(*labels) * 3)
        answers = model.answer(schema, [(0.0, 5.0), (80.0, 5.0)])
        assert answers.outputs == list(labels)
        assert [type(each) for each in answers.outputs] == [type(each) for each in labels]
        assert answers.probabilities is not None
        assert [sum(row) for row in answers.probabilities] == pytest.approx([1.0, 1.0])

    def test_many_classes(self) -> None:
        """A model of many classes takes them as they are; one of two says what to do."""
        schema, labels = classes("a", "b", "c"), labels_of("a", "b", "c")
        with pytest.raises(InvalidInput, match="OneVsRestClassifier"):
            adopt(linear_model.LogisticRegression()).fit(schema, points(), labels)
        native = multiclass.OneVsRestClassifier(
            compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
        )
        model = adopt(native).fit(schema, points() * 3, labels * 3)
        assert set(model.answer(schema, points()).outputs) <= {"a", "b", "c"}
        model.learn(schema, points(), labels)
        assert model.classes == ("a", "b", "c")

    def test_gaps_are_left_out(self) -> None:
        """A missing value is one that River does not see."""
        field = Field(name="b", kind="number", nullable=True)
        schema = Schema(fields=(NUMERIC.fields[0], field), output=NUMERIC.output)
        rows = [(a, None if i % 3 else b) for i, (a, b) in enumerate(points())]
        model = adopt(linear_model.LinearRegression(l2=0.1)).fit(schema, rows, [1.0] * ROWS)
        assert len(model.answer(schema, [(1.0, None)]).outputs) == 1

    def test_nothing_learned_yet(self) -> None:
        """A model that answers nothing because it knows nothing is not ready."""
        for native in (dummy.NoChangeClassifier(), dummy.PriorClassifier()):
            adopted = adopt(native)
            with pytest.raises(NotReady):
                adopted.answer(classes("a", "b"), points())
            adopted.fitted = True
            with pytest.raises(NotReady, match="not learned"):
                adopted.answer(classes("a", "b"), points())


class TestReports:
    """What a model says of its fit."""

    def test_statsmodels_results(self) -> None:
        """A result of statsmodels is served as it is, with its summary as the report."""
        frame = pd.DataFrame(points(), columns=["a", "b"])
        frame["y"] = frame["a"] + np.sin(frame["a"])
        by_formula = adopt(smf.ols("y ~ a", frame).fit())
        by_matrix = adopt(sm.OLS(frame["y"], frame[["a", "b"]]).fit())
        for model in (by_formula, by_matrix):
            assert model.capabilities == {"predict", "report"}
            assert len(model.answer(NUMERIC, points()).outputs) == ROWS
            report = model.report()
            assert report is not None and "R-squared" in report["html"]

    @pytest.mark.parametrize(
        ("found", "report"),
        [
            ("text", {"html": "text", "json": {}}),
            ({"auc": 0.9}, {"html": "", "json": {"auc": 0.9}}),
            ({"html": "<b>", "json": {"n": 1}}, {"html": "<b>", "json": {"n": 1}}),
        ],
    )
    def test_reports_of_any_shape(self, found: Any, report: Any) -> None:
        """Text, figures or both become the one shape."""

        class Reporting(Recorder):
            def report(self) -> Any:
                return found

        adopted = adopt(Reporting())
        assert adopted.report() is None
        assert adopted.fit(NUMERIC, points(), [0.0] * ROWS).report() == report


class TestImportPaths:
    """Estimators by name."""

    def test_a_path_makes_an_estimator(self) -> None:
        """An import path and parameters make what they say."""
        made = estimator("sklearn.linear_model.LogisticRegression", {"C": 0.5})
        assert isinstance(made, sklearn.linear_model.LogisticRegression) and made.C == 0.5
        made = estimator("lightgbm.LGBMClassifier", {"n_estimators": 50, "num_leaves": 7})
        assert made.n_estimators == 50
        assert estimator("loopline.builtin.Formula", {"formula": "y ~ a"}).fields == ("a",)

    @pytest.mark.parametrize(
        "path",
        [
            "nothing",
            "",
            "no.such.Thing",
            "sklearn.linear_model.NoSuchThing",
            "os.system",
            "subprocess.Popen",
            "builtins.eval",
            "sklearn.preprocessing.StandardScaler",
            "numpy.testing.rundocs",
            "sklearn.datasets.load_iris",
        ],
    )
    def test_what_is_no_estimator(self, path: str) -> None:
        """Whatever cannot predict is refused by name, and never called."""
        with pytest.raises(InvalidInput) as caught:
            estimator(path)
        assert caught.value.fields[0].pointer == "/estimator"

    def test_unknown_parameters(self) -> None:
        """Every unknown parameter is named."""
        with pytest.raises(InvalidInput) as caught:
            estimator("lightgbm.LGBMClassifier", {"n_estimatorz": 5, "num_leaves": 7, "x": 1})
        pointers = {field.pointer for field in caught.value.fields}
        assert pointers == {"/parameters/n_estimatorz", "/parameters/x"}

    def test_a_missing_library_names_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An optional library that is not installed comes with its pip line."""
        monkeypatch.setitem(sys.modules, "xgboost", None)
        with pytest.raises(MissingExtra, match=r"pip install 'loopline\[xgboost\]'"):
            estimator("xgboost.XGBClassifier")


@pytest.fixture
def seldom(tmp_path: Any) -> Iterator[Sequence[Any]]:
    """A place to store models in."""
    yield FileBlobs(tmp_path / "blobs"), Keys(tmp_path / "keys")


def test_loaded_is_called_once_after_a_load(seldom: Sequence[Any]) -> None:
    """A `Model` may open what it needs in the process that serves it."""

    class Opening(Model):
        opened = False

        def predict(self, X: Any) -> list[bool]:
            return [self.opened] * len(X)

        def loaded(self) -> None:
            self.opened = True

    blobs, keys = seldom
    adopted: Adopted = adopt(Opening)
    assert adopted.answer(NUMERIC, points()[:1]).outputs == [False]
    again = load(save(adopted, blobs, keys), blobs, keys)
    assert again.answer(NUMERIC, points()[:1]).outputs == [True]


def test_pipeline_with_named_text_columns() -> None:
    """A user's own pipeline gets the frame it was written for."""
    schema = Schema(
        fields=(Field(name="c", kind="category", categories=("u", "v")), NUMERIC.fields[0]),
        output=Output(name="y", kind="category", categories=("u", "v")),
    )
    picks = ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["c"])])
    rows = [(c, 1.0) for c in "uv" * 20]
    labels = [c for c, _ in rows]
    model = adopt(make_pipeline(picks, LogisticRegression())).fit(schema, rows, labels)
    assert model.answer(schema, rows).outputs == labels
    assert len(model.answer(schema, [("zzz", 0.0)]).outputs) == 1
