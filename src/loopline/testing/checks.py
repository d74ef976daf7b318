"""Checks that any model should pass before it is served: small, named, each telling one thing."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.artifacts import Keys, load, save
from loopline.backends.files import FileBlobs
from loopline.errors import InvalidInput
from loopline.model import Adopted, Answers, adopt
from loopline.schema import Schema

Check = Callable[[], None]
SEEDS = ("random_state", "seed")


def check_model(
    obj: Any, rows: Sequence[Mapping[str, Any]], labels: Sequence[Any]
) -> Iterator[tuple[str, Check]]:
    """Yield the checks of a model; each is called without arguments and raises `AssertionError`.

    Args:
        obj: anything that can be adopted, fitted or not.
        rows: at least two labelled rows, as records.
        labels: a class or a number for each row; only read where the model can be fitted.
    """
    subject = _Subject(obj, rows, labels)
    for name in sorted(name for name in dir(subject) if name.startswith("check_")):
        yield name.removeprefix("check_"), getattr(subject, name)


class _Subject:
    """A model under check, fitted once, with rows to ask it about."""

    def __init__(self, obj: Any, rows: Sequence[Mapping[str, Any]], labels: Sequence[Any]) -> None:
        self.recipe = adopt(obj)
        self.labels = list(labels)
        self.schema = _schema_of(self.recipe, rows, labels)
        self.records = [dict(row) for row in rows]
        self.rows = [self.schema.row(record) for record in self.records]
        fits = "fit" in self.recipe.capabilities
        self.model = self._fitted() if fits else self.recipe

    def _fitted(self, **parameters: Any) -> Adopted:
        return self.recipe.fit(self.schema, self.rows, self.labels, parameters)

    def _ask(self, rows: Sequence[Any]) -> Answers:
        return self.model.answer(self.schema, rows)

    def check_inputs_are_untouched(self) -> None:
        """Neither fitting nor answering changes what was handed over."""
        before = copy.deepcopy((self.rows, self.labels))
        if "fit" in self.recipe.capabilities:
            self._fitted()
        self._ask(self.rows)
        assert (self.rows, self.labels) == before, "the model changed its input"

    def check_save_and_load(self) -> None:
        """A stored and loaded model gives the same answers."""
        with tempfile.TemporaryDirectory() as folder:
            blobs, keys = FileBlobs(Path(folder, "blobs")), Keys(Path(folder, "keys.json"))
            again = load(save(self.model, blobs, keys), blobs, keys)
        _same(self._ask(self.rows), again.answer(self.schema, self.rows), "after loading")

    def check_single_is_batch(self) -> None:
        """A row alone gets the answer that it gets among others."""
        batch = self._ask(self.rows)
        for i, row in enumerate(self.rows):
            _same(_picked(batch, [i]), self._ask([row]), f"row {i} alone and among others")

    def check_order_is_kept(self) -> None:
        """Rows in the reverse order get their answers in the reverse order."""
        back = list(range(len(self.rows)))[::-1]
        turned = self._ask([self.rows[i] for i in back])
        _same(_picked(self._ask(self.rows), back), turned, "in the reverse order")

    def check_column_order_is_irrelevant(self) -> None:
        """A record means the same however its fields are ordered."""
        turned = [dict(reversed(record.items())) for record in self.records]
        rows = [self.schema.row(record) for record in turned]
        _same(self._ask(self.rows), self._ask(rows), "with the columns turned round")

    def check_missing_field_is_refused(self) -> None:
        """A record without a field that the model needs is refused, and the field named."""
        for field in self.schema.fields:
            if field.used and not (field.nullable or field.optional):
                record = {k: v for k, v in self.records[0].items() if k != field.name}
                self._refused(record, field.name)

    def check_extra_field_is_refused(self) -> None:
        """A record with a field that nobody knows is refused, and the field named."""
        if not self.schema.open:
            self._refused({**self.records[0], "no_such_field": 1}, "no_such_field")

    def _refused(self, record: Mapping[str, Any], name: str) -> None:
        try:
            self.schema.row(record)
        except InvalidInput as error:
            assert any(name in field.pointer for field in error.fields), f"{name} was not named"
        else:
            raise AssertionError(f"{name} was not refused")

    def check_repeatable(self) -> None:
        """The same question has the same answer, and with a seed the same training too."""
        first = self._ask(self.rows)
        _same(first, self._ask(self.rows), "when asked again")
        seeds = [name for name in self.recipe.parameters() if name.endswith(SEEDS)]
        if seeds and "fit" in self.recipe.capabilities:
            given = dict.fromkeys(seeds, 7)
            a, b = (self._fitted(**given).answer(self.schema, self.rows) for _ in range(2))
            _same(a, b, "after training again with the same seed")

    def check_unseen_category_is_answered(self) -> None:
        """A category that training did not see gets an answer."""
        for i, field in enumerate(self.schema.fields):
            words = all(isinstance(value, str) for value in field.categories or (1,))
            if field.kind == "category" and words and not field.strict:
                row = list(self.rows[0])
                row[i] = "a category never seen"
                assert len(self._ask([tuple(row)]).outputs) == 1


def _schema_of(recipe: Adopted, rows: Sequence[Mapping[str, Any]], labels: Sequence[Any]) -> Schema:
    if "fit" not in recipe.capabilities and recipe.schema is not None:
        return recipe.schema
    import pandas as pd

    target = "label" if "label" not in rows[0] else "the label"
    frame = pd.DataFrame([{**row, target: label} for row, label in zip(rows, labels, strict=True)])
    told = recipe.task if recipe.task != "other" else None
    schema = Schema.infer(frame, target, task=told)
    wanted = recipe.fields(schema)
    return Schema.infer(frame, target, used=wanted, task=told)


def _picked(answers: Answers, at: Sequence[int]) -> Answers:
    chances = answers.probabilities
    return Answers(
        outputs=[answers.outputs[i] for i in at],
        probabilities=None if chances is None else [chances[i] for i in at],
    )


def _same(a: Answers, b: Answers, when: str) -> None:
    pairs = list(zip(a.outputs, b.outputs, strict=True))
    for left, right in zip(a.probabilities or (), b.probabilities or (), strict=True):
        pairs += zip(left, right, strict=True)
    for left, right in pairs:
        assert _close(left, right), f"{when} the answer was {right!r}, not {left!r}"


def _close(a: Any, b: Any) -> bool:
    if type(a) is float and type(b) is float:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (a != a and b != b)
    return bool(a == b)


__all__ = ["check_model"]
