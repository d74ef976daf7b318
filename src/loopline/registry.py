"""From a definition to a model in the store: schema, data set, recipe, first version or first job.

Registering is idempotent: the same definition again changes nothing, a changed one replaces the
record, and a fitted estimator that differs from the one served becomes a new version.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loopline import artifacts, policy
from loopline.artifacts import Keys
from loopline.codecs import pack_table, read_table
from loopline.contracts import BlobStore, Store
from loopline.errors import FieldError, InvalidInput
from loopline.model import Adopted, adopt
from loopline.recipes import estimator
from loopline.records import (
    Artifact,
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

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
LOG_MODES = ("async", "sync", "none")
TABLE_KEYS = frozenset(
    {
        "estimator",
        "model",
        "formula",
        "parameters",
        "data",
        "target",
        "task",
        "description",
        "retrain",
        "log",
        "redact",
    }
)


class Definition(Record, frozen=True, kw_only=True):
    """What a person declares a model to be.

    Args:
        name: matches `[a-z][a-z0-9_]*`.
        model: an estimator, an object or class with `predict`, or a function.
        data: a file, a DataFrame or a function that returns one; None for a model without.
        target: the column to predict.
        schema: a typed record that declares the input, instead of inferring it.
        retrain: when to retrain and what a candidate must show.
        task: classification or regression, where the data leave it open.
        log: how predictions are logged: async, sync or none.
        redact: fields that are not logged.
        source: who declared it: app, config, api or cli.
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


def define(name: str, table: dict[str, Any], source: str) -> Definition:
    """Read a definition from plain data: a table of `loopline.toml`, or the body of a PUT.

    Args:
        table: `estimator` (import path), or `model` ("linear", "polynomial"), or `formula`; and
            `parameters`, `data`, `target`, `task`, `description`, `retrain`, `log`, `redact`.

    Raises:
        InvalidInput: names every key that is not right.
    """
    errors = [
        FieldError(f"/{key}", f"is not known; there are {', '.join(sorted(TABLE_KEYS))}")
        for key in table.keys() - TABLE_KEYS
    ]
    ways = [key for key in ("estimator", "model", "formula") if table.get(key)]
    if len(ways) != 1:
        errors.append(FieldError("/estimator", "give one of estimator, model and formula"))
    parameters = table.get("parameters") or {}
    if not isinstance(parameters, dict):
        errors.append(FieldError("/parameters", "is an object of names and values"))
    for key in ("estimator", "model", "formula", "target", "task", "description", "log"):
        if table.get(key) is not None and not isinstance(table[key], str):
            errors.append(FieldError(f"/{key}", "is text"))
    if errors:
        raise InvalidInput(f"the definition of {name!r} is not right", fields=errors)
    retrain = table.get("retrain")
    return Definition(
        name=name,
        model=_build(ways[0], table[ways[0]], parameters),
        data=_inline(table.get("data")),
        target=table.get("target"),
        retrain=policy.read(retrain) if retrain else None,
        task=table.get("task"),
        description=table.get("description") or "",
        log=table.get("log") or "async",
        redact=tuple(table.get("redact") or ()),
        source=source,
    )


def _build(way: str, value: str, parameters: dict[str, Any]) -> Any:
    if way == "formula":
        return estimator("loopline.builtin.Formula", {"formula": value, **parameters})
    if way == "model":
        known = {"linear": "loopline.builtin.Linear", "polynomial": "loopline.builtin.Polynomial"}
        if value not in known:
            detail = f"{value!r} is not built in; there are {', '.join(known)}"
            raise InvalidInput(detail, fields=[FieldError("/model", detail)])
        return estimator(known[value], parameters)
    return estimator(value, parameters)


def _inline(data: Any) -> Any:
    """Rows given in the definition itself become a function, like any other connector."""
    if not isinstance(data, list):
        return data

    def rows() -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(data)

    return rows


def read_config(path: Path) -> dict[str, Definition]:
    """Read the models of a `loopline.toml`.

    Raises:
        InvalidInput: the file is not TOML, or a model in it is not right.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    found: dict[str, Definition] = {}
    for name, table in document.get("models", {}).items():
        if isinstance(table.get("data"), str):
            table["data"] = str(path.parent / table["data"])
        found[name] = define(name, table, "config")
    return found


class Registry:
    """Registers definitions in a store.

    Args:
        store, blobs, keys: where records, data sets and artifacts go.
        notify: called after a change, to wake followers.
    """

    def __init__(
        self, store: Store, blobs: BlobStore, keys: Keys, notify: Callable[[], None]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._keys = keys
        self._notify = notify

    def register(self, definition: Definition) -> ModelRecord:
        """Make the store hold this model as it is defined.

        Raises:
            InvalidInput: the name, the data, the target or the estimator is not right.
        """
        _check(definition)
        adopted = adopt(definition.model, name=definition.name)
        record = self._record(definition, adopted)
        old = self._store.model(definition.name)
        if old is None or not _alike(old, record):
            record = self._store.put_model(record)
        else:
            record = old
        if adopted.fitted:
            self._give(record, adopted)
        elif record.dataset is not None:
            self._train(record, old is not None and _learns_otherwise(old, record))
        self._notify()
        return record

    def reload(self, path: Path) -> list[str]:
        """Make the store hold exactly the models of a configuration file, and no other from it.

        Returns:
            The names now defined there.
        """
        definitions = read_config(path)
        for definition in definitions.values():
            self.register(definition)
        for record in self._store.models():
            if record.source == "config" and record.name not in definitions:
                self._store.drop_model(record.name)
        self._notify()
        return sorted(definitions)

    def _record(self, definition: Definition, adopted: Adopted) -> ModelRecord:
        frame = None if definition.data is None else read_table(definition.data)
        schema = _schema(definition, adopted, frame)
        options: dict[str, Any] = {"log": definition.log, "redact": list(definition.redact)}
        dataset = None
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
            recipe=self._recipe(definition.name, adopted),
            dataset=dataset,
            target=definition.target,
            policy=policy.write(definition.retrain) if definition.retrain else None,
            options=options,
            source=definition.source,
        )

    def _keep(self, definition: Definition, frame: pandas.DataFrame) -> str:
        columns = [str(column) for column in frame.columns]
        data = [_plain(frame[column]) for column in frame.columns]
        packed = pack_table(columns, data)
        digest = self._blobs.put(packed)
        self._store.add_dataset(
            Dataset(
                digest=digest,
                columns=tuple(columns),
                rows=len(frame),
                size=len(packed),
                created=self._store.now(),
                name=str(definition.data) if isinstance(definition.data, (str, Path)) else "",
            )
        )
        return digest

    def _recipe(self, name: str, adopted: Adopted) -> Artifact | None:
        """The unfitted estimator, kept once: the same recipe again keeps its artifact."""
        if "fit" not in adopted.capabilities:
            return None
        return artifacts.save(adopted.recipe(), self._blobs, self._keys)

    def _give(self, record: ModelRecord, adopted: Adopted) -> None:
        """Serve a model that came fitted, unless it is what was given last."""
        artifact = artifacts.save(adopted, self._blobs, self._keys)
        given = [v for v in self._store.versions(record.name) if v.source == "given"]
        if given and given[-1].artifact.digest == artifact.digest:
            return
        version = self._store.add_version(
            Version(
                model=record.name,
                number=0,
                artifact=artifact,
                created=self._store.now(),
                parameters=adopted.parameters(),
                classes=adopted.classes,
                upto=self._store.books(record.name).seq,
                code=hashlib.sha256(artifact.digest.encode()).hexdigest(),
                source="given",
                report=self._report(adopted),
            ),
            champion=True,
        )
        self._store.add_decision(
            Decision(
                model=record.name,
                verdict="promote",
                reason=f"version {version.number} was given already fitted",
                at=self._store.now(),
                candidate=version.number,
                promoted=True,
                by="person",
            )
        )

    def _report(self, adopted: Adopted) -> str | None:
        report = adopted.report()
        return self._blobs.put(msgspec.json.encode(report)) if report else None

    def _train(self, record: ModelRecord, changed: bool) -> None:
        """Have the first version trained, or a new one after what it learns from has changed."""
        active = [
            job
            for state in (JobState.QUEUED, JobState.RUNNING)
            for job in self._store.jobs(model=record.name, state=state, most=1)
        ]
        first = not self._store.versions(record.name)
        if active or not (first or changed):
            return
        self._store.submit(
            Job(
                id=new_id(),
                kind="train",
                model=record.name,
                payload={"upto": self._store.books(record.name).seq, "parameters": {}},
                reason="first training" if first else "the definition changed",
            )
        )


def _check(definition: Definition) -> None:
    errors = []
    if not NAME.fullmatch(definition.name):
        detail = f"{definition.name!r} is not a model name: small letters, digits and _ only"
        errors.append(FieldError("/name", detail))
    if definition.log not in LOG_MODES:
        errors.append(FieldError("/log", f"is one of {', '.join(LOG_MODES)}"))
    if definition.task not in (None, "classification", "regression", "other"):
        errors.append(FieldError("/task", "is classification or regression"))
    if definition.data is not None and definition.target is None:
        errors.append(FieldError("/target", "name the column of the data to predict"))
    if errors:
        raise InvalidInput(errors[0].detail, fields=errors)


def _schema(definition: Definition, adopted: Adopted, frame: pandas.DataFrame | None) -> Schema:
    if frame is not None:
        target = definition.target
        if target not in frame.columns:
            known = ", ".join(str(column) for column in frame.columns)
            detail = f"the data have no column {target!r}; there are {known}"
            raise InvalidInput(detail, fields=[FieldError("/target", detail)])
        schema = Schema.infer(frame, target, task=definition.task or adopted.task)
        used = adopted.fields(schema)
        if set(used) != {field.name for field in schema.fields}:
            schema = Schema.infer(frame, target, used=used, task=definition.task or adopted.task)
        return schema
    if definition.schema is not None:
        return declare(definition.schema)
    return adopted.schema or Schema(fields=(), output=None, columns=(), open=True)


def _task(definition: Definition, adopted: Adopted, schema: Schema) -> str:
    if definition.task or adopted.task in ("classification", "regression"):
        return definition.task or adopted.task
    if schema.output is None:
        return "other"
    kind = schema.output.kind
    if kind in ("number", "integer"):
        return "regression"
    return "classification" if kind in ("category", "boolean") else "other"


def _plain(column: pandas.Series[Any]) -> list[Any]:
    return [None if value != value else value for value in column.astype(object).tolist()]


def _moments(frame: pandas.DataFrame) -> dict[str, Moments]:
    """The moments of every numeric column of a base data set."""
    found: dict[str, Moments] = {}
    for column in frame.select_dtypes("number").columns:
        values = frame[column].dropna()
        if len(values):
            mean = float(values.mean())
            found[str(column)] = Moments(
                count=len(values),
                mean=mean,
                m2=float(((values - mean) ** 2).sum()),
                minimum=float(values.min()),
                maximum=float(values.max()),
            )
    return found


def _learns_otherwise(old: ModelRecord, new: ModelRecord) -> bool:
    def learned(record: ModelRecord) -> tuple[Any, ...]:
        recipe = record.recipe and record.recipe.digest
        return (recipe, record.dataset, record.schema, record.target)

    return learned(old) != learned(new)


def _alike(a: ModelRecord, b: ModelRecord) -> bool:
    def bare(record: ModelRecord) -> ModelRecord:
        recipe = record.recipe and record.recipe.digest
        return msgspec.structs.replace(
            record,
            created=0.0,
            revision=0,
            recipe=None,
            options={**record.options, "recipe": recipe},
        )

    return bare(a) == bare(b)
