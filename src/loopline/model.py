"""What a model is: adopting any estimator, object, class or function behind one face.

Nothing is asked of a model but `predict`. What else it can do is found by looking: an estimator of
scikit-learn's manner, a LightGBM booster, a River model, an object with its own schemas, a plain
class, a function. `Adopted` then answers rows of a schema the same way for all of them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from loopline import features
from loopline.errors import (
    FieldError,
    InvalidInput,
    LooplineError,
    ModelFailed,
    NotReady,
    WrongState,
)
from loopline.fields import Field, Output, listing, native
from loopline.natives import (
    BUILT_IN,
    LIBRARIES,
    PER_ROW,
    arguments_of,
    as_categories,
    as_matrix,
    as_report,
    as_vector,
    booster_classes,
    booster_of,
    brings_features,
    classes_of,
    declared_by,
    forget_names,
    form_of,
    has_method,
    has_summary,
    is_a,
    is_fitted,
    kind_of,
    numbered_columns,
    ordered_classes,
    parts,
    picked,
    plain_answer,
    plain_list,
    row_caller,
    sample_of,
    takes_missing,
    task_of,
    task_of_fit,
    wants_frame,
)
from loopline.recipes import NOT_PLAIN, check_parameters, estimator, plain_value, settings_of
from loopline.records import Record, Row
from loopline.schema import Schema

# Their `predict` is the arg-max of their `predict_proba` by construction.
_ARG_MAX = frozenset(
    """AdaBoostClassifier BaggingClassifier BernoulliNB CategoricalNB ComplementNB
    DecisionTreeClassifier ExtraTreeClassifier ExtraTreesClassifier GaussianNB
    GaussianProcessClassifier GradientBoostingClassifier HistGradientBoostingClassifier
    LGBMClassifier LinearDiscriminantAnalysis LogisticRegression LogisticRegressionCV MLPClassifier
    MultinomialNB QuadraticDiscriminantAnalysis RandomForestClassifier""".split()
)


class Answers(Record, frozen=True):
    """What a model said to n rows: n outputs, and n tuples in the order of `Adopted.classes`."""

    outputs: list[Any]
    probabilities: list[tuple[float, ...]] | None = None


class Model:
    """An optional base for a model of one's own; only `predict` is needed, and no base is.

    `inputs` says what the methods get as X: "array" (float64, all fields numbers), "frame" (a
    pandas DataFrame) or "rows" (a list of dicts). `input_schema` and `output_schema` may declare
    the fields with any typed record. A method counts as a capability where a subclass defines it.
    """

    inputs: ClassVar[str | None] = None
    input_schema: ClassVar[Any] = None
    output_schema: ClassVar[Any] = None

    def predict(self, X: Any) -> Any:
        """Answer n rows with n values."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from n rows and their n labels, from scratch."""
        raise NotImplementedError

    def learn(self, X: Any, y: Any) -> Any:
        """Learn from more rows, on top of what is known."""
        raise NotImplementedError

    def predict_proba(self, X: Any) -> Any:
        """Answer with an array of shape (n, classes), in the order of `classes_`."""
        raise NotImplementedError

    def score(self, X: Any, y: Any) -> float:
        """Say how good the answers are on labelled rows; more is better."""
        raise NotImplementedError

    def report(self) -> Any:
        """Describe the fit: HTML text, a mapping of figures, or {"html": ..., "json": ...}."""
        raise NotImplementedError

    def explain(self, X: Any) -> Any:
        """Say, for n rows, what the answers came from."""
        raise NotImplementedError

    def loaded(self) -> None:
        """Called once in every process after it has loaded this model, to open what it needs."""


class Adopted:
    """The one face of every model.

    Args:
        native: the estimator, object or function itself.
        kind: sklearn, lightgbm, xgboost, river, mlmodel, class, function, linear, polynomial or
            formula.
        state: what `state` returned, for a model that was stored.
    """

    def __init__(self, native: Any, kind: str, state: Mapping[str, Any] | None = None) -> None:
        self.native = native
        self.kind = kind
        self.task: str = "other"
        self.fitted = False
        self.classes: tuple[Any, ...] | None = None
        self.columns: tuple[str, ...] | None = None
        self.argmax: bool | None = None
        self.coded = False
        self.wrapped = False
        self.note = ""
        self.maker: dict[str, Any] | None = None
        for name, value in (state or {}).items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        self._form = form_of(native, kind)
        self._call_row = row_caller(native, kind)
        self._prepare()

    def _prepare(self) -> None:
        """Find the shortest way to an answer."""
        self._last = self.native.steps[-1][1] if self.wrapped else self.native
        ready = self.wrapped and self.fitted
        self._features = features.quick(self.native) if ready else None
        self._split = booster_of(self._last) if self.fitted else None

    def state(self) -> dict[str, Any]:
        """What has to be stored beside the native model, as plain data."""
        names = "task fitted classes columns argmax coded wrapped note maker".split()
        return {name: getattr(self, name) for name in names}

    @property
    def capabilities(self) -> frozenset[str]:
        """The verbs that this model knows: predict, and what else its methods allow."""
        known = {
            "fit": ("fit",),
            "learn": ("partial_fit", "learn", "learn_one"),
            "score": ("score",),
            "predict_proba": ("predict_proba", "predict_proba_one"),
            "report": ("report",),
            "explain": ("explain",),
        }
        able = {verb for verb, names in known.items() if has_method(self.native, *names)}
        if self.kind == "river":
            able |= {"fit"}
            able -= set() if self.task == "classification" else {"predict_proba"}
        if self.maker is not None:
            able |= {"fit", "score"}
        if self._split is not None and self.task == "classification":
            able |= {"predict_proba"}
        if has_summary(self.native):
            able |= {"report"}
        return frozenset({"predict", *able})

    @property
    def cheap(self) -> bool:
        """Whether it is of a kind known to answer quickly."""
        if self.kind in PER_ROW or self.kind == "class":
            return False
        inside = parts(self.native)
        return all(type(part).__module__.startswith(LIBRARIES) for part in inside)

    @property
    def description(self) -> str:
        """What the model says of itself, in a line, and what was left out of its input."""
        told = getattr(self.native, "description", None)
        if not isinstance(told, str) or not told:
            owner = self.native if inspect.isroutine(self.native) else type(self.native)
            lines = (owner.__doc__ or "").strip().splitlines()
            told = lines[0].strip() if lines else owner.__name__
        return f"{told} {self.note}".strip()

    @property
    def schema(self) -> Schema | None:
        """The schema that the model declares, or that its fit implies; None where neither does."""
        declared = declared_by(self.native, self.kind)
        if declared is not None or not self.fitted:
            return declared
        names = self.columns or numbered_columns(self.native)
        if not names:
            return None
        answer = Output(name="prediction", kind="number")
        if self.task == "classification":
            answer = Output(name="prediction", kind="category", categories=self.classes)
        return Schema(
            fields=tuple(map(self._implied, names)),
            output=answer,
        )

    def _implied(self, name: str) -> Field:
        """A field as far as the fit tells what it is."""
        levels = getattr(self.native, "levels_", {}) if self.kind in BUILT_IN else {}
        if name in levels:
            return Field(name=name, kind="category", categories=tuple(levels[name]))
        if wants_frame(self.native):
            return Field(name=name, kind="any", nullable=True)
        return Field(name=name, kind="number")

    def fields(self, schema: Schema) -> tuple[str, ...]:
        """The fields of a schema that this model looks at.

        Raises:
            InvalidInput: the model names a field, or a target, that the schema does not have.
        """
        have = tuple(field.name for field in schema.fields)
        self._check_target(schema)
        wanted = self._wanted()
        if wanted is None:
            free = {f.name for f in schema.fields if f.kind in ("text", "any")}
            picky = self.kind in BUILT_IN or self._needs_features(schema)
            return tuple(name for name in have if not picky or name not in free)
        lost = [name for name in wanted if name not in have]
        if lost and not schema.open:
            told = f"the model reads {listing(lost)}, which the data do not have: {listing(have)}"
            raise InvalidInput(told, fields=[FieldError(f"/{name}", told) for name in lost])
        return tuple(name for name in have if name in wanted)

    def _wanted(self) -> tuple[str, ...] | None:
        """The fields that the model names itself."""
        if self.kind == "formula":
            return tuple(self.native.fields)
        declared = declared_by(self.native, self.kind)
        if declared is not None and not declared.open:
            return tuple(field.name for field in declared.fields)
        return self.columns if self.fitted else picked(self.native)

    def _check_target(self, schema: Schema) -> None:
        target = getattr(self.native, "target", None) if self.kind == "formula" else None
        if target and schema.output is not None and schema.output.name != target:
            told = f"the formula explains {target!r}, but the target is {schema.output.name!r}"
            raise InvalidInput(told, fields=[FieldError("/target", told)])

    def parameters(self) -> dict[str, Any]:
        """The settings of the model by name, as far as they are plain values."""
        if self.maker is not None:
            return dict(self.maker["parameters"])
        plain = ((name, plain_value(value)) for name, value in settings_of(self._last).items())
        return {name: value for name, value in plain if value is not NOT_PLAIN}

    def report(self) -> dict[str, Any] | None:
        """The model's own account of its fit as {"html", "json"}, None where it gives none."""
        if not self.fitted:
            return None
        with _failing():
            if has_method(self.native, "report"):
                return as_report(self.native.report())
            return as_report(self.native.summary()) if has_summary(self.native) else None

    def recipe(self) -> Adopted:
        """The same model before any fit, which is what gets trained again."""
        recipe = Adopted(self._fresh({}), self.kind)
        found = task_of(recipe.native, recipe.kind)
        recipe.task = self.task if found == "other" else found
        return recipe

    def fit(
        self,
        schema: Schema,
        rows: Sequence[Row],
        labels: Sequence[Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> Adopted:
        """Fit a fresh copy; this one is not changed.

        Args:
            schema: of the rows; the used fields become X, in its order.
            rows: n rows with all fields of the schema.
            labels: n class labels or numbers.
            parameters: settings that differ from the model's own.

        Raises:
            InvalidInput: an unknown parameter, or nothing to learn from.
            WrongState: this model cannot be fitted.
            ModelFailed: the model raised.
        """
        if "fit" not in self.capabilities:
            raise WrongState("this model has no `fit`, so it cannot be trained")
        if not rows or len(rows) != len(labels):
            raise InvalidInput(f"{len(rows)} rows and {len(labels)} labels are nothing to fit to")
        made = Adopted(self._fresh(parameters or {}), self.kind)
        made._check_target(schema)
        made.task = task_of_fit(task_of(made.native, made.kind), schema)
        made.columns = None if schema.open else tuple(f.name for f in schema.fields if f.used)
        if made.task == "classification":
            known = schema.output.categories if schema.output else None
            made.classes = ordered_classes(labels, known)
        if made.kind == "river":
            made.learn(schema, rows, labels)
        else:
            made._fit_batch(schema, rows, labels)
        made.fitted = True
        return made

    def _fit_batch(self, schema: Schema, rows: Sequence[Row], labels: Sequence[Any]) -> None:
        if self._needs_features(schema):
            self._wrap(schema, rows)
        X, y = self._input(schema, rows, fitting=True), self._labels(schema, labels)
        with _failing():
            fitted = self.native.fit(X, y)
        if fitted is not None and has_method(fitted, "predict"):
            self.native = fitted
        self.fitted = True
        self._prepare()
        if self.kind in BUILT_IN:
            self.columns = tuple(self.native.columns_)
        if self.task == "classification":
            self.classes = (None if self.coded else classes_of(self.native)) or self.classes
            if self._split is None and has_method(self.native, "predict_proba"):
                self.argmax = self._agrees(sample_of(X))

    def learn(self, schema: Schema, rows: Sequence[Row], labels: Sequence[Any]) -> None:
        """Take more labelled rows into this very model, in their order.

        Raises:
            WrongState: the model cannot learn on top of what it knows.
            ModelFailed: the model raised.
        """
        if self.task == "other":
            self.task = task_of_fit("other", schema)
        if self.columns is None and not schema.open:
            self.columns = tuple(field.name for field in schema.fields if field.used)
        if self.task == "classification":
            known = schema.output.categories if schema.output else None
            self.classes = ordered_classes([*(self.classes or ()), *labels], known)
        X, y = self._input(schema, rows, fitting=True), self._labels(schema, labels)
        with _failing():
            if self.kind == "river":
                for row, label in zip(X, y, strict=True):
                    self.native.learn_one(row, label)
            elif has_method(self.native, "learn"):
                self.native.learn(X, y)
            elif not has_method(self.native, "partial_fit"):
                raise WrongState("this model has neither `learn` nor `partial_fit`")
            elif self.classes and "classes" in arguments_of(self.native.partial_fit):
                self.native.partial_fit(X, y, classes=as_vector(self.classes))
            else:
                self.native.partial_fit(X, y)
        if self.task == "classification" and not self.coded:
            self.classes = classes_of(self.native) or self.classes
        self.fitted = True

    def _fresh(self, parameters: Mapping[str, Any]) -> Any:
        """An unfitted copy of the native model with these parameters."""
        if self.maker is not None:
            return estimator(self.maker["path"], {**self.maker["parameters"], **parameters})
        inner = self._last
        if self.kind == "river":
            check_parameters(inner, parameters)
            with _failing():
                return inner.clone(dict(parameters)) if parameters else inner.clone()
        if self.kind in BUILT_IN:
            made = type(inner)(**inner.get_params())
        elif has_method(inner, "get_params") and has_method(inner, "set_params"):
            from sklearn.base import clone

            made = clone(inner, safe=False)
        else:
            with _failing():
                made = copy.deepcopy(inner)
        check_parameters(made, parameters)
        with _failing():
            if parameters and has_method(made, "set_params"):
                made.set_params(**parameters)
            else:
                for name, value in parameters.items():
                    setattr(made, name, value)
        return made

    def _needs_features(self, schema: Schema) -> bool:
        """Whether this is an estimator that could not read the schema's fields by itself."""
        if self.kind not in ("sklearn", "lightgbm", "xgboost") or self.wrapped or self.fitted:
            return False
        if schema.open or self._form or brings_features(self.native):
            return False
        if not schema.numeric:
            return True
        missing = any(field.nullable for field in schema.fields if field.used)
        return missing and not takes_missing(self.native)

    def _wrap(self, schema: Schema, rows: Sequence[Row]) -> None:
        frame = schema.frame(rows)
        self.native = features.pipeline(schema, self.native, frame)
        self.wrapped, self._form = True, "frame"
        numbers, categories = features.usable(schema, frame)
        kept = {field.name for field in (*numbers, *categories)}
        lost = [f.name for f in schema.fields if f.name not in kept]
        self.note = f"Not used: {listing(lost)}." if lost else ""

    def _labels(self, schema: Schema, labels: Sequence[Any]) -> Any:
        if self.task == "classification" and self.kind in ("river", "xgboost"):
            return self._codes(labels)
        if self.kind == "river":
            return list(labels)
        y = as_vector(labels)
        if self.kind in BUILT_IN and schema.output is not None:
            import pandas as pd

            return pd.Series(y, name=schema.output.name)
        return y

    def _codes(self, labels: Sequence[Any]) -> Any:
        """Labels as the library wants them where it does not take any: numbers, or truth."""
        classes = self.classes or ()
        if self.kind == "xgboost":
            self.coded = True
            return as_vector([classes.index(label) for label in labels])
        last = getattr(self.native, "_last_step", self.native)
        if getattr(last, "_multiclass", True):
            return list(labels)
        if len(classes) > 2:
            raise InvalidInput(
                f"this River model knows two classes, and there are {listing(map(str, classes))}; "
                "wrap it in multiclass.OneVsRestClassifier"
            )
        self.coded = True
        return [label == classes[-1] and len(classes) == 2 for label in labels]

    def _agrees(self, X: Any) -> bool:
        """Whether the class is the arg-max of the probabilities on these rows."""
        with _failing():
            probabilities = as_matrix(self.native.predict_proba(X), len(self.classes or ()))
            if probabilities is None:
                return False
            said = plain_list(self.native.predict(X))
        return said == self._named(probabilities.argmax(axis=1).tolist())

    def answer(self, schema: Schema, rows: Sequence[Row]) -> Answers:
        """Answer n rows, with one call of the native model wherever it takes many.

        Returns:
            Plain Python values: floats, or labels in the type they were trained in.

        Raises:
            NotReady: it is not fitted.
            ModelFailed: the model raised, or did not answer every row.
        """
        if not self.fitted:
            raise NotReady("this model is not fitted yet; train it first")
        if not rows:
            return Answers(outputs=[])
        X = self._input(schema, rows)
        with _failing():
            answers = self._each(schema, X) if self.kind in PER_ROW else self._call(X)
        for said in (answers.outputs, answers.probabilities):
            if said is not None and len(said) != len(rows):
                raise ModelFailed(f"the model answered {len(rows)} rows with {len(said)} outputs")
        return answers

    def _call(self, X: Any) -> Answers:
        if self._split is not None:
            return self._boosted(X)
        if self.task == "classification" and has_method(self._last, "predict_proba"):
            found = as_matrix(self._last.predict_proba(X), len(self.classes or ()))
            if found is not None:
                chances = list(map(tuple, found.tolist()))
                if self.argmax:
                    return Answers(
                        outputs=self._named(found.argmax(axis=1).tolist()), probabilities=chances
                    )
                return Answers(outputs=self._said(self._last.predict(X)), probabilities=chances)
        return Answers(outputs=self._said(self._last.predict(X)))

    def _boosted(self, X: Any) -> Answers:
        import numpy as np

        before, booster = self._split  # type: ignore[misc]
        raw = booster.predict(X if before is None else before.transform(X), num_threads=1)
        if self.task != "classification":
            return Answers(outputs=self._said(raw))
        found = np.column_stack([1.0 - raw, raw]) if raw.ndim == 1 else raw
        return Answers(
            outputs=self._named(found.argmax(axis=1).tolist()),
            probabilities=list(map(tuple, found.tolist())),
        )

    def _named(self, indices: Sequence[int]) -> list[Any]:
        classes = self.classes or ()
        return [classes[i] for i in indices]

    def _said(self, values: Any) -> list[Any]:
        found = plain_list(values)
        if self.coded:
            return self._named(found)
        if self.task == "regression":
            return [float(v) if isinstance(v, int) else v for v in found]
        return found

    def _each(self, schema: Schema, X: Sequence[dict[str, Any]]) -> Answers:
        if self.kind == "river":
            return self._river(X)
        return Answers(outputs=self._said([plain_answer(self._call_row(row)) for row in X]))

    def _river(self, X: Sequence[dict[str, Any]]) -> Answers:
        if self.task != "classification":
            return Answers(outputs=self._said([_known(self.native.predict_one(row)) for row in X]))
        if not has_method(self.native, "predict_proba_one"):
            said = [_known(self.native.predict_one(row)) for row in X]
            return Answers(outputs=self._named(map(int, said)) if self.coded else said)  # type: ignore[arg-type]
        classes = self.classes or ()
        keys = (False, True)[-len(classes) :] if self.coded else classes
        found = [self.native.predict_proba_one(row) for row in X]
        if not all(found):
            raise NotReady("this model has not learned anything yet")
        chances = [tuple(float(each.get(key, 0.0)) for key in keys) for each in found]
        best = [max(range(len(keys)), key=each.__getitem__) for each in chances]
        return Answers(outputs=self._named(best), probabilities=chances)

    def _input(self, schema: Schema, rows: Sequence[Row], fitting: bool = False) -> Any:
        """What the native model is handed for these rows: array, frame or dicts."""
        if self._form == "rows":
            return self._dicts(schema, rows)
        if not fitting and not schema.open:
            self._check_columns(schema)
        if self._features is not None:
            return self._features(schema, rows)
        numeric = schema.numeric and not (fitting and self.kind in BUILT_IN)
        if numeric and self._form is None:
            array = schema.array(rows)
            used = [field.name for field in schema.fields if field.used]
            if self.columns and list(self.columns) != used:
                array = array[:, [used.index(name) for name in self.columns]]
            return array
        frame = schema.frame(rows)
        if self.columns and list(frame.columns) != list(self.columns):
            frame = frame[list(self.columns)]
        if self._form is None and schema.open:
            return frame.to_numpy(dtype="float64")
        categorical = self.kind == "lightgbm" and not self.wrapped
        return as_categories(frame) if categorical else frame

    def _check_columns(self, schema: Schema) -> None:
        used = {field.name for field in schema.fields if field.used}
        lost = [name for name in self.columns or () if name not in used]
        if lost:
            raise ModelFailed(f"the model was fitted on {listing(lost)}, which the schema lacks")

    def _dicts(self, schema: Schema, rows: Sequence[Row]) -> list[dict[str, Any]]:
        if schema.open:
            return [dict(row[0]) for row in rows]  # type: ignore[arg-type]
        names = [(i, field.name) for i, field in enumerate(schema.fields) if field.used]
        if self.kind == "river":
            # River says that a value is missing by leaving it out.
            return [{name: row[i] for i, name in names if row[i] is not None} for row in rows]
        return [{name: row[i] for i, name in names} for row in rows]


def adopt(obj: Any, *, name: str | None = None) -> Adopted:
    """Adopt anything with `predict`: an object, a class that needs no arguments, or a function.

    Raises:
        InvalidInput: it has no `predict`; the message says what is missing.
    """
    if isinstance(obj, Adopted):
        return obj
    told = f"model {name!r}" if name else "this model"
    if inspect.isclass(obj):
        try:
            obj = obj()
        except Exception as error:  # Anything may go wrong in a constructor that is not ours.
            raise InvalidInput(
                f"{told}: {obj.__name__}() could not be made: {type(error).__name__}: {error}"
            ) from error
    kind = kind_of(obj)
    if kind is None or inspect.iscoroutinefunction(getattr(obj, "predict", obj)):
        wrong = f"a {type(obj).__name__} has no `predict`" if kind is None else "async predict"
        raise InvalidInput(
            f"{told} cannot be adopted: {wrong}; give an object with a synchronous "
            "`predict(X)`, a River model with `predict_one`, or a function of one row"
        )
    adopted = Adopted(obj, kind)
    adopted.task = task_of(obj, kind)
    adopted.fitted = is_fitted(obj, kind)
    if adopted.fitted:
        _describe_fit(adopted)
    return adopted


def restore(native: Any, kind: str, state: Mapping[str, Any]) -> Adopted:
    """The model whose native part and state were stored; it belongs to nobody else."""
    if kind in ("sklearn", "xgboost"):
        forget_names(native)
    adopted = Adopted(native, kind, state)
    if isinstance(native, Model):
        with _failing():
            native.loaded()
    return adopted


def _describe_fit(adopted: Adopted) -> None:
    """Read classes, columns and the way to answer off a model that came fitted."""
    obj = adopted.native
    adopted._prepare()
    booster = is_a(obj, "Booster")
    names = obj.feature_name() if booster else getattr(obj, "feature_names_in_", None)
    names = getattr(obj, "columns_", names) if adopted.kind in BUILT_IN else names
    if names is not None and not str(names[0]).startswith("Column_"):
        adopted.columns = tuple(map(str, names))
    if adopted.task != "classification":
        return
    declared = declared_by(obj, adopted.kind)
    known = declared.output.categories if declared and declared.output else None
    adopted.classes = (booster_classes(obj) if booster else classes_of(obj)) or known
    last = obj.steps[-1][1] if is_a(obj, "Pipeline") else obj
    ours = type(last).__module__.startswith(LIBRARIES)
    adopted.argmax = ours and type(last).__name__ in _ARG_MAX
    if adopted.kind == "river" and has_method(obj, "predict_proba_one"):
        adopted.classes = tuple(obj.predict_proba_one({}))


@contextmanager
def _failing() -> Iterator[None]:
    """Turn whatever a model raises into `ModelFailed`, with its own type and message."""
    try:
        yield
    except LooplineError:
        raise
    except Exception as error:  # The code inside is the user's, and may raise anything.
        raise ModelFailed(f"{type(error).__name__}: {error}") from error


def _known(said: Any) -> Any:
    if said is None:
        raise NotReady("this model has not learned anything yet")
    return native(said)
