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
    if isinstance(value, list | tuple):
        items = [plain_value(each) for each in value]
        return NOT_PLAIN if any(each is NOT_PLAIN for each in items) else items
    finite = isinstance(value, float) and math.isfinite(value)
    return value if finite or value is None or isinstance(value, int | str) else NOT_PLAIN


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
    made, given = imported(path), parameters or {}
    able = has_method(made, "predict", "predict_one")
    if able and not given and not inspect.isclass(made):
        return made
    if not able or not inspect.isclass(made):
        raise _unusable(path, "is not a class with `predict`")
    check_parameters(made, given)
    try:
        return made(**given)
    except LooplineError:
        raise
    except Exception as error:  # Anything may go wrong in a constructor that is not ours.
        raise _unusable(path, f"could not be made: {type(error).__name__}: {error}") from error


def imported(path: str) -> Any:
    """What an import path names; it raises what `estimator` does where it cannot be had."""
    module, _, name = path.rpartition(".")
    root = path.partition(".")[0]
    if not module or root in sys.stdlib_module_names:
        raise _unusable(path, "is not an import path such as lightgbm.LGBMClassifier")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # A module may do anything while it is imported.
        if isinstance(error, ModuleNotFoundError) and error.name == root and root in EXTRAS:
            extra = "stats" if root == "statsmodels" else root
            told = f"{path} needs {root}, which is not installed: pip install 'loopline[{extra}]'"
            raise MissingExtra(told) from error
        raise _unusable(path, f"cannot be imported: {type(error).__name__}: {error}") from error


def _unusable(path: str, reason: str) -> InvalidInput:
    return InvalidInput.at(f"{path} {reason}", "/estimator")


def check_parameters(kind: type, given: Iterable[str], settings: Iterable[str] = ()) -> None:
    """Refuse parameters that are neither settings of a model nor arguments of its class.

    Raises:
        InvalidInput: names every unknown one, and lists those that there are.
    """
    names = set(arguments_of(kind))
    more = lightgbm_names() if kind.__module__.startswith("lightgbm") else None
    if "**" in names and more is None:
        return
    unknown = [name for name in given if name not in {*settings, *names, *(more or ())}]
    if unknown:
        told = f"is not a parameter; there are {listing(sorted(settings or names - {'**'}), 60)}"
        fields = [FieldError(f"/parameters/{name}", f"{name!r} {told}") for name in unknown]
        raise InvalidInput(fields[0].detail, fields=fields)
