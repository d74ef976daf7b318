"""The four contracts behind the loop, with their invariants in prose.

`EventLog` keeps facts from outside, `Store` keeps our own decisions, `BlobStore` keeps bytes by
digest, `Doorbell` wakes whoever waits. Every method is synchronous and safe to call from any
thread. Implementations raise only errors of `errors.py`. No transaction spans two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from loopline.records import (
    Aliases,
    Books,
    Cursor,
    Dataset,
    Decision,
    Effects,
    Epoch,
    Event,
    Example,
    Job,
    JobEvent,
    JobState,
    JoinDelta,
    ModelRecord,
    OutcomeState,
    OutcomeStatus,
    Record,
    Tally,
    Token,
    Version,
    WorkerRecord,
)


class Batch(Record, frozen=True, kw_only=True):
    """Events that one consumer polled, and the position behind them."""

    events: tuple[Event, ...]
    position: Cursor


class Consumer(Protocol):
    """One reader of some topics, with a durable position of its own.

    A position moves only by `commit` and `seek`. After a crash, or a new consumer of the same
    group, `poll` starts again at the committed position: at-least-once for the reader, exactly
    once for the outputs.
    """

    def poll(self, most: int = 500, wait: float = 0.0) -> Batch:
        """Read on from where this consumer is; order is kept within a partition.

        Args:
            most: the largest number of events to return.
            wait: seconds to wait for the first event; whatever is there then is returned.

        Returns:
            A batch, perhaps empty. Polling does not move the committed position.
        """

    def commit(self, batch: Batch, outputs: Sequence[Event] = ()) -> None:
        """Move the committed position behind `batch` and append `outputs`: all or nothing.

        Raises:
            WrongState: a newer consumer of this group has taken over; nothing was written.
        """

    def seek(self, position: Cursor | float | None) -> None:
        """Continue from a cursor, from a time (first event at or after it), or from the start."""

    def close(self) -> None:
        """Stop reading; the committed position stays."""


class EventLog(Protocol):
    """The ordered, durable record of predictions, outcomes and examples.

    Invariants: an acknowledged `append` survives `kill -9` and power loss. A key is unique in its
    topic: the first event with it stays, later ones are dropped silently, so sending again is
    always safe. Events of one topic and partition are read in the order they were committed, and
    no event appears later at an earlier position. Topics appear on first use.

    Topics are named `{model}.predictions`, `{model}.outcomes`, `{model}.examples`.
    """

    @property
    def buffered(self) -> int:
        """Bytes that were offered and are not committed yet."""

    def append(self, events: Sequence[Event]) -> None:
        """Append and wait until it is durable: all of them, or none.

        Raises:
            Unavailable: the writer is away or the disk is full; nothing was acknowledged.
        """

    def offer(self, events: Sequence[Event]) -> None:
        """Hand events over without waiting for the disk; order against later `append`s is kept.

        They survive the death of this process or of the writer, not of both at once.

        Raises:
            Overloaded: the bounded buffer is full; nothing was taken.
        """

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """Open the group's reader; an older reader of the same group is fenced off by it."""

    def end_positions(self, topics: Sequence[str]) -> Cursor:
        """Return the position behind the last event of each topic, as one cursor."""

    def find(self, topic: str, keys: Sequence[str]) -> dict[str, Event]:
        """Look events up by key; keys that are not there are left out."""

    def scan(
        self, topic: str, since: float | None = None, until: float | None = None
    ) -> Iterator[Event]:
        """Iterate a topic's events with `since <= at < until` in log order, in constant memory."""

    def count(self, topic: str, since: float | None = None, until: float | None = None) -> int:
        """Count the events `scan` would give."""

    def trim(self, topic: str, before: float, most: int = 1000) -> int:
        """Delete up to `most` events older than `before` (retention); return how many went."""

    def erase(self, topic: str, keys: Sequence[str]) -> int:
        """Delete events by key (a person's right to be forgotten); return how many went."""

    def close(self) -> None:
        """Hand over what is buffered and let go of files and sockets."""


class Inlet(Protocol):
    """The writer's end of an event log that other processes hand their events to.

    `address` says where it listens, in whatever form its clients understand; it is JSON-able.
    """

    @property
    def address(self) -> Any:
        """Where it listens."""

    def pump(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for work, take what is there, commit and acknowledge it.

        Returns:
            How many events were committed.
        """

    def close(self) -> None:
        """Take what was already handed over, commit it, and stop listening."""


class Store(Protocol):
    """Our own decisions: models, versions, aliases, jobs, workers, decisions, and the join's books.

    Invariants: each method is one transaction: applied whole or not at all, and durable when it
    returns. Records that were returned never change. Times are taken from the store's clock
    (`now`), never from callers on other machines. `revision()` grows with every change of a
    model, version or alias, so that followers can poll it cheaply.
    """

    def now(self) -> float:
        """The store's clock: seconds since the epoch."""

    def revision(self) -> int:
        """A number that grows with every change of models, versions and aliases."""

    # -- models, versions, aliases, decisions

    def put_model(self, record: ModelRecord) -> ModelRecord:
        """Add or replace a model by name; returns it with `created` and `revision` filled in."""

    def model(self, name: str) -> ModelRecord | None:
        """One model by name."""

    def models(self) -> list[ModelRecord]:
        """All models, by name."""

    def drop_model(self, name: str) -> bool:
        """Remove a model with its versions, aliases, decisions, examples, outcomes and epochs.

        Jobs keep their history; queued ones of this model are cancelled, and running ones are
        asked to stop.
        """

    def add_version(self, version: Version, champion: bool = False) -> Version:
        """Number and keep a version (1, 2, ... per model; numbers are never used again).

        Args:
            version: `number` is ignored.
            champion: also point the champion at it (and `previous` at the former one).

        Raises:
            UnknownModel: the model is not there.
        """

    def version(self, model: str, number: int) -> Version | None:
        """One version by number."""

    def versions(self, model: str) -> list[Version]:
        """All versions, oldest first."""

    def aliases(self, model: str) -> Aliases:
        """The model's aliases; an `Aliases()` where none were set."""

    def point(
        self, model: str, aliases: Aliases, expected_epoch: int, decision: Decision | None = None
    ) -> Aliases:
        """Move the aliases and record why, in one step.

        Args:
            aliases: the new pointers; its `epoch` is ignored.
            expected_epoch: the epoch the caller saw.

        Returns:
            The stored aliases, with `epoch = expected_epoch + 1`.

        Raises:
            WrongState: somebody else moved them meanwhile.
            UnknownVersion: a pointer names a version that is not there.
        """

    def add_decision(self, decision: Decision) -> Decision:
        """Number (1, 2, ... per model) and keep a decision."""

    def decisions(self, model: str) -> list[Decision]:
        """All decisions, newest last."""

    def add_dataset(self, dataset: Dataset) -> None:
        """Keep a data set's description; adding the same digest again changes nothing."""

    def dataset(self, digest: str) -> Dataset | None:
        """One data set's description by digest."""

    # -- the join's books

    def join_position(self, model: str) -> Cursor | None:
        """How far the join of this model has read."""

    def books(self, model: str) -> Books:
        """The model's counters and moments; zeros where there are none yet."""

    def outcome_states(self, model: str, ids: Sequence[str]) -> dict[str, OutcomeState]:
        """The latest revisions known of these prediction ids."""

    def waiting_outcomes(self, model: str, most: int = 1000) -> list[OutcomeState]:
        """Outcomes whose prediction has not come, oldest arrival first."""

    def tallies(self, model: str, keys: Sequence[tuple[int, int]] | None = None) -> list[Tally]:
        """Score sums by (version, cohort); all of them when `keys` is None."""

    def commit_join(self, delta: JoinDelta) -> None:
        """Apply a batch of the join, everything in the delta, in one step.

        Epochs with a (model, k) that exists already are ignored. `relabelled` replaces examples
        with the same (model, seq).

        Raises:
            WrongState: the stored position is not `delta.expected`; nothing was applied.
        """

    def receipts(self, keys: Sequence[str]) -> dict[str, str]:
        """What the join said of these event keys, for as long as receipts are kept."""

    def trim_receipts(self, before: float) -> int:
        """Drop receipts written before that time; returns how many went."""

    def examples(
        self, model: str, after: int = 0, upto: int | None = None, most: int | None = None
    ) -> Iterator[Example]:
        """Examples with `after < seq <= upto`, by `seq`, in constant memory."""

    def examples_by_id(self, model: str, ids: Sequence[str]) -> dict[str, Example]:
        """The joined examples of these prediction ids."""

    def trim_examples(self, model: str, before_seq: int, most: int = 1000) -> int:
        """Delete up to `most` examples with a smaller `seq` (retention); returns how many went."""

    def erase_ids(self, model: str, ids: Sequence[str]) -> int:
        """Delete outcomes and examples by prediction id."""

    def epochs(self, model: str) -> list[Epoch]:
        """All epochs by `k`."""

    def trigger(self, model: str, job: Job) -> Job | None:
        """Turn the newest waiting epoch into a train job, coalescing older waiting ones.

        Nothing happens while a job of kind `train` of this model is queued or running, or when no
        epoch waits. Otherwise `job` is queued with the epoch's `k` and `upto` added to its
        payload, the epoch becomes submitted, and older waiting ones coalesced: one transaction.
        """

    # -- jobs

    def submit(self, job: Job, key: str | None = None) -> Job:
        """Queue a job; with an idempotency `key` that was used before, return the first one."""

    def job(self, id: str) -> Job | None:
        """One job by id."""

    def jobs(
        self, model: str | None = None, state: JobState | None = None, most: int = 100
    ) -> list[Job]:
        """Jobs, newest first."""

    def job_figures(self) -> dict[str, Any]:
        """Counts by state and the age of the oldest queued job: {"queued", ..., "oldest"}."""

    def claim(
        self, worker: str, lease: float, tags: Sequence[str] = (), request: str | None = None
    ) -> Job | None:
        """Lease the next job: highest priority, then oldest, whose `tags` the worker has.

        Sets running, `attempt + 1`, the worker and `lease_until = now + lease`. A `request` id
        seen before (its answer was lost) returns the same attempt again while it still runs.
        """

    def heartbeat(
        self, id: str, attempt: int, lease: float, progress: dict[str, Any] | None = None
    ) -> Job:
        """Extend the lease and store the progress; the answer's `cancel_requested` is the order.

        Raises:
            StaleAttempt: the job is not running under this attempt, or is not there.
        """

    def finish(
        self,
        id: str,
        attempt: int,
        state: JobState,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        effects: Effects | None = None,
    ) -> Job:
        """End an attempt, with everything it causes, in one transaction.

        `done` and `cancelled` are final. `failed` counts a failure and queues the job again while
        `failures < max_failures`. Finishing the same attempt again with the same state changes
        nothing and returns the job. The version number, decision number and whether the champion
        moved are written into the job's result as `version`, `decision` and `promoted`.

        Raises:
            StaleAttempt: the job is not running under this attempt; no effect was applied.
            UnknownModel: the model that the effects are about is gone.
        """

    def cancel(self, id: str) -> Job:
        """Cancel a queued job at once; ask a running one to stop; leave an ended one as it is.

        Raises:
            UnknownJob: there is none.
        """

    def sweep(self) -> list[Job]:
        """Take back expired leases: queued again, or failed past `max_losses`; cancelled if asked.

        Returns:
            The jobs it moved.
        """

    def stretch_leases(self, seconds: float) -> None:
        """Give running jobs more time from now on, after the store itself was away."""

    def job_events(self, after: int = 0, job: str | None = None, most: int = 500) -> list[JobEvent]:
        """Job events with `seq > after`, oldest first."""

    # -- workers and tokens

    def put_worker(self, worker: WorkerRecord) -> None:
        """Say that a worker is there; `seen` is set by the store's clock."""

    def workers(self, since: float = 0.0) -> list[WorkerRecord]:
        """Workers seen at or after `since`."""

    def put_token(self, token: Token) -> None:
        """Add a token, or replace the one of that name."""

    def tokens(self) -> list[Token]:
        """All tokens, revoked ones included."""

    def close(self) -> None:
        """Let go of connections."""


class BlobStore(Protocol):
    """Bytes by the SHA-256 of their content.

    Invariants: a blob never changes; what was put can be read by every process of the
    installation once `put` has returned; a torn write is never visible under a digest.
    """

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their digest (64 hex digits). Putting them again changes nothing."""

    def get(self, digest: str) -> bytes:
        """Read a blob and check it.

        Raises:
            Tampered: the bytes no longer hash to their digest.
            Unavailable: there is no such blob, or the storage is away.
        """

    def has(self, digest: str) -> bool:
        """Whether this blob is there."""

    def delete(self, digest: str) -> None:
        """Remove a blob; removing one that is not there changes nothing."""

    def digests(self) -> Iterable[str]:
        """The digests of all blobs, in no order."""


class Doorbell(Protocol):
    """Wakes waiters early; the tables are the truth, so a lost ring costs a polling interval."""

    def ring(self) -> None:
        """Wake everyone who waits."""

    def wait(self, timeout: float, until: Callable[[], bool] | None = None) -> bool:
        """Sleep until a ring or the timeout, or until `until()` is true, checked at each ring.

        Returns:
            Whether it ended before the timeout.
        """


__all__ = [
    "Batch",
    "BlobStore",
    "Consumer",
    "Doorbell",
    "EventLog",
    "Inlet",
    "OutcomeStatus",
    "Store",
]
