"""How rows are read off what a caller sends: objects, lists, columns.

A plan is built once for a schema and a purpose (predict or learn, text or not), with everything
looked up beforehand; a good row then costs one check per value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from loopline.fields import Check, Complaints, escaped, listing, shown
from loopline.records import Row


class Slot(NamedTuple):
    """One column of the rows a plan reads."""

    name: str
    check: Check
    required: bool
    default: Any


class Plan:
    """How rows with given columns are read, with everything looked up beforehand.

    `layouts` maps the length of a list row to the slots its values stand for. `target` is a
    column that must not be sent, `listed` whether a flat list of scalars is one row.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        layouts: Mapping[int, tuple[int, ...]],
        target: str | None = None,
        listed: bool = False,
        nested: frozenset[str] = frozenset(),
    ) -> None:
        self.slots = tuple(slots)
        self.layouts = layouts
        self.target = target
        self.listed = listed
        self.nested = nested
        self.width = len(self.slots)
        self.pairs = [(slot.name, slot.check) for slot in self.slots]
        self.checks = [slot.check for slot in self.slots]
        self.names = frozenset(slot.name for slot in self.slots)

    def quick(self, item: Any) -> Row | None:
        """The row of a good item that names every column; None where a closer look is needed."""
        try:
            if type(item) is dict and len(item) == self.width:
                return tuple([check(item[name]) for name, check in self.pairs])
            if type(item) is list and len(item) == self.width:
                return tuple([check(value) for check, value in zip(self.checks, item, strict=True)])
        except (KeyError, ValueError):
            pass
        return None

    def one(self, item: Any, pointer: str, complaints: Complaints) -> Row:
        """The row of any item; what is wrong with it goes to `complaints`."""
        row = self.quick(item)
        if row is not None:
            return row
        if isinstance(item, Mapping):
            self._names(item, pointer, complaints)
            return self._values(item, lambda name: f"{pointer}/{escaped(name)}", complaints)
        if isinstance(item, list | tuple):
            return self._positions(item, pointer, complaints)
        complaints.add(pointer, f"{shown(item)} is not a row; send an object or an array")
        return ()

    def many(self, items: Iterable[Any], pointer: str, complaints: Complaints) -> list[Row]:
        """The rows of an array of objects or lists."""
        quick, one = self.quick, self.one
        return [
            row if (row := quick(item)) is not None else one(item, f"{pointer}/{i}", complaints)
            for i, item in enumerate(items)
        ]

    def columnar(self, value: Mapping[str, Any]) -> bool:
        """Whether an object holds a list per column, and so many rows."""
        lists = (isinstance(each, list | tuple) for each in value.values())
        return bool(value) and all(lists) and not self.nested.intersection(value)

    def columns(
        self, value: Mapping[str, Sequence[Any]], pointer: str, complaints: Complaints
    ) -> list[Row]:
        """The rows of an object with one list per column."""
        self._names(value, pointer, complaints)
        known = {name: each for name, each in value.items() if name in self.names}
        length = max(map(len, value.values()))
        for name, each in known.items():
            if len(each) != length:
                detail = f"has {len(each)} values where the longest column has {length}"
                complaints.add(f"{pointer}/{escaped(name)}", detail)
        if complaints.count:
            length = min(map(len, known.values()), default=0)
        rows = []
        for i in range(length):
            item = {name: each[i] for name, each in known.items()}
            rows.append(self.quick(item) or self._column_row(item, i, pointer, complaints))
        return rows

    def _column_row(
        self, item: Mapping[str, Any], i: int, pointer: str, complaints: Complaints
    ) -> Row:
        return self._values(item, lambda name: f"{pointer}/{escaped(name)}/{i}", complaints)

    def _names(self, item: Mapping[Any, Any], pointer: str, complaints: Complaints) -> None:
        """Complain about columns that are not ours, and about required ones that are not there."""
        for name in item:
            if name not in self.names:
                complaints.add(f"{pointer}/{escaped(str(name))}", self._stranger(name))
        for slot in self.slots:
            if slot.required and slot.name not in item:
                complaints.add(f"{pointer}/{escaped(slot.name)}", "is required")

    def _stranger(self, name: str) -> str:
        if name == self.target:
            return "is the target; leave it out"
        names = listing(slot.name for slot in self.slots)
        return f"is not a field of this model; its fields are {names}"

    def _positions(self, item: Sequence[Any], pointer: str, complaints: Complaints) -> Row:
        layout = self.layouts.get(len(item))
        if layout is None:
            complaints.add(pointer, self._wrong_length(len(item)))
            return ()
        places = {self.slots[slot].name: i for i, slot in enumerate(layout)}
        given = {name: item[i] for name, i in places.items()}
        return self._values(given, lambda name: f"{pointer}/{places[name]}", complaints)

    def _wrong_length(self, length: int) -> str:
        expected = " or ".join(
            f"{size} ({listing(self.slots[i].name for i in layout)})"
            for size, layout in sorted(self.layouts.items(), reverse=True)
        )
        return f"has {length} value{'' if length == 1 else 's'}; expected {expected}"

    def _values(
        self, item: Mapping[str, Any], where: Callable[[str], str], complaints: Complaints
    ) -> Row:
        row = []
        for name, check, _, value in self.slots:
            if name in item:
                try:
                    value = check(item[name])
                except ValueError as error:
                    complaints.add(where(name), str(error))
            row.append(value)
        return tuple(row)


class OpenPlan(Plan):
    """Reads rows of a schema without fields: any object, and for `learn` its target beside it."""

    def __init__(self, check: Check, label: Slot | None) -> None:
        super().__init__((), {}, listed=label is not None)
        self.check = check
        self.label = label

    def quick(self, item: Any) -> Row | None:
        return None

    def columnar(self, value: Mapping[str, Any]) -> bool:
        return False

    def one(self, item: Any, pointer: str, complaints: Complaints) -> Row:
        if not isinstance(item, Mapping):
            complaints.add(pointer, f"{shown(item)} is not a row; send an object")
            return ()
        try:
            row: Row = (self.check(dict(item)),)
        except ValueError as error:
            complaints.add(pointer, str(error))
            return ()
        if self.label is None:
            return row
        held: dict[str, Any] = row[0]  # type: ignore[assignment]
        given = {k: held.pop(k) for k in [self.label.name] if k in held}
        single = Plan([self.label], {})
        single._names(given, pointer, complaints)
        where = f"{pointer}/{escaped(self.label.name)}"
        return row + single._values(given, lambda _: where, complaints)
