"""The input fields and the output of a model: validation, decoding, JSON Schema.

A row is a tuple of scalars in the order of the schema's fields, which are the data set's columns
without the target. A caller may write it as an object, where order never matters, or as a list,
where it always does. Every protocol hands its values here, so every protocol has the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from loopline.errors import FieldError, InvalidInput
from loopline.fields import (
    LARGEST,
    LONGEST_TEXT,
    SMALLEST,
    Check,
    Complaints,
    Field,
    Output,
    basis,
    checker,
    listing,
)
from loopline.inference import declared, declared_output, inferred
from loopline.records import Record, Row
from loopline.rows import OpenPlan, Plan, Slot

if TYPE_CHECKING:
    import pandas as pd

Decode = Callable[[bytes], tuple[list[Row], bool]]

__all__ = ["Field", "Output", "Schema", "declare"]

_JSON_TYPES = {"number": "number", "integer": "integer", "boolean": "boolean", "text": "string"}
_WIRE_TYPES: dict[str, Any] = {
    "number": float,
    "integer": Annotated[int, msgspec.Meta(ge=SMALLEST, le=LARGEST)],
    "boolean": bool,
    "text": Annotated[str, msgspec.Meta(max_length=LONGEST_TEXT)],
    "scalar": str | int | float | bool,
}


class Schema(Record, frozen=True, dict=True):
    """What goes into a model and what comes out.

    `columns` are the data set's, in file order and with the target; left empty, they are the
    fields followed by the output. A schema that is `open` takes any JSON object as a row.
    """

    fields: tuple[Field, ...] = ()
    output: Output | None = None
    columns: tuple[str, ...] = ()
    open: bool = False

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        target = [self.output.name] if self.output else []
        if not self.columns:
            msgspec.structs.force_setattr(self, "columns", (*names, *target))
        inputs = [name for name in self.columns if name not in target]
        if inputs != names or len(set(self.columns)) < len(self.columns):
            raise InvalidInput(
                f"the columns {listing(self.columns)} are not the fields {listing(names)} "
                "in their order, with the target among them"
            )

    @classmethod
    def infer(
        cls,
        frame: pd.DataFrame,
        target: str | None = None,
        used: Iterable[str] | None = None,
        task: str | None = None,
    ) -> Schema:
        """Read a schema off a training frame: types, categories, ranges, nulls, an example.

        Whole-number columns become numbers, so that a later 5.5 is not refused.

        Args:
            frame: the data set, target included.
            target: the column to predict.
            used: the columns the model looks at; all but the target by default.
            task: "classification" makes a numeric target's values classes.

        Raises:
            InvalidInput: a named column is not there, or a column name appears twice.
        """
        fields, output = inferred(frame, target, used, task)
        return cls(fields=fields, output=output, columns=tuple(map(str, frame.columns)))

    @classmethod
    def declare(cls, kind: Any, output: Any = None) -> Schema:
        """Read a schema off a declaration, whose ranges and choices are enforced.

        Args:
            kind: a msgspec Struct, dataclass, TypedDict, NamedTuple, pydantic model, JSON Schema
                or function.
            output: an `Output`, a type, a JSON Schema, or a name (which may be a field's).

        Raises:
            InvalidInput: the declaration does not name fields.
        """
        if isinstance(kind, Schema):
            return kind
        fields, answer = declared(kind)
        answer = declared_output(output) or answer
        columns = tuple(field.name for field in fields)
        for field in fields:
            if answer is not None and field.name == answer.name:
                fields = tuple(each for each in fields if each is not field)
                if isinstance(output, str):
                    answer = Output(name=field.name, kind=field.kind, categories=field.categories)
                return cls(fields=fields, output=answer, columns=columns)
        return cls(fields=fields, output=answer, open=not fields)

    # Derived things live in the instance's dictionary, which neither comparison nor encoding sees.

    @cached_property
    def target(self) -> str | None:
        """The column a labelled row carries its label in."""
        return self.output.name if self.output else None

    @cached_property
    def numeric(self) -> bool:
        """Whether a row of used fields is a row of numbers."""
        kinds = {field.kind for field in self.fields if field.used}
        return not self.open and kinds <= {"number", "integer", "boolean"}

    @cached_property
    def _used(self) -> tuple[int, ...]:
        return tuple(i for i, field in enumerate(self.fields) if field.used)

    @cached_property
    def _known(self) -> list[tuple[int, str, frozenset[Any]]]:
        return [
            (i, field.name, frozenset(field.categories or ()))
            for i, field in enumerate(self.fields)
            if field.kind == "category"
        ]

    @cached_property
    def _plans(self) -> dict[tuple[bool, bool], Plan]:
        return {}

    def _plan(self, text: bool, learn: bool) -> Plan:
        """How rows are read, by whether they come as text and whether they carry their label."""
        if (text, learn) not in self._plans:
            self._plans[text, learn] = self._new_plan(text, learn)
        return self._plans[text, learn]

    def _new_plan(self, text: bool, learn: bool) -> Plan:
        if learn and self.output is None:
            raise InvalidInput("this model has no target, so it cannot take labelled rows")
        if self.open:
            label = _slot(self._label, text) if learn else None
            return OpenPlan(checker(Field(name="", kind="any"), False), label)
        if not learn:
            slots = [_slot(_asked(field), text) for field in self.fields]
            return Plan(slots, self._used, target=self.target, nested=self._nested)
        fields = {field.name: field for field in (*self.fields, self._label)}
        columns = [fields[name] for name in self.columns]
        slots = [_slot(field, text)._replace(required=not field.optional) for field in columns]
        return Plan(slots, listed=True, nested=self._nested)

    @cached_property
    def _label(self) -> Field:
        output = self.output or Output(name="", kind="any")
        return Field(name=output.name, kind=output.kind, categories=output.categories)

    @cached_property
    def _labellers(self) -> tuple[Check, Check]:
        return checker(self._label, False), checker(self._label, True)

    @cached_property
    def _nested(self) -> frozenset[str]:
        return frozenset(field.name for field in self.fields if field.kind == "any")

    def parse(self, value: Any, *, text: bool = False) -> tuple[list[Row], bool]:
        """Read the rows of a prediction request, in any of the shapes it may have.

        Args:
            value: an object; an array of objects or lists; an object of equally long lists; one
                of these as the only member `inputs` of an object; a data frame or a matrix.
            text: whether the transport knows only text, so that numbers are spelled in it.

        Returns:
            The rows, and whether the caller asked for many (and so expects a list back).

        Raises:
            InvalidInput: with every field that does not fit, by JSON Pointer into `value`.
        """
        return self._read(self._plan(text, False), value, text)

    def row(self, value: Any, *, text: bool = False, pointer: str = "") -> Row:
        """Read one row, written as an object or as a list.

        Args:
            value: an object, or a list in the order of all fields or of the used ones.
            text: as for `parse`.
            pointer: where the row stands in the caller's document.

        Raises:
            InvalidInput: with every field that does not fit.
        """
        complaints = Complaints()
        row = self._plan(text, False).one(value, pointer, complaints)
        complaints.settle()
        return row

    def labelled(self, value: Any, *, text: bool = False) -> list[tuple[Row, Any]]:
        """Read rows that carry their label: objects with every column, or lists in column order.

        Args:
            value: one such row, an array of them, or an object of equally long lists.
            text: whether numbers are spelled as text; then `{"data": [...]}` means its list.

        Raises:
            InvalidInput: with every field that does not fit; no row is returned then.
        """
        rows, _ = self._read(self._plan(text, True), value, text)
        at = 1 if self.open else self.columns.index(self.target or "")
        return [(row[:at] + row[at + 1 :], row[at]) for row in rows]

    def label(self, value: Any, *, text: bool = False, pointer: str = "/value") -> Any:
        """Read an outcome's value: a finite number, or a class in the type of the known ones.

        Raises:
            InvalidInput: the value does not fit the output.
        """
        try:
            return self._labellers[text](value)
        except ValueError as error:
            fields = [FieldError(pointer, str(error))]
            raise InvalidInput(f"{pointer or 'the body'}: {error}", fields=fields) from error

    def _read(self, plan: Plan, value: Any, text: bool) -> tuple[list[Row], bool]:
        complaints, pointer, listed = Complaints(), "", plan.listed
        value = _plain(value)
        if isinstance(value, dict) and len(value) == 1:
            ((name, inner),) = value.items()
            if self._envelope(name, inner):
                value, pointer = _plain(inner), "/inputs"
            elif name == "data" and text and isinstance(inner, list) and "data" not in plan.names:
                value, pointer, listed = inner, "/data", True
        rows, many = self._shapes(plan, value, pointer, listed, complaints)
        if many and not rows and not complaints.count:
            complaints.add(pointer, "no rows were sent")
        complaints.settle()
        return rows, many

    def _envelope(self, name: str, inner: Any) -> bool:
        """Whether the only member of an object is the request's rows, not a field of one row."""
        if name != "inputs" or "inputs" in self.columns:
            return False
        rows = inner if isinstance(inner, list) else [inner]
        return not self.open or all(isinstance(row, dict) for row in rows)

    def _shapes(
        self, plan: Plan, value: Any, pointer: str, listed: bool, complaints: Complaints
    ) -> tuple[list[Row], bool]:
        if isinstance(value, Mapping) and plan.columnar(value):
            return plan.columns(value, pointer, complaints), True
        if not isinstance(value, list | tuple):
            return [plan.one(value, pointer, complaints)], False
        if not value or any(isinstance(each, Mapping | list | tuple) for each in value):
            return plan.many(value, pointer, complaints), True
        if listed:
            return [plan.one(value, pointer, complaints)], False
        hint = "a flat list could be one row or many; write [[...]] for one row, or name the fields"
        complaints.add(pointer, hint)
        return [], True

    def decoder(self) -> Decode | None:
        """The quick way from the JSON bytes of one plain row object, or an array of them, to rows.

        Returns:
            A function that gives what `parse` would give, or raises `msgspec.DecodeError`, upon
            which the caller asks `parse` for the rows or the reasons. None where a field takes
            any value or has a name that msgspec can't match.
        """
        if self.open or self._nested:
            return None
        fields = list(zip(self._plan(False, False).slots, self.fields, strict=True))
        wires = [_wire_field(f"f{i}", slot, field) for i, (slot, field) in enumerate(fields)]
        try:
            wire = msgspec.defstruct("WireRow", wires, forbid_unknown_fields=True, kw_only=True)
        except ValueError:
            return None
        closer = [
            (i, slot.check)
            for i, (slot, field) in enumerate(fields)
            if field.strict or basis(field.kind, field.categories) == "scalar"
        ]
        return _row_decoder(msgspec.json.Decoder(wire | list[wire]), closer)  # type: ignore[valid-type]

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) document of one input row."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **self.row_json_schema()}

    def row_json_schema(self, labelled: bool = False) -> dict[str, Any]:
        """The same to embed elsewhere, or that of a labelled row, which has every column."""
        if self.open:
            return {"type": "object"}
        fields = {field.name: field if labelled else _asked(field) for field in self.fields}
        if labelled and self.output:
            fields[self.output.name] = self._label
        needed = [
            f.name for f in fields.values() if not (f.optional or (f.nullable and not labelled))
        ]
        example = {f.name: f.example for f in fields.values() if f.example is not None}
        return {
            "type": "object",
            "properties": {name: _field_json_schema(field) for name, field in fields.items()},
            "required": needed,
            "additionalProperties": False,
            **({"examples": [example]} if example.keys() >= set(needed) and example else {}),
        }

    def unseen(self, rows: Iterable[Row]) -> dict[str, int]:
        """Count the category values that training did not see, by field; nulls are not counted."""
        counts: dict[str, int] = {}
        if not self._known:
            return counts
        for row in rows:
            for i, name, known in self._known:
                if row[i] not in known and row[i] is not None:
                    counts[name] = counts.get(name, 0) + 1
        return counts


declare = Schema.declare


def _slot(field: Field, text: bool) -> Slot:
    required = not (field.nullable or field.optional)
    return Slot(field.name, checker(field, text), required, field.default)


def _asked(field: Field) -> Field:
    """A field as `predict` asks for it: one that the model does not use may be left out."""
    return field if field.used else msgspec.structs.replace(field, nullable=True)


def _plain(value: Any) -> Any:
    """Data frames and arrays as the lists a request would hold."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return value.to_dict("records")
    return value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value


def _wire_field(name: str, slot: Slot, field: Field) -> tuple[str, Any, Any]:
    kind = _WIRE_TYPES[basis(field.kind, field.categories)]
    if field.nullable or not field.used:
        kind = kind | None
    default = msgspec.NODEFAULT if slot.required else slot.default
    return (name, kind, msgspec.field(name=field.name, default=default))


def _row_decoder(decoder: msgspec.json.Decoder[Any], closer: list[tuple[int, Check]]) -> Decode:
    decode, astuple = decoder.decode, msgspec.structs.astuple

    def read(body: bytes) -> tuple[list[Row], bool]:
        try:
            found = decode(body)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error
        if found == []:
            raise msgspec.ValidationError("there are no rows")
        many = type(found) is list
        rows = list(map(astuple, found)) if many else [astuple(found)]
        try:
            for i, check in closer:
                for row in rows:
                    check(row[i])
        except ValueError as error:
            raise msgspec.ValidationError(str(error)) from error
        return rows, many

    return read


def _field_json_schema(field: Field) -> dict[str, Any]:
    kind = _JSON_TYPES.get(basis(field.kind, field.categories))
    strict, nulls = field.strict, [None] if field.nullable else []
    examples = list(field.categories or ())[:10] if field.example is None else [field.example]
    spec = {
        "type": [kind, "null"] if kind and nulls else kind,
        "enum": [*field.categories, *nulls] if strict and field.categories is not None else None,
        "minimum": field.minimum if strict else None,
        "maximum": field.maximum if strict else None,
        "examples": examples or None,
        "description": field.description or None,
    }
    spec = {name: value for name, value in spec.items() if value is not None}
    return spec | {"default": field.default} if field.optional else spec
