"""What a model is: adopting any estimator, object, class or function behind one face.

Nothing is asked of a model but `predict`. What else it can do is found by looking: an estimator of
scikit-learn's manner, a LightGBM booster, a River model, an object with its own schemas, a plain
class, a function. `Adopted` then answers rows of a schema the same way for all of them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from loopline import features, folding, natives
from loopline.errors import InvalidInput, LooplineError, ModelFailed, NotReady, WrongState
from loopline.fields import Field, Kind, Output, listing, native
from loopline.natives import BUILT_IN, LIBRARIES, PER_ROW, has_method, is_a
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

Ask = Callable[[Any], Any]


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
    """The one face of every model; one that was stored is given what its `state` returned.

    The kinds are sklearn, lightgbm, xgboost, river, mlmodel, class, function, linear, polynomial
    and formula.
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
        for name, value in (state or {"task": natives.task_of(native, kind)}).items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        self._form = natives.form_of(native, kind)
        self._call_row = natives.row_caller(native, kind)
        self._prepare()

    def _prepare(self) -> None:
        """Find the shortest way to an answer."""
        self._last = self.native.steps[-1][1] if self.wrapped else self.native
        self._split = natives.booster_of(self._last) if self.fitted else None
        self._asks: tuple[Ask | None, Ask] | None = None
        self._way: tuple[Schema, features.Reader] | None = None

    def state(self) -> dict[str, Any]:
        """What has to be stored beside the native model, as plain data."""
        names = "task fitted classes columns argmax coded wrapped note maker".split()
        return {name: getattr(self, name) for name in names}

    @property
    def capabilities(self) -> frozenset[str]:
        """The verbs that this model knows: predict, and what else its methods allow."""
        also = {"learn": ("partial_fit", "learn_one"), "predict_proba": ("predict_proba_one",)}
        verbs = "predict fit learn score predict_proba explain".split()
        able = {verb for verb in verbs if has_method(self.native, verb, *also.get(verb, ()))}
        able |= {"predict"} if natives.reporter(self.native) is None else {"predict", "report"}
        if self.kind == "river":
            able |= {"fit"}
            able -= set() if self.task == "classification" else {"predict_proba"}
        if self.maker is not None:
            able |= {"fit", "score"}
        if self._split is not None and self.task == "classification":
            able |= {"predict_proba"}
        return frozenset(able)

    @property
    def cheap(self) -> bool:
        """Whether it is of a kind known to answer quickly."""
        if self.kind in PER_ROW or self.kind == "class":
            return False
        inside = natives.parts(self.native)
        return all(type(part).__module__.startswith(LIBRARIES) for part in inside)

    @property
    def description(self) -> str:
        """What the model says of itself, in a line, and what was left out of its input."""
        told = getattr(self.native, "description", None)
        if not isinstance(told, str) or not told:
            owner = self.native if inspect.isroutine(self.native) else type(self.native)
            told = (owner.__doc__ or "").strip().partition("\n")[0] or owner.__name__
        return f"{told} {self.note}".strip()

    @property
    def schema(self) -> Schema | None:
        """The schema that the model declares, or that its fit implies; None where neither does."""
        declared = natives.declared_by(self.native, self.kind)
        if declared is not None or not self.fitted:
            return declared
        names = self.columns or natives.numbered_columns(self.native)
        if not names:
            return None
        kind: Kind = "category" if self.task == "classification" else "number"
        answer = Output(name="prediction", kind=kind, categories=self.classes)
        return Schema(fields=tuple(map(self._implied, names)), output=answer)

    def _implied(self, name: str) -> Field:
        """A field as far as the fit tells what it is."""
        levels = getattr(self.native, "levels_", {}) if self.kind in BUILT_IN else {}
        if name in levels:
            return Field(name=name, kind="category", categories=tuple(levels[name]))
        if natives.wants_frame(self.native):
            return Field(name=name, kind="any", nullable=True)
        return Field(name=name, kind="number")

    def fields(self, schema: Schema) -> tuple[str, ...]:
        """The fields of a schema that this model looks at.

        Raises:
            InvalidInput: the model names a field, or a target, that the schema does not have.
        """
        have = tuple(field.name for field in schema.fields)
        self._check_target(schema)
        declared = natives.declared_by(self.native, self.kind)
        wanted = self.columns if self.fitted else natives.picked(self.native)
        if self.kind == "formula":
            wanted = self.native.fields
        elif declared is not None and not declared.open:
            wanted = tuple(field.name for field in declared.fields)
        if wanted is None:
            free = {f.name for f in schema.fields if f.kind in ("text", "any")}
            picky = self.kind in BUILT_IN or self._needs_features(schema)
            return tuple(name for name in have if not picky or name not in free)
        lost = [name for name in wanted if name not in have]
        if lost and not schema.open:
            told = f"the model reads {listing(lost)}, which the data do not have: {listing(have)}"
            raise InvalidInput.at(told, *(f"/{name}" for name in lost))
        return tuple(name for name in have if name in wanted)

    def _check_target(self, schema: Schema) -> None:
        target = getattr(self.native, "target", None) if self.kind == "formula" else None
        if target and schema.output is not None and schema.output.name != target:
            told = f"the formula explains {target!r}, but the target is {schema.output.name!r}"
            raise InvalidInput.at(told, "/target")

    def parameters(self) -> dict[str, Any]:
        """The settings of the model by name, as far as they are plain values."""
        if self.maker is not None:
            return dict(self.maker["parameters"])
        plain = ((name, plain_value(value)) for name, value in settings_of(self._last).items())
        return {name: value for name, value in plain if value is not NOT_PLAIN}

    def report(self) -> dict[str, Any] | None:
        """The model's own account of its fit as {"html", "json"}, None where it gives none."""
        tell = natives.reporter(self.native)
        if tell is None or not self.fitted:
            return None
        with _failing:
            return natives.as_report(tell())

    def recipe(self) -> Adopted:
        """The same model before any fit, which is what gets trained again."""
        recipe = Adopted(self._fresh({}), self.kind)
        recipe.task = self.task if recipe.task == "other" else recipe.task
        return recipe

    def fit(
        self,
        schema: Schema,
        rows: Sequence[Row],
        labels: Sequence[Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> Adopted:
        """Fit a fresh copy to n rows, with all fields of the schema, and their n labels.

        The used fields become X, in the schema's order. The parameters are settings that differ
        from the model's own, which is not changed.

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
        (made.learn if made.kind == "river" else made._fit_batch)(schema, rows, labels)
        return made

    def _fit_batch(self, schema: Schema, rows: Sequence[Row], labels: Sequence[Any]) -> None:
        if self._needs_features(schema):
            self._wrap(schema, rows)
        X, y = self._examples(schema, rows, labels)
        with _failing:
            fitted = self.native.fit(X, y)
        if fitted is not None and has_method(fitted, "predict"):
            self.native = fitted
        self.fitted = True
        self._prepare()
        if self.kind in BUILT_IN:
            self.columns = tuple(self.native.columns_)
        if self.task == "classification":
            self.classes = (None if self.coded else natives.classes_of(self.native)) or self.classes
            if self._split is None and has_method(self.native, "predict_proba"):
                self.argmax = self._agrees(X[:: max(1, len(X) // natives.SAMPLE)])

    def learn(self, schema: Schema, rows: Sequence[Row], labels: Sequence[Any]) -> None:
        """Take more labelled rows into this very model, in their order.

        Raises:
            WrongState: the model cannot learn on top of what it knows.
            ModelFailed: the model raised.
        """
        X, y = self._examples(schema, rows, labels)
        with _failing:
            if self.kind == "river":
                for row, label in zip(X, y, strict=True):
                    self.native.learn_one(row, label)
            elif has_method(self.native, "learn"):
                self.native.learn(X, y)
            elif not has_method(self.native, "partial_fit"):
                raise WrongState("this model has neither `learn` nor `partial_fit`")
            else:
                named = self.classes and "classes" in natives.arguments_of(self.native.partial_fit)
                known = {"classes": natives.as_vector(self.classes or ())} if named else {}
                self.native.partial_fit(X, y, **known)
        if self.task == "classification" and not self.coded:
            self.classes = natives.classes_of(self.native) or self.classes
        self.fitted = True
        self._prepare()

    def _examples(
        self, schema: Schema, rows: Sequence[Row], labels: Sequence[Any]
    ) -> tuple[Any, Any]:
        """What the native model learns from; the task, columns and classes follow from it."""
        self.task = natives.task_of_fit(self.task, schema)
        if self.columns is None and not schema.open:
            self.columns = tuple(field.name for field in schema.fields if field.used)
        if self.task == "classification":
            self.classes = natives.ordered_classes([*(self.classes or ()), *labels], schema)
        return self._reader(schema, fitting=True)(rows), self._labels(schema, labels)

    def _fresh(self, parameters: Mapping[str, Any]) -> Any:
        """An unfitted copy of the native model with these parameters."""
        if self.maker is not None:
            return estimator(self.maker["path"], {**self.maker["parameters"], **parameters})
        inner = self._last
        check_parameters(type(inner), parameters, settings_of(inner))
        with _failing:
            if self.kind == "river":
                return inner.clone(dict(parameters)) if parameters else inner.clone()
            if self.kind in BUILT_IN:
                made = type(inner)(**inner.get_params())
            elif has_method(inner, "get_params") and has_method(inner, "set_params"):
                from sklearn.base import clone

                made = clone(inner, safe=False)
            else:
                made = copy.deepcopy(inner)
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
        if schema.open or self._form or natives.brings_features(self.native):
            return False
        missing = any(field.nullable for field in schema.fields if field.used)
        return not schema.numeric or (missing and not natives.takes_missing(self.native))

    def _wrap(self, schema: Schema, rows: Sequence[Row]) -> None:
        frame = features.frame(schema, [each.name for each in schema.fields if each.used])(rows)
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
        y = natives.as_vector(labels)
        if self.kind in BUILT_IN and schema.output is not None:
            import pandas as pd

            return pd.Series(y, name=schema.output.name)
        return y

    def _codes(self, labels: Sequence[Any]) -> Any:
        """Labels as the library wants them where it does not take any: numbers, or truth."""
        classes = self.classes or ()
        if self.kind == "xgboost":
            self.coded = True
            return natives.as_vector([classes.index(label) for label in labels])
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
        with _failing:
            probabilities = natives.as_matrix(self.native.predict_proba(X), len(self.classes or ()))
            if probabilities is None:
                return False
            said = natives.plain_list(self.native.predict(X))
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
        way = self._way
        if way is None or way[0] is not schema:
            self._asks = self._asks or self._shortest(schema)
            way = self._way = (schema, self._reader(schema))
        X = way[1](rows)
        with _failing:
            answers = self._each(X) if self.kind in PER_ROW else self._call(X)
        for said in (answers.outputs, answers.probabilities):
            if said is not None and len(said) != len(rows):
                raise ModelFailed(f"the model answered {len(rows)} rows with {len(said)} outputs")
        return answers

    def _shortest(self, schema: Schema) -> tuple[Ask | None, Ask]:
        """How the model is asked for probabilities, where it knows any, and for its answers."""
        if self.kind in PER_ROW:
            return None, self.native
        chances = self.task == "classification"
        if self._split is not None:
            before, call = self._split
            change = folding.quick(before, "transform") if before is not None else None
            said = call if change is None else lambda X: call(change(X))
            return (lambda X: _pairs(said(X))) if chances else None, said
        ranges = [(f.minimum or 0.0, f.maximum or 0.0) for f in schema.fields if f.used]
        asked = None
        if chances and has_method(self._last, "predict_proba"):
            asked = folding.quick(self._last, "predict_proba", ranges)
            if self.argmax:
                return asked, self._last.predict
        return asked, folding.quick(self._last, "predict", ranges)

    def _call(self, X: Any) -> Answers:
        chances, ask = self._asks  # type: ignore[misc]
        found = None if chances is None else natives.as_matrix(chances(X), len(self.classes or ()))
        if found is None:
            return Answers(outputs=self._said(ask(X)))
        best = self.argmax or self._split is not None
        return Answers(
            outputs=self._named(found.argmax(axis=1).tolist()) if best else self._said(ask(X)),
            probabilities=list(map(tuple, found.tolist())),
        )

    def _named(self, indices: Sequence[int]) -> list[Any]:
        classes = self.classes or ()
        return [classes[i] for i in indices]

    def _said(self, values: Any) -> list[Any]:
        found = natives.plain_list(values)
        if self.coded:
            return self._named(found)
        if self.task == "regression":
            return [float(v) if isinstance(v, int) else v for v in found]
        return found

    def _each(self, X: Sequence[dict[str, Any]]) -> Answers:
        if self.kind != "river":
            said = [natives.plain_answer(self._call_row(row)) for row in X]
            return Answers(outputs=self._said(said))
        proba = self.task == "classification" and has_method(self.native, "predict_proba_one")
        ask = self.native.predict_proba_one if proba else self.native.predict_one
        found = [ask(row) for row in X]
        if any(each is None or each == {} for each in found):
            raise NotReady("this model has not learned anything yet")
        if not proba:
            return Answers(outputs=self._said([native(each) for each in found]))
        classes = self.classes or ()
        keys = (False, True)[-len(classes) :] if self.coded else classes
        chances = [tuple(float(each.get(key, 0.0)) for key in keys) for each in found]
        best = [max(range(len(keys)), key=each.__getitem__) for each in chances]
        return Answers(outputs=self._named(best), probabilities=chances)

    def _reader(self, schema: Schema, fitting: bool = False) -> features.Reader:
        """How rows become what the native model is handed: array, frame or dicts."""
        if self._form == "rows":
            return partial(self._dicts, schema)
        used = [each.name for each in schema.fields if each.used]
        names = self.columns or used
        lost = [] if fitting or schema.open else [name for name in names if name not in used]
        if lost:
            raise ModelFailed(f"the model was fitted on {listing(lost)}, which the schema lacks")
        if self.wrapped and self.fitted:
            return features.quick(self.native, schema)
        if schema.numeric and self._form is None and not (fitting and self.kind in BUILT_IN):
            return features.array(schema, names)
        read = features.frame(schema, names)
        if self._form is None and schema.open:
            return lambda rows: read(rows).to_numpy(dtype="float64")
        if self.kind == "lightgbm" and not self.wrapped:
            return lambda rows: natives.as_categories(read(rows))
        return read

    def _dicts(self, schema: Schema, rows: Sequence[Row]) -> list[dict[str, Any]]:
        if schema.open:
            return [dict(row[0]) for row in rows]  # type: ignore[arg-type]
        names = [(i, field.name) for i, field in enumerate(schema.fields) if field.used]
        # River says that a value is missing by leaving it out.
        gaps = self.kind != "river"
        return [{name: row[i] for i, name in names if gaps or row[i] is not None} for row in rows]


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
            reason = f"{obj.__name__}() could not be made: {type(error).__name__}: {error}"
            raise InvalidInput(f"{told}: {reason}") from error
    kind = natives.kind_of(obj)
    if kind is None or inspect.iscoroutinefunction(getattr(obj, "predict", obj)):
        wrong = f"a {type(obj).__name__} has no `predict`" if kind is None else "async predict"
        raise InvalidInput(
            f"{told} cannot be adopted: {wrong}; give an object with a synchronous "
            "`predict(X)`, a River model with `predict_one`, or a function of one row"
        )
    adopted = Adopted(obj, kind)
    adopted.fitted = natives.is_fitted(obj, kind)
    if adopted.fitted:
        _describe_fit(adopted)
    return adopted


def restore(native: Any, kind: str, state: Mapping[str, Any]) -> Adopted:
    """The model whose native part and state were stored; it belongs to nobody else."""
    if kind in ("sklearn", "xgboost"):
        natives.forget_names(native)
    adopted = Adopted(native, kind, state)
    if isinstance(native, Model):
        with _failing:
            native.loaded()
    return adopted


def _describe_fit(adopted: Adopted) -> None:
    """Read classes, columns and the way to answer off a model that came fitted."""
    obj = adopted.native
    adopted._prepare()
    booster = is_a(obj, "Booster")
    names = getattr(obj, "columns_" if adopted.kind in BUILT_IN else "feature_names_in_", None)
    if booster:
        names = getattr(obj, "feature_name", lambda: obj.feature_names)()
    if names is not None and not str(names[0]).startswith("Column_"):
        adopted.columns = tuple(map(str, names))
    if adopted.task != "classification":
        return
    declared = natives.declared_by(obj, adopted.kind)
    known = declared.output.categories if declared and declared.output else None
    found = natives.booster_classes(obj) if booster else natives.classes_of(obj)
    adopted.classes = found or known
    last = obj.steps[-1][1] if is_a(obj, "Pipeline") else obj
    ours = type(last).__module__.startswith(LIBRARIES)
    adopted.argmax = ours and type(last).__name__ in _ARG_MAX
    if adopted.kind == "river" and has_method(obj, "predict_proba_one"):
        adopted.classes = tuple(obj.predict_proba_one({}))


class _Failing:
    """Turns whatever a model raises into `ModelFailed`, with its own type and message."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # The code inside is the user's, and may raise anything.
        if isinstance(error, Exception) and not isinstance(error, LooplineError):
            raise ModelFailed(f"{type(error).__name__}: {error}") from error


_failing = _Failing()


def _pairs(raw: Any) -> Any:
    """What a booster says, as the probabilities of all classes."""
    return np.array((1.0 - raw, raw)).T if raw.ndim == 1 else raw
