"""Registering: idempotent, refused by field, and trained again when what it learns from changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from sklearn.linear_model import LinearRegression, Ridge

from loopline.artifacts import Keys
from loopline.backends.memory_store import MemoryBlobs, MemoryStore
from loopline.errors import InvalidInput
from loopline.registry import Definition, Registry, define, read_config

ROWS = [{"x": float(n), "y": 2.0 * n} for n in range(12)]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry over memory; its store is `registry.store`."""
    store = MemoryStore()
    made = Registry(store, MemoryBlobs(), Keys(tmp_path / "keys.json"), lambda: None)
    made.store = store  # type: ignore[attr-defined]
    yield made


def line(model: Any = None, rows: Any = ROWS, **more: Any) -> Definition:
    """A definition of a line."""
    frame = None if rows is None else pandas.DataFrame(rows)
    recipe = model or LinearRegression()
    return Definition(name="line", model=recipe, data=frame, target="y", **more)


def reasons(registry: Registry) -> list[str]:
    """Why trainings were queued, oldest first."""
    store: MemoryStore = registry.store  # type: ignore[attr-defined]
    return [job.reason for job in reversed(store.jobs(model="line"))]


def test_the_same_definition_again_changes_nothing(registry: Registry) -> None:
    """One record, one first training, however often it is registered."""
    first = registry.register(line())
    again = registry.register(line())
    assert (again.revision, again.created) == (first.revision, first.created)
    assert reasons(registry) == ["first training"]
    assert first.options["base_rows"] == 12
    assert first.options["base_moments"]["y"]["mean"] == 11.0


def test_a_fitted_estimator_is_served_at_once_and_again_when_it_differs(
    registry: Registry,
) -> None:
    """The same fit is one version; another fit is the next, and the champion."""
    store: MemoryStore = registry.store  # type: ignore[attr-defined]
    for slope in (2.0, 2.0, 3.0):
        fitted = LinearRegression().fit([[0.0], [1.0]], [0.0, slope])
        registry.register(Definition(name="line", model=fitted))
    assert [version.source for version in store.versions("line")] == ["given", "given"]
    assert store.aliases("line").champion == 2
    assert reasons(registry) == []


@pytest.mark.parametrize(
    "changed",
    [
        line(Ridge()),
        line(rows=[*ROWS, {"x": 99.0, "y": 198.0}]),
        line(rows=[{**row, "z": 1.0} for row in ROWS]),
    ],
)
def test_a_model_is_trained_again_when_what_it_learns_from_has_changed(
    registry: Registry, changed: Definition
) -> None:
    """Another estimator, other data, another column: a training, not a silent difference."""
    store: MemoryStore = registry.store  # type: ignore[attr-defined]
    registry.register(line())
    (job,) = store.jobs(model="line")
    store.cancel(job.id)
    registry.register(changed)
    registry.register(line(changed.model, changed.data))
    assert len(reasons(registry)) == 2


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"name": "Line"}, "/name"),
        ({"name": "1st"}, "/name"),
        ({"target": "z"}, "/target"),
        ({"target": None}, "/target"),
        ({"log": "perhaps"}, "/log"),
        ({"task": "magic"}, "/task"),
    ],
)
def test_a_wrong_definition_is_refused_by_field(
    registry: Registry, wrong: dict[str, Any], pointer: str
) -> None:
    """Nothing is stored, and the field is named."""
    good: dict[str, Any] = {
        "name": "line",
        "model": LinearRegression(),
        "data": pandas.DataFrame(ROWS),
        "target": "y",
    }
    with pytest.raises(InvalidInput) as caught:
        registry.register(Definition(**{**good, **wrong}))
    assert pointer in [field.pointer for field in caught.value.fields]
    store: MemoryStore = registry.store  # type: ignore[attr-defined]
    assert store.models() == []


@pytest.mark.parametrize(
    ("table", "pointer"),
    [
        ({}, "/estimator"),
        ({"model": "linear", "formula": "y ~ x"}, "/estimator"),
        ({"model": "magic"}, "/model"),
        ({"model": "linear", "nonsense": 1}, "/nonsense"),
        ({"model": "linear", "parameters": 3}, "/parameters"),
        ({"model": "linear", "target": 3}, "/target"),
        ({"estimator": "no.such.Thing"}, "/estimator"),
        ({"model": "linear", "retrain": {"outcomes": 0}}, "/retrain/outcomes"),
    ],
)
def test_plain_definitions_are_checked_by_key(table: dict[str, Any], pointer: str) -> None:
    """A table of `loopline.toml` and the body of a PUT say what is wrong with them."""
    with pytest.raises(InvalidInput) as caught:
        define("line", table, "api")
    assert pointer in [field.pointer for field in caught.value.fields]


def test_a_configuration_file_is_made_true(registry: Registry, tmp_path: Path) -> None:
    """Models appear, change and go with the file; those from elsewhere stay."""
    store: MemoryStore = registry.store  # type: ignore[attr-defined]
    registry.register(line())
    config = tmp_path / "loopline.toml"
    pandas.DataFrame(ROWS).to_csv(tmp_path / "rows.csv", index=False)
    table = 'model = "linear"\ndata = "rows.csv"\ntarget = "y"\n'
    config.write_text(f"[models.one]\n{table}[models.two]\n{table}")
    assert registry.reload(config) == ["one", "two"]
    assert [record.name for record in store.models()] == ["line", "one", "two"]
    config.write_text(f"[models.two]\n{table}")
    registry.reload(config)
    assert [record.name for record in store.models()] == ["line", "two"]
    config.write_text("[models")
    with pytest.raises(InvalidInput, match=r"loopline\.toml"):
        read_config(config)
