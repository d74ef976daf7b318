"""From a definition to a model in the store: schema, data set, recipe, first version or first job.

Registering is idempotent: the same definition again changes nothing, a changed one replaces the
record, and a fitted estimator that differs from the one served becomes a new version.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import force_setattr, replace

from loopline import artifacts, connectors, policy
from loopline.artifacts import Keys
from loopline.codecs import pack_table
from loopline.contracts import BlobStore, Store
from loopline.errors import FieldError, InvalidInput, MissingExtra, Unavailable
from loopline.join import moments_of
from loopline.model import Adopted, adopt
from loopline.recipes import estimator
from loopline.records import (
    Dataset,
    Decision,
    Job,
    JobState,
    ModelRecord,
    Moments,
    Record,
    Version,
    new_id,
)
from loopline.schema import Schema, declare

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger("loopline.registry")

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
LOG_MODES = ("async", "sync", "none")
WAYS = ("estimator", "model", "formula")
TABLE_KEYS = (*WAYS, *"parameters data target task description retrain log redact".split())
BUILT_IN = {"linear": "loopline.builtin.Linear", "polynomial": "loopline.builtin.Polynomial"}
_TASKS = {
    "number": "regression",
    "integer": "regression",
    "category": "classification",
    "boolean": "classification",
}


class Definition(Record, frozen=True, kw_only=True):
    """What a person declares a model to be, by the arguments of `Loopline.add`.

    `source` is who declared it: app, config, api or cli.
    """

    name: str
    model: Any
    data: Any = None
    target: str | None = None
    schema: Any = None
    retrain: policy.Every | None = None
    task: str | None = None
    description: str = ""
    log: str = "async"
    redact: tuple[str, ...] = ()
    source: str = "app"

    def __post_init__(self) -> None:
        # A text may hold a database's password, which nothing but the query has to know.
        force_setattr(self, "data", connectors.source(self.data))


def define(name: str, table: dict[str, Any], source: str, folder: Path = Path()) -> Definition:
    """Read a definition from plain data: a table of `loopline.toml`, or the body of a PUT.

    Args:
        table: `estimator` (import path), or `model` ("linear", "polynomial"), or `formula`; and
            `parameters`, `data`, `target`, `task`, `description`, `retrain`, `log`, `redact`.
        source: who declares it; over the API no function can be named as `data`.
        folder: where relative paths in it start.

    Raises:
        InvalidInput: names every key that is not right.
    """
    errors = [
        FieldError(f"/{key}", f"is not known; there are {', '.join(sorted(TABLE_KEYS))}")
        for key in table.keys() - TABLE_KEYS
    ]
    ways = [key for key in WAYS if table.get(key)]
    if len(ways) != 1:
        errors.append(FieldError("/estimator", "give one of estimator, model and formula"))
    parameters = table.get("parameters") or {}
    if not isinstance(parameters, dict):
        errors.append(FieldError("/parameters", "is an object of names and values"))
    texts = ("target", "task", "description", "log")
    for key in (*WAYS, *texts):
        if table.get(key) is not None and not isinstance(table[key], str):
            errors.append(FieldError(f"/{key}", "is text"))
    if errors:
        raise InvalidInput(f"the definition of {name!r} is not right", fields=errors)
    retrain = table.get("retrain")
    return Definition(
        name=name,
        model=_build(ways[0], table[ways[0]], parameters),
        data=connectors.source(table.get("data"), folder, functions=source != "api"),
        retrain=policy.read(retrain) if retrain else None,
        redact=tuple(table.get("redact") or ()),
        source=source,
        **{key: table[key] for key in texts if table.get(key)},
    )


def _build(way: str, value: str, parameters: dict[str, Any]) -> Any:
    if way == "formula":
        return estimator("loopline.builtin.Formula", {"formula": value, **parameters})
    if way == "model" and value not in BUILT_IN:
        told = f"{value!r} is not built in; there are {', '.join(BUILT_IN)}"
        raise InvalidInput.at(told, "/model")
    return estimator(BUILT_IN[value] if way == "model" else value, parameters)


def read_config(path: Path) -> dict[str, Definition]:
    """Read the models of a `loopline.toml`.

    Raises:
        InvalidInput: the file is not TOML, or a model in it is not right.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    models = document.get("models", {})
    return {name: define(name, table, "config", path.parent) for name, table in models.items()}


@dataclass(eq=False, repr=False)
class Registry:
    """Registers definitions in a store; `notify` is called after a change, to wake followers."""

    store: Store
    blobs: BlobStore
    keys: Keys
    notify: Callable[[], None]

    def register(self, definition: Definition) -> ModelRecord:
        """Make the store hold this model as it is defined, with its data as they are now.

        A model that is there stays as it is while the database of its data is away.

        Raises:
            InvalidInput: the name, the data, the target or the estimator is not right.
            Unavailable: the database of a new model's data is away.
        """
        _check(definition)
        adopted = adopt(definition.model, name=definition.name)
        old = self.store.model(definition.name)
        try:
            frame = None if definition.data is None else connectors.read(definition.data)
        except Unavailable as error:
            if old is None or isinstance(error, MissingExtra):
                raise
            logger.warning("model %s stays as it is: %s", old.name, error.detail)
            return old
        record = self._record(definition, adopted, frame)
        if old is not None and _told(old) == _told(record):
            record = old
        else:
            record = self.store.put_model(record)
        if adopted.fitted:
            self._give(record, adopted)
        elif record.dataset is not None:
            self._train(record, old is not None and _learned(old) != _learned(record))
        self.notify()
        return record

    def reload(self, path: Path) -> list[str]:
        """Make the store hold exactly the models of a configuration file, and no other from it.

        Returns:
            The names now defined there.
        """
        definitions = read_config(path)
        for definition in definitions.values():
            self.register(definition)
        for record in self.store.models():
            if record.source == "config" and record.name not in definitions:
                self.store.drop_model(record.name)
        self.notify()
        return sorted(definitions)

    def _record(
        self, definition: Definition, adopted: Adopted, frame: pandas.DataFrame | None
    ) -> ModelRecord:
        schema = _schema(definition, adopted, frame)
        options: dict[str, Any] = {"log": definition.log, "redact": list(definition.redact)}
        dataset = recipe = None
        if "fit" in adopted.capabilities:
            recipe = artifacts.save(adopted.recipe(), self.blobs, self.keys)
        if frame is not None:
            dataset = self._keep(definition, frame)
            options["base_rows"] = len(frame)
            options["base_moments"] = msgspec.to_builtins(_moments(frame))
        return ModelRecord(
            name=definition.name,
            schema=msgspec.to_builtins(schema),
            capabilities=tuple(sorted(adopted.capabilities)),
            task=_task(definition, adopted, schema),
            description=definition.description or adopted.description,
            recipe=recipe,
            dataset=dataset,
            target=definition.target,
            policy=policy.write(definition.retrain) if definition.retrain else None,
            options=options,
            source=definition.source,
        )

    def _keep(self, definition: Definition, frame: pandas.DataFrame) -> str:
        columns = list(frame.columns)
        packed = pack_table(columns, [frame[column].tolist() for column in columns])
        digest = self.blobs.put(packed)
        self.store.add_dataset(
            Dataset(
                digest=digest,
                columns=tuple(columns),
                rows=len(frame),
                size=len(packed),
                created=self.store.now(),
                name=connectors.title(definition.data),
            )
        )
        return digest

    def _give(self, record: ModelRecord, adopted: Adopted) -> None:
        """Serve a model that came fitted, unless it is what was given last."""
        artifact = artifacts.save(adopted, self.blobs, self.keys)
        given = [v for v in self.store.versions(record.name) if v.source == "given"]
        if given and given[-1].artifact.digest == artifact.digest:
            return
        report = adopted.report()
        version = self.store.add_version(
            Version(
                model=record.name,
                number=0,
                artifact=artifact,
                created=self.store.now(),
                parameters=adopted.parameters(),
                classes=adopted.classes,
                upto=self.store.books(record.name).seq,
                code=hashlib.sha256(artifact.digest.encode()).hexdigest(),
                source="given",
                report=self.blobs.put(msgspec.json.encode(report)) if report else None,
            ),
            champion=True,
        )
        self.store.add_decision(
            Decision(
                model=record.name,
                verdict="promote",
                reason=f"version {version.number} was given already fitted",
                at=self.store.now(),
                candidate=version.number,
                promoted=True,
                by="person",
            )
        )

    def _train(self, record: ModelRecord, changed: bool) -> None:
        """Have the first version trained, or a new one after what it learns from has changed."""
        active = any(
            self.store.jobs(model=record.name, state=state, most=1)
            for state in (JobState.QUEUED, JobState.RUNNING)
        )
        first = not self.store.versions(record.name)
        if active or not (first or changed):
            return
        self.store.submit(
            Job(
                id=new_id(),
                kind="train",
                model=record.name,
                payload={"upto": self.store.books(record.name).seq, "parameters": {}},
                reason="first training" if first else "the definition changed",
            )
        )


def _check(definition: Definition) -> None:
    name, log, task = definition.name, definition.log, definition.task
    named = definition.data is None or definition.target is not None
    told = f"{name!r} is not a model name: small letters, digits and _ only"
    checks = [
        (NAME.fullmatch(name) is not None, "name", told),
        (log in LOG_MODES, "log", f"is one of {', '.join(LOG_MODES)}"),
        (task in (None, *_TASKS.values(), "other"), "task", "is classification or regression"),
        (named, "target", "name the column of the data to predict"),
    ]
    errors = [FieldError(f"/{key}", detail) for right, key, detail in checks if not right]
    if errors:
        raise InvalidInput(errors[0].detail, fields=errors)


def _schema(definition: Definition, adopted: Adopted, frame: pandas.DataFrame | None) -> Schema:
    if frame is not None:
        target = definition.target
        if target not in frame.columns:
            known = ", ".join(str(column) for column in frame.columns)
            told = f"the data have no column {target!r}; there are {known}"
            raise InvalidInput.at(told, "/target")
        schema = Schema.infer(frame, target, task=definition.task or adopted.task)
        used = adopted.fields(schema)
        return replace(schema, fields=tuple(replace(f, used=f.name in used) for f in schema.fields))
    if definition.schema is not None:
        return declare(definition.schema, definition.target)
    return adopted.schema or Schema(fields=(), output=None, columns=(), open=True)


def _task(definition: Definition, adopted: Adopted, schema: Schema) -> str:
    if definition.task or adopted.task in ("classification", "regression"):
        return definition.task or adopted.task
    return _TASKS.get(schema.output.kind, "other") if schema.output else "other"


def _moments(frame: pandas.DataFrame) -> dict[str, Moments]:
    """The moments of every numeric column of a base data set."""
    numbers = frame.select_dtypes("number").astype("float64")
    found = {str(name): moments_of(numbers[name].tolist()) for name in numbers.columns}
    return {name: moments for name, moments in found.items() if moments.count}


def _learned(record: ModelRecord) -> tuple[Any, ...]:
    """What a fit depends on."""
    recipe = record.recipe and record.recipe.digest
    return (recipe, record.dataset, record.schema, record.target)


def _told(record: ModelRecord) -> tuple[Any, ...]:
    """What a definition says: nothing that the store adds, and of the recipe only its digest."""
    bare = replace(record, created=0.0, revision=0, recipe=None)
    return (record.recipe and record.recipe.digest, bare)
