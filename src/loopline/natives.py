"""Looking at a model that somebody else wrote: its kind, its task, what it takes, what it said.

Everything is found by duck typing and by the names of classes, so that no library is imported
that the model does not bring along.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import msgspec

from loopline.errors import InvalidInput, MissingExtra
from loopline.fields import native
from loopline.schema import Schema

BUILT_IN = ("linear", "polynomial", "formula")
PER_ROW = ("river", "mlmodel", "function")
SAMPLE = 1_000
LIBRARIES = ("sklearn.", "lightgbm.", "xgboost.", "loopline.")

_TREES = ("lightgbm", "xgboost", "catboost", "sklearn.tree", "sklearn.ensemble")
_NOT_TREES = ("Voting", "Stacking")
_MLMODEL = ("display_name", "qualified_name", "input_schema", "output_schema")


def parts(estimator: Any) -> list[Any]:
    """The estimator and everything inside it that has parameters, at any depth."""
    if not hasattr(estimator, "get_params") or isinstance(estimator, type):
        return [estimator]
    inner = estimator.get_params(deep=True).values()
    return [estimator, *(part for part in inner if hasattr(part, "get_params"))]


def is_a(part: Any, *names: str) -> bool:
    """Whether an object is of a class of that name, asked without importing its library."""
    return not {kind.__name__ for kind in type(part).__mro__}.isdisjoint(names)


def brings_features(estimator: Any) -> bool:
    """Whether the estimator holds transformers of its own, so that it is left alone."""
    return any(
        is_a(part, "Pipeline", "ColumnTransformer", "TransformerMixin") for part in parts(estimator)
    )


def wants_frame(estimator: Any) -> bool:
    """Whether column names matter to the estimator, or to a transformer in it that is not ours."""
    for part in parts(estimator):
        foreign = not home_of(part).startswith(LIBRARIES) and is_a(part, "TransformerMixin")
        if foreign or is_a(part, "ColumnTransformer", "FunctionTransformer"):
            return True
    return False


def picked(estimator: Any) -> tuple[str, ...] | None:
    """The columns that the first transformer picks by name, where it drops the others."""
    steps = getattr(estimator, "steps", None)
    first = steps[0][1] if isinstance(steps, list) and steps else estimator
    if not is_a(first, "ColumnTransformer") or first.remainder != "drop":
        return None
    chosen = [columns for _, _, columns in first.transformers]
    flat = [name for each in chosen for name in (each if isinstance(each, list) else [each])]
    return tuple(dict.fromkeys(flat)) if all(isinstance(name, str) for name in flat) else None


def forget_names(estimator: Any) -> bool:
    """Let a loaded estimator take arrays without a warning that it was fitted with names.

    Returns:
        Whether it takes arrays now; nested estimators and foreign ones are left as they are.
    """
    inside = parts(estimator)
    plain = is_a(estimator, "Pipeline") or len(inside) == 1
    ours = all(home_of(part).startswith(LIBRARIES) for part in inside)
    if not plain or not ours or wants_frame(estimator):
        return False
    for part in inside:
        vars(part).pop("feature_names_in_", None)
    return True


def takes_missing(estimator: Any) -> bool:
    """Whether the estimator accepts NaN among its numbers."""
    if home_of(estimator).startswith(("lightgbm", "xgboost")):
        return True
    from sklearn.utils import get_tags

    try:
        return bool(get_tags(estimator).input_tags.allow_nan)
    except (AttributeError, TypeError):
        return False


def grows_trees(estimator: Any) -> bool:
    """Whether the estimator, or the one that it searches over, splits on thresholds."""
    inner = getattr(estimator, "estimator", None)
    if inner is not None and not home_of(estimator).startswith(_TREES):
        return grows_trees(inner)
    named = type(estimator).__name__
    return home_of(estimator).startswith(_TREES) and not named.startswith(_NOT_TREES)


def home_of(estimator: Any) -> str:
    """The module that an object's class comes from."""
    return str(type(estimator).__module__)


def has_method(obj: Any, *names: str) -> bool:
    """Whether the object has one of these methods, and not only from `Model`."""
    for name in names:
        found = getattr(obj, name, None)
        if callable(found) and getattr(found, "__module__", "") != "loopline.model":
            return True
    return False


def kind_of(obj: Any) -> str | None:
    """Which of the kinds of `model.Adopted` an object is, None where it cannot predict."""
    home, names = type(obj).__module__, dir(obj)
    if home == "loopline.builtin":
        return str(obj.kind)
    if inspect.isroutine(obj):
        return "function"
    if has_method(obj, "learn_one") and has_method(obj, "predict_one"):
        return "river"
    if not has_method(obj, "predict"):
        return None
    for library in ("lightgbm", "xgboost"):
        if home.startswith(library):
            return library
    if is_a(obj, "BaseEstimator"):
        return "sklearn"
    return "mlmodel" if set(_MLMODEL) <= set(names) else "class"


def form_of(native: Any, kind: str) -> str | None:
    """How the native model takes rows: as rows, as a frame, or (None) as numbers where they are."""
    if kind in PER_ROW:
        return "rows"
    for part in parts(native):
        if getattr(part, "inputs", None) in ("rows", "frame"):
            return str(part.inputs)
    named = kind != "lightgbm" and getattr(native, "feature_names_in_", None) is not None
    by_formula = hasattr(getattr(native, "model", None), "formula")
    return "frame" if named or by_formula or wants_frame(native) else None


def task_of(native: Any, kind: str) -> str:
    """What a model says of its task: classification, regression, or (it says nothing) other."""
    if kind in BUILT_IN:
        return "regression"
    if kind == "river":
        last = getattr(native, "_last_step", native)
        return either(is_a(last, "Classifier"), is_a(last, "Regressor"))
    if kind == "lightgbm" and is_a(native, "Booster"):
        return either(booster_classes(native) is not None, True)
    if kind in ("sklearn", "lightgbm", "xgboost"):
        from sklearn.base import is_classifier, is_regressor

        return either(bool(is_classifier(native)), bool(is_regressor(native)))
    if kind == "class" and (has_method(native, "predict_proba") or hasattr(native, "classes_")):
        return "classification"
    told = getattr(native, "task", None) or getattr(native, "_estimator_type", None)
    declared = declared_by(native, kind)
    if declared is not None and declared.output is not None:
        return task_of_fit("other", declared)
    return either(told in ("classification", "classifier"), told in ("regression", "regressor"))


def either(classification: bool, regression: bool) -> str:
    """The name of the task of which one is asked for."""
    return "classification" if classification else "regression" if regression else "other"


def task_of_fit(task: str, schema: Schema) -> str:
    """The task that the schema's output implies, where the model leaves it open."""
    if task != "other" or schema.output is None:
        return task
    kind = schema.output.kind
    return either(kind in ("category", "boolean"), kind in ("number", "integer"))


def is_fitted(native: Any, kind: str) -> bool:
    """Whether a model can answer as it is.

    A class with `fit` counts as fitted where it has a true `fitted`, or an attribute whose name
    ends with an underscore; a River model where it is not as a fresh clone of it would be.
    """
    if kind == "river":
        return bool(plain_state(native) != plain_state(native.clone()))
    if not has_method(native, "fit"):
        return True
    if kind in ("sklearn", "lightgbm", "xgboost"):
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        try:
            check_is_fitted(native)
        except NotFittedError:
            return False
        return True
    if hasattr(native, "__sklearn_is_fitted__"):
        return bool(native.__sklearn_is_fitted__())
    marks = (name for name in attributes_of(native) if name.endswith("_") and name[0] != "_")
    return bool(getattr(native, "fitted", False) or any(marks))


def plain_state(part: Any, seen: frozenset[int] = frozenset()) -> Any:
    """The plain state inside a River model, to compare it with that of a fresh one."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if id(part) in seen or callable(part) or "andom" in type(part).__name__:
        return None
    seen |= {id(part)}
    if hasattr(part, "keys"):
        return {str(key): plain_state(part[key], seen) for key in part.keys()}
    if isinstance(part, list | tuple | set):
        return [plain_state(each, seen) for each in part]
    return {name: plain_state(value, seen) for name, value in attributes_of(part).items()}


def attributes_of(part: Any) -> dict[str, Any]:
    """The attributes of an instance, none where it keeps them elsewhere."""
    return dict(getattr(part, "__dict__", {}))


def classes_of(native: Any) -> tuple[Any, ...] | None:
    """The classes that a fitted classifier knows, as plain values."""
    found = getattr(native, "classes_", None)
    if found is not None and hasattr(found, "tolist"):
        found = found.tolist()
    return tuple(found) if found and not isinstance(found[0], list) else None


def booster_classes(booster: Any) -> tuple[int, ...] | None:
    """The classes of a bare LightGBM booster by number, None for a regression."""
    head = booster.model_to_string(num_iteration=1)
    told = re.search(r"^objective=(\w+)", head, re.MULTILINE)
    count = re.search(r"^num_class=(\d+)", head, re.MULTILINE)
    objective = told[1] if told else ""
    if objective == "binary":
        return 0, 1
    many = objective in ("multiclass", "multiclassova")
    return tuple(range(int(count[1]))) if many and count else None


def booster_of(native: Any) -> tuple[Any, Any] | None:
    """The transformers and the booster to call in place of LightGBM's slower wrapper."""
    before, last = None, native
    if is_a(native, "Pipeline") and isinstance(native.steps, list):
        before, last = (native[:-1] if len(native.steps) > 1 else None), native.steps[-1][1]
    if not type(last).__module__.startswith("lightgbm"):
        return None
    if is_a(last, "Booster"):
        return before, last
    return None if callable(last.objective) else (before, last.booster_)


def booster_text(booster: Any) -> str:
    """A LightGBM booster in the library's own text format."""
    return str(booster.model_to_string())


def booster_from(text: str) -> Any:
    """The LightGBM booster that a text describes.

    Raises:
        MissingExtra: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtra(
            "this model needs lightgbm, which is not installed: pip install 'loopline[lightgbm]'"
        ) from error
    return lightgbm.Booster(model_str=text)


def lightgbm_names() -> set[str] | None:
    """Every parameter that LightGBM knows under any name, None where it does not say."""
    from lightgbm import basic

    if not hasattr(basic, "_ConfigAliases"):
        return None
    aliases = basic._ConfigAliases._get_all_param_aliases()
    return {*aliases, *(name for group in aliases.values() for name in group)}


def numbered_columns(native: Any) -> tuple[str, ...]:
    """Names for the columns of a model that was fitted without any: x1, x2 and so on."""
    count = getattr(native, "n_features_in_", None)
    count = native.num_feature() if is_a(native, "Booster") else count
    return tuple(f"x{i + 1}" for i in range(count or 0))


def declared_by(native: Any, kind: str) -> Schema | None:
    """The schema that a model declares; one that cannot be read takes any object."""
    if kind == "function":
        return Schema.declare(native)
    given, answer = (getattr(native, name, None) for name in ("input_schema", "output_schema"))
    if given is None:
        return None
    try:
        return Schema.declare(_declaration(given), _declaration(answer))
    except InvalidInput:
        if kind != "mlmodel":
            raise
        return None


def _declaration(given: Any) -> Any:
    """What the `schema` package declares, as the JSON Schema that it can write."""
    return given.json_schema("model") if hasattr(given, "json_schema") else given


def row_caller(native: Any, kind: str) -> Callable[[dict[str, Any]], Any]:
    """How a function, or an object of the `ml-base` manner, is called with one row."""
    if kind == "function":
        names = list(arguments_of(native))
        fields = [field.name for field in Schema.declare(native).fields]
        if fields == [name for name in names if name != "**"]:
            return lambda row: native(**row)
        read = record_reader(hint_of(native))
        return lambda row: native(read(row))
    if kind == "mlmodel":
        hint = hint_of(native.predict)
        if hint in (None, Any) and hasattr(native.input_schema, "model_validate"):
            hint = native.input_schema
        read = record_reader(hint)
        return lambda row: native.predict(read(row))
    return native  # type: ignore[no-any-return]


def hint_of(function: Any) -> Any:
    """The type of a function's first argument, None where it says nothing that can be read."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        return None
    return next((hints.get(name) for name in arguments_of(function)), None)


def record_reader(hint: Any) -> Callable[[dict[str, Any]], Any]:
    """How a row becomes the record that a model asks for: a dict unless it names a record."""
    if hasattr(hint, "model_validate"):
        validate: Callable[[dict[str, Any]], Any] = hint.model_validate
        return validate
    if not isinstance(hint, type):
        return dict
    if is_dataclass(hint) or issubclass(hint, msgspec.Struct):
        return partial(msgspec.convert, type=hint)
    return (lambda row: hint(**row)) if issubclass(hint, tuple) else dict


def plain_answer(said: Any) -> Any:
    """An answer as a plain value; a record of one field is that field's value."""
    if hasattr(said, "model_dump"):
        said = said.model_dump()
    elif is_dataclass(said) or isinstance(said, msgspec.Struct):
        names = getattr(said, "__struct_fields__", None) or vars(said)
        said = {name: getattr(said, name) for name in names}
    if not isinstance(said, Mapping):
        return native(said)
    plain = {str(name): native(value) for name, value in said.items()}
    return next(iter(plain.values())) if len(plain) == 1 else plain


def plain_list(values: Any) -> list[Any]:
    """A model's answers as a list of plain values."""
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if getattr(values, "ndim", 1) == 2 and values.shape[1] == 1:
        values = values.ravel()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise TypeError(f"predict gave a {type(values).__name__} instead of one value per row")
    plain = values.tolist() if hasattr(values, "tolist") else values
    if getattr(getattr(values, "dtype", None), "kind", "O") in "biufU":
        return list(plain)
    return [native(value) for value in plain]


def as_matrix(values: Any, classes: int) -> Any:
    """Probabilities as an array of shape (n, classes), None where they have another shape."""
    import numpy as np

    if isinstance(values, list) and values and hasattr(values[0], "ndim"):
        return None
    found = np.asarray(values, dtype=np.float64)
    return found if found.ndim == 2 and found.shape[1] == classes else None


def as_vector(labels: Sequence[Any]) -> Any:
    """Labels as an array that keeps their type, so that the classes come back in it."""
    import numpy as np

    kinds = {type(label) for label in labels}
    if len(kinds) == 1 or kinds == {int, float}:
        return np.asarray(labels)
    mixed = np.empty(len(labels), dtype=object)
    mixed[:] = labels
    return mixed


def sample_of(X: Any) -> Any:
    """About a thousand of the rows, evenly spaced."""
    step = max(1, len(X) // SAMPLE)
    return X.iloc[::step] if hasattr(X, "iloc") else X[::step]


def ordered_classes(labels: Sequence[Any], known: Sequence[Any] | None) -> tuple[Any, ...]:
    """The classes among labels: those that are known already, or else all of them, sorted."""
    found = set(labels)
    if known is not None and found <= set(known):
        return tuple(known)
    return tuple(sorted(found, key=lambda label: (type(label).__name__, label)))


def as_categories(frame: Any) -> Any:
    """Text columns as pandas categories, which is how a booster was trained that knows any."""
    texts = frame.select_dtypes("object").columns
    return frame.astype(dict.fromkeys(texts, "category")) if len(texts) else frame


def arguments_of(call: Any) -> dict[str, Any]:
    """The named parameters of a callable; `**` stands for any other."""
    try:
        found = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return {"**": None}
    kinds = {each.kind for each in found}
    named = {
        each.name: each
        for each in found
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }
    return {**named, **({"**": None} if inspect.Parameter.VAR_KEYWORD in kinds else {})}


def has_summary(obj: Any) -> bool:
    """Whether this is a result of statsmodels, whose report is its summary."""
    return type(obj).__module__.startswith("statsmodels.") and has_method(obj, "summary")


def as_report(found: Any) -> dict[str, Any]:
    """What a model's `report` returned, as {"html": text, "json": figures}."""
    if isinstance(found, Mapping):
        return dict(found) if {"html", "json"} <= set(found) else {"html": "", "json": dict(found)}
    if hasattr(found, "as_html"):
        found = found.as_html()
    return {"html": str(found), "json": {}}
