"""The public names of the package: few, sorted, complete, and loaded only when asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import loopline

SOURCE = ast.parse(Path(loopline.__file__).read_text("utf-8"))


def test_names_are_few_and_sorted() -> None:
    """At most twenty names, in order, so that a newcomer can read them all."""
    assert loopline.__all__ == sorted(set(loopline.__all__))
    assert len(loopline.__all__) <= 20


@pytest.mark.parametrize("name", loopline.__all__)
def test_name_is_importable(name: str) -> None:
    """Every advertised name exists, explains itself and shows up in `dir`."""
    assert getattr(loopline, name).__doc__
    assert name in dir(loopline)


def test_type_checkers_see_the_same_names() -> None:
    """What a type checker reads and what is loaded at run time come from the same modules."""
    typed = {
        alias.name: node.module
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopline.")
        for alias in node.names
    }
    assert typed == {name: f"loopline.{home}" for name, home in loopline._HOMES.items()}
    assert sorted(typed) == loopline.__all__


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails the way it does in any module."""
    with pytest.raises(AttributeError, match="Lopline"):
        loopline.Lopline  # noqa: B018 - the access itself is what fails
