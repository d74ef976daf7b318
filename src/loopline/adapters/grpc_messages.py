"""The messages of both gRPC services, made while running: no generated code, no compiler.

A compact table (or a model's schema) becomes a file descriptor, and that becomes message classes,
answers to reflection, and the text of a `.proto` file. A model called `iris` has the service
`loopline.v1.IrisService`, whose messages have the fields of its schema under the numbers of their
columns. Scalars know presence, so that 0 is a value; what may be null is null by its absence.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from loopline.errors import LooplineError, MissingExtra, ModelFailed, Unreadable
from loopline.fields import basis, shown
from loopline.records import ModelRecord
from loopline.schema import Schema

try:
    from google.protobuf import descriptor_pb2, json_format, message_factory, struct_pb2
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import DecodeError, Message
    from google.protobuf.unknown_fields import UnknownFieldSet
    from google.rpc import code_pb2, error_details_pb2, status_pb2
except ImportError as missing:
    raise MissingExtra("gRPC needs grpcio and more: pip install 'loopline[grpc]'") from missing

PACKAGE = "loopline.v1"

# Each line is a message: the name (and its one-of, which then holds all fields), then the fields
# in the order of their numbers. `?` knows presence, `*` repeats, `{}` is a map by text.
_SHARED_MESSAGES = """
FieldError: string pointer, string detail
Problem: string code, string detail, FieldError* errors, double? retry_after
ColumnSummary: int64 count, double? mean, double? std, double? min, double? max
LearnReply: int64 accepted, int64? rows, ColumnSummary{} summary
OutcomeStatus: string id, string status
OutcomeReply: OutcomeStatus* results, int64{} counts
TrainRequest: google.protobuf.Struct parameters, string? reason, double? wait
TrainReply: string job, string state, int64? version, double{} metrics
ScoreReply: int64 version, string on, int64 rows, double{} metrics
DescribeRequest:
"""
# No name of these, nor `Service`, ends with another's, so no two models' messages share a name.
# `Row`, `Example` and `Answer` stand for what the schema makes of them.
_MODEL_MESSAGES = """
PredictRequest: Row row, string? id, int64? version, string? alias, bool probabilities
PredictManyRequest: Row* rows, string* ids, int64? version, string? alias, bool probabilities
Prediction: string id, Answer? prediction, int64 version, string model, double{} probabilities
Predictions: string model, int64 version, Prediction* predictions
PredictReply result: Prediction prediction, Problem problem
LearnRequest: Example* rows
Outcome: string id, Answer? outcome, double? at
OutcomeRequest: Outcome* outcomes
ScoreRequest: Example* rows, int64? version
"""
_MODEL_METHODS = {
    "Predict": "PredictRequest Prediction",
    "PredictMany": "PredictManyRequest Predictions",
    "PredictStream": "stream PredictRequest PredictReply",
    "Learn": "LearnRequest LearnReply",
    "Outcome": "OutcomeRequest OutcomeReply",
    "Score": "ScoreRequest ScoreReply",
    "Train": "TrainRequest TrainReply",
    "Describe": "DescribeRequest google.protobuf.Struct",
}
_LABELLED = ("LearnRequest", "ScoreRequest")
"""What only a model with a target has."""
_STRUCT, _VALUE = "google.protobuf.Struct", "google.protobuf.Value"
_BASES = {"number": "double", "integer": "int64", "boolean": "bool", "text": "string"}
File = descriptor_pb2.FileDescriptorProto
_Proto = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Proto, f"TYPE_{name.upper()}")
    for name in "double float int64 uint64 int32 uint32 bool string bytes".split()
}
_NAMES = {number: name for name, number in _SCALARS.items()}
_LINE = re.compile(r"([\w.]+)(?: (\w+))?:(.*)")
_MEMBER = re.compile(r"([\w.]+)([?*]|{})? (\w+)")
MOST_TEXT, MOST_DETAILS = 600, 3_000
"""Bytes of an error's sentence and fields: headers carry both, and clients take 8 KiB of them."""


class _Member(NamedTuple):
    """One field of a message."""

    kind: str
    label: str
    name: str
    number: int
    json: str = ""


# Names.


def service_of(model: str) -> str:
    """The full name of a model's service."""
    return f"{PACKAGE}.{_camel(model)}Service"


def model_of(service: str) -> str | None:
    """The model whose service has this full name, None where it can be no model's."""
    camel = service.removeprefix(f"{PACKAGE}.").removesuffix("Service")
    model = re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", camel)[1:]
    return model if model and service_of(model) == service else None


def _camel(model: str) -> str:
    """A model's name in capitals; which name it was can be told from it."""
    return re.sub("(?:^|_)([a-z])", lambda found: found[1].upper(), model)


def _identifiers(names: Sequence[str]) -> Iterator[str]:
    """The names as Protocol Buffers can have them, different even without case and underscores."""
    taken: set[str] = set()
    known = frozenset(names)
    for name in names:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        word = re.sub(r"\W+", "_", plain).strip("_") or "field"
        base = word = word if word[0].isalpha() else f"field_{word}"
        count = 1
        # A field may not be called like another's column, nor may what stands for its presence.
        while _bare(word) in taken or f"_{word}" in known or (word != name and word in known):
            count += 1
            word = f"{base}_{count}"
        taken.add(_bare(word))
        yield word


def _bare(word: str) -> str:
    return word.replace("_", "").lower()


# Descriptors.


def describe(models: Iterable[ModelRecord]) -> File:
    """Our own services, one for each model, as one file."""
    imports = [struct_pb2.DESCRIPTOR.name]
    file = File(name="loopline.proto", package=PACKAGE, syntax="proto3", dependency=imports)
    add_table(file, _SHARED_MESSAGES)
    for record in models:
        _add_model(file, record, msgspec.convert(record.schema, Schema))
    return file


def pool_of(*files: File | bytes) -> DescriptorPool:
    """A pool of its own, so that a model that has changed can have its messages anew."""
    pool = DescriptorPool()
    for file in (struct_pb2.DESCRIPTOR.serialized_pb, *files):
        pool.AddSerializedFile(file if isinstance(file, bytes) else file.SerializeToString())
    return pool


def class_of(pool: DescriptorPool, name: str) -> type[Message]:
    """The class of the message with this full name."""
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def add_table(file: File, text: str) -> None:
    """Add the messages of a table to a file."""
    for found in map(_LINE.fullmatch, text.strip().splitlines()):
        assert found is not None, text
        _add_message(file, found[1], list(_members(found[3])), found[2] or "")


def _members(text: str) -> Iterator[_Member]:
    for number, part in enumerate(filter(None, text.split(",")), start=1):
        found = _MEMBER.fullmatch(part.strip())
        assert found is not None, part
        yield _Member(found[1], found[2] or "", found[3], number)


def _add_message(file: File, name: str, members: Iterable[_Member], oneof: str = "") -> None:
    outer, _, own = name.rpartition(".")
    place = {each.name: each.nested_type for each in file.message_type}.get(outer)
    message = (file.message_type if place is None else place).add(name=own)
    if oneof:
        message.oneof_decl.add(name=oneof)
    for kind, label, text, number, json in members:
        field = message.field.add(name=text, number=number, label=_Proto.LABEL_OPTIONAL)
        if json:
            # These names are the only ones that JSON could not have.
            usable = "\0" not in json and not (json.startswith("[") and json.endswith("]"))
            field.json_name = json if usable else text
        if label == "{}":
            entry = message.nested_type.add(name=f"{_words(text)}Entry")
            entry.options.map_entry = True
            for at, (each, inner) in enumerate((("string", "key"), (kind, "value")), start=1):
                held = entry.field.add(name=inner, number=at, label=_Proto.LABEL_OPTIONAL)
                _set_type(file, held, each)
            kind = f"{name}.{entry.name}"
        _set_type(file, field, kind)
        if label in ("*", "{}"):
            field.label = _Proto.LABEL_REPEATED
        elif oneof:
            field.oneof_index = 0
        elif label == "?":
            field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{text}")


def _set_type(file: File, field: _Proto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Proto.TYPE_MESSAGE, _full(file, kind)


def _full(file: File, kind: str) -> str:
    return f".{kind}" if kind.startswith("google.") else f".{file.package}.{kind}"


def _words(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def add_service(file: File, name: str, methods: Mapping[str, str]) -> None:
    """Add a service: its methods by name, each with the messages it takes and gives.

    A message behind the word `stream` comes as often as wanted.
    """
    service = file.service.add(name=name)
    for method, ends in methods.items():
        takes, gives = (_full(file, end) for end in ends.replace("stream ", "").split())
        both = "stream" in ends
        service.method.add(
            name=method,
            input_type=takes,
            output_type=gives,
            client_streaming=both,
            server_streaming=both,
        )


# Our own service.


def _add_model(file: File, record: ModelRecord, schema: Schema) -> None:
    own, output = _camel(record.name), schema.output
    columns = list(_columns(schema))
    names = {"Answer": _kind(output.kind, output.categories) if output else _VALUE}
    if schema.open:
        names |= {"Row": _STRUCT, "Example": _STRUCT}
    else:
        _add_message(file, f"{own}Row", [c for c in columns if c.json != schema.target])
        if output:
            _add_message(file, f"{own}Example", columns)
    skipped = () if output else _LABELLED
    lines = [found for found in map(_LINE.fullmatch, _MODEL_MESSAGES.splitlines()) if found]
    names = {each: f"{own}{each}" for each in ("Row", "Example", *(f[1] for f in lines))} | names
    for found in lines:
        if found[1] not in skipped:
            members = [m._replace(kind=names.get(m.kind, m.kind)) for m in _members(found[3])]
            members = [m._replace(label="") if m.kind == _VALUE else m for m in members]
            _add_message(file, names[found[1]], members, found[2] or "")
    missing = {*skipped, *(() if record.recipe else ("TrainRequest",))}
    methods = {
        method: " ".join(names.get(word, word) for word in ends.split())
        for method, ends in _MODEL_METHODS.items()
        if not missing & set(ends.split())
    }
    add_service(file, f"{own}Service", methods)


def _columns(schema: Schema) -> Iterator[_Member]:
    """The fields of a labelled row: a column's number is its place in the data set."""
    kinds = {field.name: _kind(field.kind, field.categories) for field in schema.fields}
    if schema.output:
        kinds[schema.output.name] = _kind(schema.output.kind, schema.output.categories)
    columns = zip(schema.columns, _identifiers(schema.columns), strict=True)
    for number, (name, word) in enumerate(columns, start=1):
        # A thousand numbers belong to Protocol Buffers itself.
        number += 1_000 if number >= 19_000 else 0
        yield _Member(kinds[name], "" if kinds[name] == _VALUE else "?", word, number, name)


def _kind(kind: Any, categories: tuple[Any, ...] | None) -> str:
    return _BASES.get(basis(kind, categories), _VALUE)


class Contract:
    """The messages of one model, as its record is at the moment.

    `takes` are the classes of its methods' requests.
    """

    def __init__(self, record: ModelRecord) -> None:
        self.record = record
        self.schema = msgspec.convert(record.schema, Schema)
        file = describe([record])
        self._pool, self._own = pool_of(file), f"{PACKAGE}.{_camel(record.name)}"
        ends = {each.name: each.input_type[1:] for each in file.service[0].method}
        self.takes = {name: class_of(self._pool, end) for name, end in ends.items()}
        columns = [] if self.schema.open else list(_columns(self.schema))
        self._names = {column.number: column.json for column in columns}
        self._nulls = {f.name: None for f in self.schema.fields if f.nullable and not f.optional}

    def message(self, name: str, /, **values: Any) -> Any:
        """A message of the model, or one that all models share."""
        try:
            return class_of(self._pool, f"{self._own}{name}")(**values)
        except KeyError:
            return class_of(self._pool, f"{PACKAGE}.{name}")(**values)

    def fits(self, record: ModelRecord) -> bool:
        """Whether the messages are those of this record too."""
        old = self.record
        return old.schema == record.schema and (old.recipe is None) == (record.recipe is None)

    def struct(self, value: dict[str, Any]) -> Any:
        """Plain data as a `Struct`."""
        kind = class_of(self._pool, _STRUCT)
        return json_format.ParseDict(msgspec.json.decode(msgspec.json.encode(value)), kind())

    def row(self, message: Message, labelled: bool = False) -> dict[str, Any]:
        """What a row says, by column.

        What another contract than this one wrote is kept, for the schema to refuse by name.
        """
        if self.schema.open:
            found: dict[str, Any] = plain(message)
            return found
        found = dict(self._nulls) if labelled else {}
        for field, value in message.ListFields():
            found[self._names[field.number]] = plain(value)
        for stray in UnknownFieldSet(message):  # type: ignore[attr-defined]
            name = self._names.get(stray.field_number, f"#{stray.field_number}")
            found[name] = _stray(stray.wire_type, stray.data)
        return found

    def rows(self, messages: Iterable[Message], labelled: bool = False) -> list[dict[str, Any]]:
        """What many rows say."""
        return [self.row(each, labelled) for each in messages]


def plain(value: Any) -> Any:
    """A field's value, or a whole `Struct`, as plain data."""
    if not isinstance(value, Message):
        return value
    if value.DESCRIPTOR.full_name == _STRUCT:
        return {key: plain(inner) for key, inner in value.fields.items()}  # type: ignore[attr-defined]
    kind = value.WhichOneof("kind")
    found: Any = getattr(value, kind) if kind else None
    if kind == "number_value":
        # A Struct has no whole numbers, and JSON's 5 is one.
        return int(found) if found.is_integer() and abs(found) < 2**53 else found
    if kind == "list_value":
        return [plain(inner) for inner in found.values]
    return None if kind == "null_value" else plain(found)


def _stray(wire_type: int, data: Any) -> Any:
    """What a field holds that somebody wrote with another type than it has here."""
    if wire_type == 0:
        return data - 2**64 if data >= 2**63 else data
    if wire_type in (1, 5):
        code, size = ("<d", 8) if wire_type == 1 else ("<f", 4)
        return struct.unpack(code, data.to_bytes(size, "little"))[0]
    return data.decode(errors="replace") if isinstance(data, bytes) else "a group"


def put(message: Any, name: str, value: Any) -> None:
    """Set a field to what a model said; None leaves it out.

    Raises:
        ModelFailed: its type is not the one that the schema promised.
    """
    field = message.DESCRIPTOR.fields_by_name[name]
    try:
        if field.message_type is not None:
            json_format.ParseDict(
                msgspec.json.decode(msgspec.json.encode(value)), getattr(message, name)
            )
        elif value is not None:
            setattr(message, name, value)
    except (TypeError, ValueError, json_format.ParseError) as error:
        told = f"the model answered {shown(value)}, which is not of the type that its schema says"
        raise ModelFailed(told) from error


def parse(kind: type[Message], data: bytes) -> Any:
    """Read a message.

    Raises:
        Unreadable: the bytes are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Unreadable(f"the bytes are not a {kind.DESCRIPTOR.full_name}") from error


def status(name: str, error: LooplineError, told: Mapping[str, str]) -> status_pb2.Status:
    """An error as gRPC clients expect it, with details (google.rpc) that programs can read.

    Args:
        name: of the gRPC status.
        told: more for the caller.
    """
    detail = error.detail.encode()[:MOST_TEXT].decode(errors="ignore")
    found = status_pb2.Status(code=code_pb2.Code.Value(name), message=detail)
    info = error_details_pb2.ErrorInfo(reason=error.code, domain="loopline", metadata=told)
    found.details.add().Pack(info)
    if error.retry_after is not None:
        wait = error_details_pb2.RetryInfo()
        wait.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        found.details.add().Pack(wait)
    request = error_details_pb2.BadRequest()
    for each in error.fields:
        request.field_violations.add(field=each.pointer, description=each.detail)
        if request.ByteSize() > MOST_DETAILS:
            request.field_violations.pop()
            break
    if error.fields:
        found.details.add().Pack(request)
    return found


# The text.


def render_proto(models: Iterable[ModelRecord]) -> str:
    """The `.proto` file from which clients of these models are generated."""
    file = describe(models)
    lines = ['syntax = "proto3";', "", f"package {file.package};", ""]
    lines += [f'import "{each}";' for each in file.dependency]
    for message in file.message_type:
        lines += ["", *_render_message(file.package, message)]
    for service in file.service:
        lines += ["", f"service {service.name} {{"]
        for method in service.method:
            stream = "stream " if method.client_streaming else ""
            takes, gives = (
                f"({stream}{_short(file.package, end)})"
                for end in (method.input_type, method.output_type)
            )
            lines.append(f"  rpc {method.name}{takes} returns {gives};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _render_message(package: str, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    maps = {f".{package}.{message.name}.{each.name}": each for each in message.nested_type}
    choices = [each.name for each in message.oneof_decl if not each.name.startswith("_")]
    yield f"message {message.name} {{"
    if choices:
        yield f"  oneof {choices[0]} {{"
    for field in message.field:
        kind = _NAMES.get(field.type) or _short(package, field.type_name)
        if field.type_name in maps:
            held = maps[field.type_name].field[1]
            kind = f"map<string, {_NAMES.get(held.type) or _short(package, held.type_name)}>"
        elif field.label == _Proto.LABEL_REPEATED:
            kind = f"repeated {kind}"
        elif field.proto3_optional:
            kind = f"optional {kind}"
        json = f" [json_name = {_quoted(field.json_name)}]" if field.json_name else ""
        yield f"  {'  ' if choices else ''}{kind} {field.name} = {field.number}{json};"
    if choices:
        yield "  }"
    yield "}"


def _short(package: str, full: str) -> str:
    return full.removeprefix(f".{package}.").removeprefix(".")


def _quoted(text: str) -> str:
    body = "".join(
        c if c.isprintable() and c not in '"\\' else "".join(f"\\{b:03o}" for b in c.encode())
        for c in text
    )
    return f'"{body}"'
