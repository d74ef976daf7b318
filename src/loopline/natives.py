"""Looking at a model that somebody else wrote: its kind, its task, what it takes, what it said.

Everything is found by duck typing and by the names of classes, so that no library is imported
that the model does not bring along.
"""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from loopline.errors import InvalidInput
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
    transforming = ("Pipeline", "ColumnTransformer", "TransformerMixin")
    return any(is_a(part, *transforming) for part in parts(estimator))


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


def forget_names(estimator: Any) -> None:
    """Let a loaded estimator, unless nested or foreign, take arrays without a warning of names."""
    inside = parts(estimator)
    plain = is_a(estimator, "Pipeline") or len(inside) == 1
    ours = all(home_of(part).startswith(LIBRARIES) for part in inside)
    for part in inside if plain and ours and not wants_frame(estimator) else ():
        vars(part).pop("feature_names_in_", None)


def takes_missing(estimator: Any) -> bool:
    """Whether the estimator accepts NaN among its numbers."""
    if home_of(estimator).startswith(("lightgbm", "xgboost")):
        return True
    from sklearn.utils import get_tags

    with suppress(AttributeError, TypeError):
        return bool(get_tags(estimator).input_tags.allow_nan)
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
    found = [each for each in (getattr(obj, name, None) for name in names) if callable(each)]
    return any(getattr(each, "__module__", "") != "loopline.model" for each in found)


def kind_of(obj: Any) -> str | None:
    """Which of the kinds of `model.Adopted` an object is, None where it cannot predict."""
    home = home_of(obj)
    if home == "loopline.builtin":
        return str(obj.kind)
    if inspect.isroutine(obj):
        return "function"
    if has_method(obj, "learn_one") and has_method(obj, "predict_one"):
        return "river"
    if not has_method(obj, "predict"):
        return None
    if home.startswith(("lightgbm", "xgboost")):
        return home.partition(".")[0]
    if is_a(obj, "BaseEstimator"):
        return "sklearn"
    return "mlmodel" if set(_MLMODEL) <= set(dir(obj)) else "class"


def form_of(native: Any, kind: str) -> str | None:
    """How the native model takes rows: as rows, as a frame, or (None) as numbers where they are."""
    if kind in PER_ROW:
        return "rows"
    for part in parts(native):
        if getattr(part, "inputs", None) in ("rows", "frame"):
            return str(part.inputs)
    named = kind != "lightgbm" and getattr(native, "feature_names_in_", None) is not None
    named = named and not (kind == "xgboost" and booster_of(native))
    by_formula = hasattr(getattr(native, "model", None), "formula")
    return "frame" if named or by_formula or wants_frame(native) else None


def task_of(native: Any, kind: str) -> str:
    """What a model says of its task: classification, regression, or (it says nothing) other."""
    if kind in BUILT_IN:
        return "regression"
    if kind == "river":
        last = getattr(native, "_last_step", native)
        return either(is_a(last, "Classifier"), is_a(last, "Regressor"))
    if is_a(native, "Booster"):
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

        with suppress(NotFittedError):
            check_is_fitted(native)
            return True
        return False
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
    found: Any = getattr(native, "classes_", None)
    found = found.tolist() if hasattr(found, "tolist") else found
    return tuple(found) if found and not isinstance(found[0], list) else None


def booster_classes(booster: Any) -> tuple[int, ...] | None:
    """The classes of a bare booster by number, None for a regression."""
    objective, count = _objective(booster)
    if objective in ("binary", "binary:logistic"):
        return 0, 1
    many = objective in ("multiclass", "multiclassova", "multi:softprob")
    return tuple(range(count)) if many else None


def _objective(booster: Any) -> tuple[str, int]:
    """What a booster was trained for, and its number of classes; "" where XGBoost wants more."""
    if home_of(booster).startswith("lightgbm"):
        told = booster.dump_model(num_iteration=1)
        return told.get("objective", "").partition(" ")[0], told["num_class"]
    told = json.loads(booster.save_config())["learner"]
    odd = told["gradient_booster"]["name"] == "gblinear" or "c" in (booster.feature_types or ())
    return "" if odd else told["objective"]["name"], int(told["learner_model_param"]["num_class"])


def booster_of(native: Any) -> tuple[Any, Callable[[Any], Any]] | None:
    """The transformers, and the booster's call in place of its library's slower wrapper.

    The call gives a number for each row, the second class's probability, or those of all classes.
    """
    before, last = None, native
    if is_a(native, "Pipeline") and isinstance(native.steps, list):
        before, last = (native[:-1] if len(native.steps) > 1 else None), native.steps[-1][1]
    home, bare = home_of(last).partition(".")[0], is_a(last, "Booster")
    if home not in ("lightgbm", "xgboost") or callable(getattr(last, "objective", None)):
        return None
    if home == "lightgbm":
        return before, _lightgbm_call(last if bare else last.booster_)
    booster = last if bare else last.get_booster()
    unlike = has_method(last, "predict_proba") and booster_classes(booster) is None
    if unlike or not _objective(booster)[0]:
        return None
    return before, partial(
        booster.inplace_predict,
        iteration_range=(0, 0 if bare else getattr(last, "best_iteration", -1) + 1),
        missing=getattr(last, "missing", math.nan),
        validate_features=False,
    )


def _lightgbm_call(booster: Any) -> Callable[[Any], Any]:
    """LightGBM's `predict` on one thread, without making its predictor anew for every call."""
    from lightgbm import basic

    slow: Callable[[Any], Any] = partial(booster.predict, num_threads=1)
    try:
        held = basic._InnerPredictor.from_booster(booster, {"num_threads": 1})
        quick = partial(held.predict, num_iteration=booster.best_iteration)
        row = np.zeros((1, booster.num_feature()))
        return quick if np.array_equal(quick(row), slow(row)) else slow
    except (AttributeError, TypeError):
        return slow


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
    if is_a(native, "Booster"):
        count = (getattr(native, "num_feature", None) or native.num_features)()
    return tuple(f"x{i + 1}" for i in range(count or 0))


def declared_by(native: Any, kind: str) -> Schema | None:
    """The schema that a model declares; one that cannot be read takes any object."""
    if kind == "function":
        return Schema.declare(native)
    said: list[Any] = [getattr(native, f"{side}_schema", None) for side in ("input", "output")]
    if said[0] is None:
        return None
    # The `schema` package's declarations can be written as JSON Schema.
    said = [each.json_schema("model") if hasattr(each, "json_schema") else each for each in said]
    try:
        return Schema.declare(*said)
    except InvalidInput:
        if kind != "mlmodel":
            raise
        return None


def row_caller(native: Any, kind: str) -> Callable[[dict[str, Any]], Any]:
    """How a function, or an object of the `ml-base` manner, is called with one row."""
    call: Callable[..., Any] = native.predict if kind == "mlmodel" else native
    if kind not in ("function", "mlmodel"):
        return call
    if kind == "function":
        fields = [field.name for field in Schema.declare(native).fields]
        if fields == [name for name in arguments_of(native) if name != "**"]:
            return lambda row: call(**row)
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError):
        hints = typing.get_type_hints(call)
    hint = next((hints.get(name) for name in arguments_of(call)), None)
    if kind == "mlmodel" and hint in (None, Any):
        hint = native.input_schema if hasattr(native.input_schema, "model_validate") else hint
    read = record_reader(hint)
    return lambda row: call(read(row))


def record_reader(hint: Any) -> Callable[[dict[str, Any]], Any]:
    """How a row becomes the record that a model asks for: a dict unless it names a record."""
    if hasattr(hint, "model_validate"):
        return lambda row: hint.model_validate(row)
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
    if isinstance(values, list) and values and hasattr(values[0], "ndim"):
        return None
    found = np.asarray(values, dtype=np.float64)
    return found if found.ndim == 2 and found.shape[1] == classes else None


def as_vector(labels: Sequence[Any]) -> Any:
    """Labels as an array that keeps their type, so that the classes come back in it."""
    kinds = {type(label) for label in labels}
    alike = len(kinds) == 1 or kinds == {int, float}
    return np.array(labels, dtype=None if alike else object)


def ordered_classes(labels: Iterable[Any], schema: Schema) -> tuple[Any, ...]:
    """The classes among labels: those that the schema knows, or else all of them, sorted."""
    found = set(labels)
    known = schema.output.categories if schema.output else None
    if known is not None and found <= set(known):
        return known
    return tuple(sorted(found, key=lambda label: (type(label).__name__, label)))


def as_categories(frame: Any) -> Any:
    """Text columns as pandas categories, which is how a booster was trained that knows any."""
    texts = frame.select_dtypes("object").columns
    return frame.astype(dict.fromkeys(texts, "category")) if len(texts) else frame


def arguments_of(call: Any) -> list[str]:
    """The names of a callable's parameters; `**` stands for any other."""
    try:
        found = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return ["**"]
    named = [each for each in found if each.kind is not each.VAR_POSITIONAL]
    return ["**" if each.kind is each.VAR_KEYWORD else each.name for each in named]


def reporter(native: Any) -> Callable[[], Any] | None:
    """What tells of a model's fit: its `report`, or the summary of a result of statsmodels."""
    name = "summary" if home_of(native).startswith("statsmodels.") else "report"
    return getattr(native, name) if has_method(native, name) else None


def as_report(found: Any) -> dict[str, Any]:
    """What such a function told, as {"html": text, "json": figures}."""
    if isinstance(found, Mapping):
        return dict(found) if {"html", "json"} <= set(found) else {"html": "", "json": dict(found)}
    if hasattr(found, "as_html"):
        found = found.as_html()
    return {"html": str(found), "json": {}}
