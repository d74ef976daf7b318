"""The store's models, versions, aliases and decisions in SQL."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace
from sqlalchemy import Connection, Table, func, insert, select

from loopline.backends.database import Database, put
from loopline.backends.tables import (
    aliases,
    columns_of,
    datasets,
    decisions,
    models,
    values_of,
    versions,
)
from loopline.errors import UnknownModel, UnknownVersion, WrongState
from loopline.records import Aliases, Dataset, Decision, Effects, ModelRecord, Record, Version

R = TypeVar("R", bound=Record)


class Models(Database):
    """Models with their versions, aliases and decisions, as `contracts.Store` specifies them."""

    def put_model(self, record: ModelRecord) -> ModelRecord:
        with self._write() as connection:
            query = select(models.c.created).where(models.c.name == record.name)
            created = connection.scalar(query) or record.created or self._now(connection)
            kept = replace(record, created=created, revision=self._bump(connection))
            put(connection, models, [values_of(kept)])
            return self._models(connection, record.name)[0]

    def model(self, name: str) -> ModelRecord | None:
        with self._read() as connection:
            return next(iter(self._models(connection, name)), None)

    def models(self) -> list[ModelRecord]:
        with self._read() as connection:
            return self._models(connection)

    def _models(self, connection: Connection, name: str | None = None) -> list[ModelRecord]:
        query = select(*columns_of(models, ModelRecord)).order_by(models.c.name)
        if name is not None:
            query = query.where(models.c.name == name)
        return [ModelRecord(**row._mapping) for row in connection.execute(query)]

    def _require(self, connection: Connection, name: str) -> None:
        if connection.scalar(select(models.c.name).where(models.c.name == name)) is None:
            raise UnknownModel(f"There is no model {name!r}.")

    def add_version(self, version: Version, champion: bool = False) -> Version:
        with self._write() as connection:
            now = self._now(connection)
            kept = self._keep_version(connection, replace(version, created=version.created or now))
            if champion:
                self._crown(connection, kept.model, kept.number)
            return self._versions(connection, kept.model, kept.number)[0]

    def _keep_version(self, connection: Connection, version: Version) -> Version:
        self._require(connection, version.model)
        kept = replace(version, number=_next(connection, versions, version.model))
        connection.execute(insert(versions), values_of(kept))
        self._bump(connection)
        return kept

    def version(self, model: str, number: int) -> Version | None:
        with self._read() as connection:
            return next(iter(self._versions(connection, model, number)), None)

    def versions(self, model: str) -> list[Version]:
        with self._read() as connection:
            return self._versions(connection, model)

    def _versions(
        self, connection: Connection, model: str, number: int | None = None
    ) -> list[Version]:
        query = select(*columns_of(versions, Version)).where(versions.c.model == model)
        if number is not None:
            query = query.where(versions.c.number == number)
        rows = connection.execute(query.order_by(versions.c.number))
        return [Version(**row._mapping) for row in rows]

    def aliases(self, model: str) -> Aliases:
        with self._read() as connection:
            return self._aliases(connection, model)

    def _aliases(self, connection: Connection, model: str) -> Aliases:
        query = select(*columns_of(aliases, Aliases)).where(aliases.c.model == model)
        row = connection.execute(query).first()
        return Aliases() if row is None else Aliases(**row._mapping)

    def point(
        self,
        model: str,
        aliases: Aliases,
        expected_epoch: int,
        decision: Decision | None = None,
    ) -> Aliases:
        with self._write() as connection:
            if self._aliases(connection, model).epoch != expected_epoch:
                raise WrongState(f"The aliases of {model!r} were moved meanwhile.")
            self._require_versions(connection, model, aliases)
            moved = self._point(connection, model, replace(aliases, epoch=expected_epoch + 1))
            if decision is not None:
                self._keep_decision(connection, decision, self._now(connection))
            return moved

    def _require_versions(self, connection: Connection, model: str, moved: Aliases) -> None:
        numbers = {moved.champion, moved.challenger, moved.previous} - {None}
        query = select(versions.c.number).where(
            versions.c.model == model, versions.c.number.in_(sorted(n for n in numbers if n))
        )
        missing = numbers - set(connection.scalars(query))
        if missing:
            raise UnknownVersion(f"The model {model!r} has no version {min(missing, key=str)}.")

    def _point(self, connection: Connection, model: str, moved: Aliases) -> Aliases:
        put(connection, aliases, [{"model": model, **values_of(moved)}])
        self._bump(connection)
        return moved

    def _crown(self, connection: Connection, model: str, number: int) -> None:
        """Make a version the champion and remember the former one."""
        old = self._aliases(connection, model)
        former = old.previous if old.champion in (None, number) else old.champion
        challenger = None if old.challenger == number else old.challenger
        moved = Aliases(
            champion=number, challenger=challenger, previous=former, epoch=old.epoch + 1
        )
        self._require_versions(connection, model, moved)
        self._point(connection, model, moved)

    def add_decision(self, decision: Decision) -> Decision:
        with self._write() as connection:
            kept = self._keep_decision(connection, decision, self._now(connection))
            return self._decisions(connection, kept.model, kept.number)[0]

    def _keep_decision(self, connection: Connection, decision: Decision, now: float) -> Decision:
        self._require(connection, decision.model)
        number = _next(connection, decisions, decision.model)
        kept = replace(decision, number=number, at=decision.at or now)
        connection.execute(insert(decisions), values_of(kept))
        return kept

    def decisions(self, model: str) -> list[Decision]:
        with self._read() as connection:
            return self._decisions(connection, model)

    def _decisions(
        self, connection: Connection, model: str, number: int | None = None
    ) -> list[Decision]:
        query = select(*columns_of(decisions, Decision)).where(decisions.c.model == model)
        if number is not None:
            query = query.where(decisions.c.number == number)
        rows = connection.execute(query.order_by(decisions.c.number))
        return [Decision(**row._mapping) for row in rows]

    def _apply(self, connection: Connection, effects: Effects, now: float) -> dict[str, object]:
        """Carry out what a finished job causes; returns what its result says about that."""
        said: dict[str, object] = {"promoted": False}
        decision = effects.decision
        if effects.version is not None:
            version = self._keep_version(connection, replace(effects.version, created=now))
            said["version"] = version.number
            if decision is not None and decision.candidate == 0:
                decision = replace(decision, candidate=version.number)
        target = said.get("version") or (decision.candidate if decision else None)
        about = effects.version or decision
        if effects.promote and about is not None and isinstance(target, int):
            if self._aliases(connection, about.model).champion == effects.champion:
                self._crown(connection, about.model, target)
                said["promoted"] = True
            elif decision is not None:
                decision = replace(decision, reason=_overtaken(decision.reason))
        if decision is not None:
            decision = replace(decision, promoted=said["promoted"] is True, at=now)
            said["decision"] = self._keep_decision(connection, decision, now).number
        return said

    def add_dataset(self, dataset: Dataset) -> None:
        with self._write() as connection:
            kept = replace(dataset, created=dataset.created or self._now(connection))
            put(connection, datasets, [values_of(kept)], keep=True)

    def dataset(self, digest: str) -> Dataset | None:
        query = select(*columns_of(datasets, Dataset)).where(datasets.c.digest == digest)
        rows = self._rows(query)
        return Dataset(**rows[0]._mapping) if rows else None


def _next(connection: Connection, table: Table, model: str) -> int:
    query = select(func.max(table.c.number)).where(table.c.model == model)
    return int(connection.scalar(query) or 0) + 1


def _overtaken(reason: str) -> str:
    return "; ".join(filter(None, (reason, "the champion changed meanwhile")))
