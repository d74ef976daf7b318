"""How rows are read off what a caller sends: objects, lists, columns.

A plan is built once for a schema and a purpose (predict or learn, text or not), with everything
looked up beforehand; a good row then costs one check per value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

    A list row has a value for every slot, or for those of `used` only. `target` is a column that
    must not be sent, `listed` whether a flat list of scalars is one row, and `nested` names the
    columns whose values may be lists.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        used: Sequence[int] | None = None,
        target: str | None = None,
        listed: bool = False,
        nested: frozenset[str] = frozenset(),
    ) -> None:
        self.slots = tuple(slots)
        every = range(len(self.slots))
        self.layouts = {len(each): each for each in (used, every) if each is not None}
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
            return self._values(item, pointer, complaints)
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
            rows.append(self.quick(item) or self._values(item, pointer, complaints, f"/{i}"))
        return rows

    def _names(self, item: Mapping[Any, Any], pointer: str, complaints: Complaints) -> None:
        """Complain about columns that are not ours, and about required ones that are not there."""
        for name in item:
            if name not in self.names:
                known = listing(slot.name for slot in self.slots)
                detail = f"is not a field of this model; its fields are {known}"
                if name == self.target:
                    detail = "is the target; leave it out"
                complaints.add(f"{pointer}/{escaped(str(name))}", detail)
        for slot in self.slots:
            if slot.required and slot.name not in item:
                complaints.add(f"{pointer}/{escaped(slot.name)}", "is required")

    def _positions(self, item: Sequence[Any], pointer: str, complaints: Complaints) -> Row:
        layout = self.layouts.get(len(item))
        if layout is None:
            expected = " or ".join(
                f"{size} ({listing(self.slots[i].name for i in each)})"
                for size, each in sorted(self.layouts.items(), reverse=True)
            )
            values = "value" if len(item) == 1 else "values"
            complaints.add(pointer, f"has {len(item)} {values}; expected {expected}")
            return ()
        places = {self.slots[slot].name: i for i, slot in enumerate(layout)}
        given = {name: item[i] for name, i in places.items()}
        return self._values(given, pointer, complaints, places=places)

    def _values(
        self,
        item: Mapping[str, Any],
        pointer: str,
        complaints: Complaints,
        below: str = "",
        places: Mapping[str, int] | None = None,
    ) -> Row:
        """Check what is there; a value stands under its name, or in its place in a list."""
        row = []
        for name, check, _, value in self.slots:
            if name in item:
                try:
                    value = check(item[name])
                except ValueError as error:
                    step = escaped(name) if places is None else places[name]
                    complaints.add(f"{pointer}/{step}{below}", str(error))
            row.append(value)
        return tuple(row)


class OpenPlan(Plan):
    """Reads rows of a schema without fields: any object, and for `learn` its target beside it."""

    def __init__(self, check: Check, label: Slot | None) -> None:
        super().__init__((), listed=label is not None)
        self.check = check
        self.label = None if label is None else Plan([label])

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
        (name,) = self.label.names
        held: dict[str, Any] = row[0]  # type: ignore[assignment]
        given = {name: held.pop(name)} if name in held else {}
        self.label._names(given, pointer, complaints)
        return row + self.label._values(given, pointer, complaints)
