"""An estimator by its import path, and its parameters: which there are, and what they are."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from loopline.errors import FieldError, InvalidInput, LooplineError, MissingExtra
from loopline.fields import listing, native
from loopline.natives import arguments_of, attributes_of, has_method, lightgbm_names

EXTRAS = ("lightgbm", "xgboost", "river", "statsmodels")
NOT_PLAIN = object()


def plain_value(value: Any) -> Any:
    """A setting as JSON can hold it, `NOT_PLAIN` where it cannot."""
    value = native(value)
    if isinstance(value, float) and not math.isfinite(value):
        return NOT_PLAIN
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [plain_value(each) for each in value]
        return NOT_PLAIN if any(each is NOT_PLAIN for each in items) else items
    return NOT_PLAIN


def settings_of(obj: Any) -> dict[str, Any]:
    """The parameters of an estimator, or the public attributes of any other object."""
    if has_method(obj, "learn_one"):
        return dict(obj._get_params())
    if has_method(obj, "get_params"):
        return dict(obj.get_params())
    public = attributes_of(obj).items() if not inspect.isroutine(obj) else ()
    return {name: value for name, value in public if name[0] != "_" and name[-1] != "_"}


def estimator(path: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """Make the estimator that an import path such as `lightgbm.LGBMClassifier` names.

    Only a class with `predict` is ever called, so that a path cannot run anything else.

    Raises:
        InvalidInput: it cannot be imported, is not a model, or does not take the parameters.
        MissingExtra: its library is an optional one that is not installed.
    """
    made = _imported(path)
    if not inspect.isclass(made):
        if has_method(made, "predict", "predict_one") and not parameters:
            return made
        raise _unusable(path, "is not a class with `predict`")
    if not has_method(made, "predict", "predict_one"):
        raise _unusable(path, "has no `predict`")
    accepted = accepted_by(made)
    if accepted is not None:
        check_names(accepted, parameters or {}, arguments_of(made).keys() - {"**"})
    try:
        return made(**(parameters or {}))
    except LooplineError:
        raise
    except Exception as error:  # Anything may go wrong in a constructor that is not ours.
        raise _unusable(path, f"could not be made: {type(error).__name__}: {error}") from error


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module or module.partition(".")[0] in sys.stdlib_module_names:
        raise _unusable(path, "is not an import path such as lightgbm.LGBMClassifier")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        root = path.partition(".")[0]
        if error.name == root and root in EXTRAS:
            extra = "stats" if root == "statsmodels" else root
            raise MissingExtra(
                f"{path} needs {root}, which is not installed: pip install 'loopline[{extra}]'"
            ) from error
        raise _unusable(path, f"cannot be imported: {error}") from error
    except Exception as error:  # A module may do anything while it is imported.
        raise _unusable(path, f"cannot be imported: {type(error).__name__}: {error}") from error


def _unusable(path: str, reason: str) -> InvalidInput:
    detail = f"{path} {reason}"
    return InvalidInput(detail, fields=[FieldError("/estimator", detail)])


def accepted_by(kind: type) -> set[str] | None:
    """The constructor's arguments, None where it takes any name."""
    names = set(arguments_of(kind))
    if "**" not in names:
        return names
    if not kind.__module__.startswith("lightgbm"):
        return None
    known = lightgbm_names()
    return known and names - {"**"} | known


def check_parameters(obj: Any, given: Mapping[str, Any]) -> None:
    """Refuse parameters that a model does not have."""
    accepted = accepted_by(type(obj))
    if accepted is not None:
        settings = settings_of(obj)
        check_names({*settings, *accepted}, given, settings or accepted)


def check_names(known: Iterable[str], given: Iterable[str], shown: Iterable[str]) -> None:
    """Refuse parameters that are not among the known ones.

    Raises:
        InvalidInput: names every unknown one, and lists those to be `shown`.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        told = f"is not a parameter; there are {listing(sorted(shown), 60)}"
        fields = [FieldError(f"/parameters/{name}", f"{name!r} {told}") for name in unknown]
        raise InvalidInput(fields[0].detail, fields=fields)
