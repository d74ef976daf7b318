"""`MemoryStore`, the reference of the store in plain dicts, and `MemoryBlobs`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from loopline.backends.encoding import copied, to_builtins
from loopline.backends.memory_jobs import JobBook, Slot
from loopline.errors import Unavailable, UnknownModel, UnknownVersion, WrongState
from loopline.records import (
    Aliases,
    Books,
    Cursor,
    Dataset,
    Decision,
    Effects,
    Epoch,
    Example,
    Job,
    JobEvent,
    JobState,
    JoinDelta,
    ModelRecord,
    OutcomeState,
    OutcomeStatus,
    Tally,
    Token,
    Version,
    WorkerRecord,
)


class _Shelf:
    """Everything that one model's name stands for, and that goes when the model is dropped."""

    def __init__(self, name: str) -> None:
        self.record: ModelRecord | None = None
        self.versions: list[Version] = []
        self.aliases = Aliases()
        self.decisions: list[Decision] = []
        self.position: Cursor | None = None
        self.books = Books(model=name)
        self.outcomes: dict[str, OutcomeState] = {}
        self.examples: dict[int, Example] = {}
        self.tallies: dict[tuple[int, int], Tally] = {}
        self.epochs: dict[int, Epoch] = {}


class MemoryStore:
    """`contracts.Store` in this process's memory; nothing is left of it when the process ends.

    Each method holds one lock, checks and copies first, and only then writes.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._revision = 0
        self._shelves: dict[str, _Shelf] = {}
        self._datasets: dict[str, Dataset] = {}
        self._receipts: dict[str, tuple[str, float]] = {}
        self._jobs = JobBook()
        self._workers: dict[str, WorkerRecord] = {}
        self._tokens: dict[str, Token] = {}

    def now(self) -> float:
        return self._clock()

    def revision(self) -> int:
        return self._revision

    def close(self) -> None:
        """Nothing is open."""

    def _bump(self) -> int:
        self._revision += 1
        return self._revision

    def _shelf(self, model: str) -> _Shelf:
        """The model's shelf to read from: an empty one, that is not kept, if it has none."""
        return self._shelves.get(model) or _Shelf(model)

    def _known(self, model: str) -> _Shelf:
        shelf = self._shelf(model)
        if shelf.record is None:
            raise UnknownModel(f"There is no model {model!r}.")
        return shelf

    def put_model(self, record: ModelRecord) -> ModelRecord:
        kept = copied(record)
        with self._lock:
            shelf = self._shelves.setdefault(record.name, _Shelf(record.name))
            former = shelf.record.created if shelf.record else None
            created = former or record.created or self.now()
            shelf.record = replace(kept, created=created, revision=self._bump())
            return copied(shelf.record)

    def model(self, name: str) -> ModelRecord | None:
        with self._lock:
            record = self._shelf(name).record
            return record and copied(record)

    def models(self) -> list[ModelRecord]:
        with self._lock:
            shelves = sorted(self._shelves.items())
            return [copied(shelf.record) for _, shelf in shelves if shelf.record is not None]

    def drop_model(self, name: str) -> bool:
        with self._lock:
            if self._shelf(name).record is None:
                return False
            del self._shelves[name]
            for slot in self._jobs.live(name):
                self._jobs.cancel(slot, self.now())
            self._bump()
            return True

    def add_version(self, version: Version, champion: bool = False) -> Version:
        kept = copied(version)
        with self._lock:
            shelf = self._known(version.model)
            kept = replace(kept, number=len(shelf.versions) + 1, created=kept.created or self.now())
            shelf.versions.append(kept)
            if champion:
                shelf.aliases = _crowned(shelf.aliases, kept.number)
            self._bump()
            return copied(kept)

    def version(self, model: str, number: int) -> Version | None:
        with self._lock:
            found = [v for v in self._shelf(model).versions if v.number == number]
            return copied(found[0]) if found else None

    def versions(self, model: str) -> list[Version]:
        with self._lock:
            return [copied(version) for version in self._shelf(model).versions]

    def aliases(self, model: str) -> Aliases:
        return self._shelf(model).aliases

    def point(
        self,
        model: str,
        aliases: Aliases,
        expected_epoch: int,
        decision: Decision | None = None,
    ) -> Aliases:
        kept = decision and copied(decision)
        with self._lock:
            shelf = self._shelf(model)
            if shelf.aliases.epoch != expected_epoch:
                raise WrongState(f"The aliases of {model!r} were moved meanwhile.")
            _require(shelf, model, aliases.champion, aliases.challenger, aliases.previous)
            about = self._known(kept.model) if kept else None
            self._shelves.setdefault(model, shelf)
            shelf.aliases = replace(aliases, epoch=expected_epoch + 1)
            if about and kept:
                self._decide(about, kept)
            self._bump()
            return shelf.aliases

    def _decide(self, shelf: _Shelf, decision: Decision) -> Decision:
        number = len(shelf.decisions) + 1
        shelf.decisions.append(replace(decision, number=number, at=decision.at or self.now()))
        return shelf.decisions[-1]

    def add_decision(self, decision: Decision) -> Decision:
        kept = copied(decision)
        with self._lock:
            return copied(self._decide(self._known(decision.model), kept))

    def decisions(self, model: str) -> list[Decision]:
        with self._lock:
            return [copied(decision) for decision in self._shelf(model).decisions]

    def add_dataset(self, dataset: Dataset) -> None:
        with self._lock:
            kept = replace(dataset, created=dataset.created or self.now())
            self._datasets.setdefault(dataset.digest, copied(kept))

    def dataset(self, digest: str) -> Dataset | None:
        return self._datasets.get(digest)

    def join_position(self, model: str) -> Cursor | None:
        return self._shelf(model).position

    def books(self, model: str) -> Books:
        with self._lock:
            return copied(self._shelf(model).books)

    def outcome_states(self, model: str, ids: Sequence[str]) -> dict[str, OutcomeState]:
        with self._lock:
            states = self._shelf(model).outcomes
            return {id: copied(states[id]) for id in ids if id in states}

    def waiting_outcomes(self, model: str, most: int = 1000) -> list[OutcomeState]:
        with self._lock:
            states = self._shelf(model).outcomes.values()
            waiting = [state for state in states if state.status is OutcomeStatus.WAITING]
            waiting.sort(key=lambda state: (state.arrival, state.id))
            return [copied(state) for state in waiting[:most]]

    def tallies(self, model: str, keys: Sequence[tuple[int, int]] | None = None) -> list[Tally]:
        with self._lock:
            found = sorted(self._shelf(model).tallies.items())
            return [copied(tally) for key, tally in found if keys is None or key in set(keys)]

    def commit_join(self, delta: JoinDelta) -> None:
        kept = copied(delta)
        with self._lock:
            shelf = self._shelf(delta.model)
            if shelf.position != delta.expected:
                raise WrongState(f"The join of {delta.model!r} has moved on meanwhile.")
            self._shelves.setdefault(delta.model, shelf)
            shelf.position = kept.position
            shelf.books = kept.books
            shelf.outcomes |= {state.id: state for state in kept.outcomes}
            shelf.examples |= {example.seq: example for example in kept.examples}
            for example in kept.relabelled:
                if example.seq in shelf.examples:
                    shelf.examples[example.seq] = example
            shelf.tallies |= {(tally.version, tally.cohort): tally for tally in kept.tallies}
            for epoch in kept.epochs:
                shelf.epochs.setdefault(epoch.k, epoch)
            now = self.now()
            self._receipts |= {key: (status, now) for key, status in kept.receipts.items()}

    def receipts(self, keys: Sequence[str]) -> dict[str, str]:
        with self._lock:
            return {key: self._receipts[key][0] for key in keys if key in self._receipts}

    def trim_receipts(self, before: float) -> int:
        with self._lock:
            kept = {key: said for key, said in self._receipts.items() if said[1] >= before}
            gone, self._receipts = len(self._receipts) - len(kept), kept
            return gone

    def examples(
        self,
        model: str,
        after: int = 0,
        upto: int | None = None,
        most: int | None = None,
    ) -> Iterator[Example]:
        with self._lock:
            kept = sorted(self._shelf(model).examples.items())
        wanted = [e for seq, e in kept if after < seq and (upto is None or seq <= upto)]
        yield from (copied(example) for example in wanted[:most])

    def examples_by_id(self, model: str, ids: Sequence[str]) -> dict[str, Example]:
        wanted = set(ids)
        with self._lock:
            kept = sorted(self._shelf(model).examples.items())
            return {str(e.id): copied(e) for _, e in kept if e.id in wanted}

    def trim_examples(self, model: str, before_seq: int, most: int = 1000) -> int:
        with self._lock:
            kept = self._shelf(model).examples
            old = sorted(seq for seq in kept if seq < before_seq)[:most]
            for seq in old:
                del kept[seq]
            return len(old)

    def erase_ids(self, model: str, ids: Sequence[str]) -> int:
        wanted = set(ids)
        with self._lock:
            shelf = self._shelf(model)
            before = len(shelf.outcomes) + len(shelf.examples)
            shelf.outcomes = {id: s for id, s in shelf.outcomes.items() if id not in wanted}
            shelf.examples = {k: e for k, e in shelf.examples.items() if e.id not in wanted}
            return before - len(shelf.outcomes) - len(shelf.examples)

    def epochs(self, model: str) -> list[Epoch]:
        with self._lock:
            return [epoch for _, epoch in sorted(self._shelf(model).epochs.items())]

    def trigger(self, model: str, job: Job) -> Job | None:
        kept = copied(job)
        with self._lock:
            shelf = self._shelf(model)
            waiting = sorted(k for k, epoch in shelf.epochs.items() if epoch.state == "waiting")
            training = any(slot.job.kind == "train" for slot in self._jobs.live(model))
            if not waiting or training:
                return None
            if job.id in self._jobs.slots:
                raise WrongState(f"There is a job {job.id} already.")
            for k in waiting:
                state = "submitted" if k == waiting[-1] else "coalesced"
                shelf.epochs[k] = replace(shelf.epochs[k], state=state, job=job.id)
            newest = shelf.epochs[waiting[-1]]
            payload = {**kept.payload, "k": newest.k, "upto": newest.upto}
            queued = replace(kept, model=model, payload=payload)
            return copied(self._jobs.queue(queued, None, self.now()).job)

    def submit(self, job: Job, key: str | None = None) -> Job:
        kept = copied(job)
        with self._lock:
            slot = self._jobs.find(job.id, key) or self._jobs.queue(kept, key, self.now())
            return copied(slot.job)

    def job(self, id: str) -> Job | None:
        with self._lock:
            slot = self._jobs.slots.get(id)
            return copied(slot.job) if slot else None

    def jobs(
        self, model: str | None = None, state: JobState | None = None, most: int = 100
    ) -> list[Job]:
        with self._lock:
            found = [slot.job for slot in self._jobs.slots.values()]
        found = [job for job in found if model in (None, job.model) and state in (None, job.state)]
        found.sort(key=lambda job: (job.created, job.id), reverse=True)
        return [copied(job) for job in found[:most]]

    def job_figures(self) -> dict[str, Any]:
        with self._lock:
            return self._jobs.figures(self.now())

    def claim(
        self, worker: str, lease: float, tags: Sequence[str] = (), request: str | None = None
    ) -> Job | None:
        with self._lock:
            slot = self._jobs.claim(worker, lease, set(tags), request, self.now())
            return copied(slot.job) if slot else None

    def heartbeat(
        self, id: str, attempt: int, lease: float, progress: dict[str, Any] | None = None
    ) -> Job:
        said = to_builtins(progress)
        with self._lock:
            slot = self._jobs.running(id, attempt)
            self._jobs.beat(slot, lease, said, self.now())
            return copied(slot.job)

    def finish(
        self,
        id: str,
        attempt: int,
        state: JobState,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        effects: Effects | None = None,
    ) -> Job:
        kept = copied(effects) if effects else Effects()
        result, error = to_builtins(result), to_builtins(error)
        if state not in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
            raise WrongState(f"An attempt ends as done, failed or cancelled, not {state}.")
        if kept != Effects() and state is not JobState.DONE:
            raise WrongState("Only a job that is done has effects.")
        with self._lock:
            slot = self._jobs.slots.get(id)
            if slot is not None and slot.ended == (attempt, state):
                return copied(slot.job)
            slot = self._jobs.running(id, attempt)
            if effects is not None and state is JobState.DONE:
                result = {**(result or {}), **self._apply(kept)}
            self._end(slot, state, result, error)
            return copied(slot.job)

    def _end(
        self,
        slot: Slot,
        state: JobState,
        result: dict[str, Any] | None,
        error: dict[str, Any] | None,
    ) -> None:
        slot.ended = (slot.job.attempt, state)
        if state is JobState.FAILED:
            self._jobs.fail(slot, result, error, self.now())
        else:
            self._jobs.end(slot, state, self.now(), result=result, error=error)

    def _apply(self, effects: Effects) -> dict[str, Any]:
        """Carry out what a finished job causes; everything that can fail comes first."""
        version, decision = effects.version, effects.decision
        number = None
        if version is not None:
            number = len(self._known(version.model).versions) + 1
            if decision is not None and decision.candidate == 0:
                decision = replace(decision, candidate=number)
        about = version or decision
        if about is None:
            return {"promoted": False}
        if decision is not None:
            self._known(decision.model)
        shelf = self._known(about.model)
        target = number or (decision.candidate if decision else None)
        wanted = effects.promote and target is not None
        moved = wanted and shelf.aliases.champion == effects.champion
        if moved and number is None:
            _require(shelf, about.model, target)
        said: dict[str, Any] = {"promoted": moved}
        if version is not None and number is not None:
            shelf.versions.append(replace(version, number=number, created=self.now()))
            said["version"] = number
        if moved and target is not None:
            shelf.aliases = _crowned(shelf.aliases, target)
        if decision is not None:
            reason = decision.reason
            if wanted and not moved:
                reason = f"{reason}; the champion changed meanwhile".removeprefix("; ")
            verdict = replace(decision, promoted=moved, reason=reason, at=self.now())
            said["decision"] = self._decide(self._known(decision.model), verdict).number
        if version is not None or moved:
            self._bump()
        return said

    def cancel(self, id: str) -> Job:
        with self._lock:
            slot = self._jobs.known(id)
            self._jobs.cancel(slot, self.now())
            return copied(slot.job)

    def sweep(self) -> list[Job]:
        with self._lock:
            return [copied(slot.job) for slot in self._jobs.sweep(self.now())]

    def stretch_leases(self, seconds: float) -> None:
        with self._lock:
            self._jobs.stretch(seconds, self.now())

    def job_events(self, after: int = 0, job: str | None = None, most: int = 500) -> list[JobEvent]:
        with self._lock:
            events = [e for e in self._jobs.events if e.seq > after and job in (None, e.job)]
            return [copied(event) for event in events[:most]]

    def put_worker(self, worker: WorkerRecord) -> None:
        with self._lock:
            now = self.now()
            kept = replace(worker, seen=now, started=worker.started or now)
            self._workers[worker.id] = kept

    def workers(self, since: float = 0.0) -> list[WorkerRecord]:
        with self._lock:
            return [worker for _, worker in sorted(self._workers.items()) if worker.seen >= since]

    def put_token(self, token: Token) -> None:
        with self._lock:
            self._tokens[token.name] = replace(token, created=token.created or self.now())

    def tokens(self) -> list[Token]:
        with self._lock:
            return [token for _, token in sorted(self._tokens.items())]


def _require(shelf: _Shelf, model: str, *numbers: int | None) -> None:
    known = {version.number for version in shelf.versions}
    for number in numbers:
        if number is not None and number not in known:
            raise UnknownVersion(f"The model {model!r} has no version {number}.")


def _crowned(old: Aliases, number: int) -> Aliases:
    """The aliases after a version became the champion."""
    return Aliases(
        champion=number,
        challenger=None if old.challenger == number else old.challenger,
        previous=old.previous if old.champion in (None, number) else old.champion,
        epoch=old.epoch + 1,
    )


class MemoryBlobs:
    """`contracts.BlobStore` in this process's memory."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._blobs.setdefault(digest, bytes(data))
        return digest

    def get(self, digest: str) -> bytes:
        data = self._blobs.get(digest)
        if data is None:
            raise Unavailable(f"There is no blob {digest!r}.")
        return data

    def has(self, digest: str) -> bool:
        return digest in self._blobs

    def delete(self, digest: str) -> None:
        self._blobs.pop(digest, None)

    def digests(self) -> Iterable[str]:
        return sorted(self._blobs)
