"""The frozen records that cross every boundary of the program: facts, decisions, jobs.

All times are seconds since the epoch, UTC, as floats. All ids are text.
A record never changes after it was made; whoever needs a changed one makes a new one.
"""

from __future__ import annotations

import secrets
import threading
import time
from enum import StrEnum
from typing import Any

import msgspec

Scalar = float | int | bool | str | None
Row = tuple[Scalar, ...]
"""One input row: scalars in the order of the schema's fields."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The common shape: frozen, slotted, keyword-only, encodable as it is."""


# ---------------------------------------------------------------- facts


class Cursor(Record, frozen=True, kw_only=True):
    """An opaque position in the event log; only the log that made it can compare it."""

    token: str


class Event(Record, frozen=True, kw_only=True):
    """One fact on its way into the event log, or read back from it.

    `key` is unique per topic: appending the same key twice keeps the first.
    `value` is msgpack. `cursor` is the position just behind this event; None before the append.
    """

    topic: str
    key: str
    at: float
    value: bytes
    cursor: Cursor | None = None


class Prediction(Record, frozen=True, kw_only=True):
    """One row answered.

    `output` is the answer: a class label or a number. `probabilities` are in the order of the
    version's `classes`. `row` holds the input in the order of the schema's fields.
    """

    id: str
    model: str
    version: int
    output: Any
    at: float
    row: Row = ()
    probabilities: tuple[float, ...] | None = None
    shadow: bool = False


class OutcomeStatus(StrEnum):
    """What became of one outcome."""

    JOINED = "joined"  # met its prediction, and counted toward the next retraining
    WAITING = "waiting"  # arrived before its prediction
    DUPLICATE = "duplicate"  # says what is known already
    CORRECTED = "corrected"  # replaced an earlier value; does not count again
    LATE = "late"  # after the maturity window: scored, but does not count
    UNKNOWN = "unknown"  # the prediction did not come within the orphan time
    ACCEPTED = "accepted"  # durable, but the join had not reached it in time to say more


class Outcome(Record, frozen=True, kw_only=True):
    """The truth for one prediction id. `at` is when it became true, `arrival` when we heard."""

    id: str
    value: Any
    at: float | None
    arrival: float


class Example(Record, frozen=True, kw_only=True):
    """A labelled row: a matured prediction with its outcome, or a row handed to `learn`.

    `seq` is gapless per model, from 1. `matched` is the running number among those that count
    toward retraining, None for the others. `id`, `version`, `output`, `probabilities` and
    `predicted_at` are None for rows handed to `learn`. `row` holds the input in the order of the
    schema's fields; `extra` the data set's columns the schema does not use (None or a mapping).
    """

    model: str
    seq: int
    row: Row
    label: Any
    at: float
    source: str = "outcome"  # outcome | learn | timeout
    matched: int | None = None
    id: str | None = None
    version: int | None = None
    output: Any = None
    probabilities: tuple[float, ...] | None = None
    predicted_at: float | None = None
    late: bool = False


# ---------------------------------------------------------------- models and versions


class ModelRecord(Record, frozen=True, kw_only=True):
    """What the store knows of a model: everything needed to serve and to train it.

    `schema`, `policy` and `options` are the encoded (plain JSON-able) forms of their records.
    `recipe` is the artifact of the unfitted estimator, None where there is nothing to fit.
    `dataset` is the digest of the base data set. `revision` grows with every change.
    """

    name: str
    schema: dict[str, Any]
    capabilities: tuple[str, ...]
    task: str = "regression"  # regression | classification | other
    description: str = ""
    recipe: Artifact | None = None
    dataset: str | None = None
    target: str | None = None
    policy: dict[str, Any] | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    source: str = "api"  # api | app | config | cli: who declared it
    created: float = 0.0
    revision: int = 0


class Artifact(Record, frozen=True, kw_only=True):
    """Where a model's bytes are (fitted, or a recipe), in which numbered format, signed by us."""

    digest: str
    format: str  # for instance "skops/1", "lightgbm/1", "linear/1", "cloudpickle/1"
    size: int
    signature: str


class Version(Record, frozen=True, kw_only=True):
    """Immutable fitted parameters with their lineage.

    `upto` is the `seq` of the last example it was trained on, and `cursor` the log position that
    was joined then. `data` is the digest of the base data set, `rows` how many rows it saw.
    `number` is 0 until the store assigns one.
    """

    model: str
    number: int
    artifact: Artifact
    created: float
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    classes: tuple[Any, ...] | None = None
    data: str | None = None
    rows: int = 0
    upto: int = 0
    cursor: Cursor | None = None
    code: str = ""
    environment: str = ""
    job: str | None = None
    report: str | None = None  # digest of a blob with {"html": ..., "json": ...}
    source: str = "train"  # train | given


class Dataset(Record, frozen=True, kw_only=True):
    """A content-addressed table in the blob store; `columns` in file order."""

    digest: str
    columns: tuple[str, ...]
    rows: int
    size: int
    created: float
    name: str = ""


class Aliases(Record, frozen=True, kw_only=True):
    """Which version answers, shadows, is gone back to; `epoch` grows with each move."""

    champion: int | None = None
    challenger: int | None = None
    previous: int | None = None
    epoch: int = 0


class Decision(Record, frozen=True, kw_only=True):
    """The record of a verdict and its evidence. `number` is 0 until the store assigns one."""

    model: str
    verdict: str  # promote | keep | not-enough-evidence | rollback
    reason: str
    at: float
    number: int = 0
    candidate: int | None = None
    champion: int | None = None
    promoted: bool = False
    by: str = "gate"  # gate | person | first | undo
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)
    job: str | None = None


class Epoch(Record, frozen=True, kw_only=True):
    """Trigger number `k` of a model: its training set ends at example `upto`."""

    model: str
    k: int
    upto: int
    at: float
    state: str = "waiting"  # waiting | submitted | coalesced
    job: str | None = None


# ---------------------------------------------------------------- the join's books


class OutcomeState(Record, frozen=True, kw_only=True):
    """The latest revision the join holds for one prediction id."""

    model: str
    id: str
    value: Any
    revision: float
    at: float | None
    arrival: float
    status: OutcomeStatus
    seq: int | None = None  # the example it became


class Moments(Record, frozen=True, kw_only=True):
    """Running moments of one numeric column (Welford 1962): mean and sum of squared deviations."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float | None = None
    maximum: float | None = None


class Tally(Record, frozen=True, kw_only=True):
    """Additive score sums of one version over one cohort (an hour of prediction time).

    For classification: n, correct, log_loss (sum), scored (rows with probabilities).
    For regression: n, absolute, squared, label, label2 (sums).
    """

    version: int
    cohort: int
    sums: dict[str, float]


class Books(Record, frozen=True, kw_only=True):
    """The join's per-model state: counters, column moments, score tallies touched by a batch."""

    model: str
    seq: int = 0
    matched: int = 0
    examples: int = 0
    moments: dict[str, Moments] = msgspec.field(default_factory=dict)


class JoinDelta(Record, frozen=True, kw_only=True):
    """Everything one batch of the join changes, applied in one store transaction or not at all.

    `expected` is the position the delta was computed from; the store refuses it when the stored
    position differs. `tallies` replace those of the same version and cohort. `receipts` map event
    keys to the status of the outcome (or "learned").
    """

    model: str
    expected: Cursor | None
    position: Cursor
    books: Books
    outcomes: tuple[OutcomeState, ...] = ()
    examples: tuple[Example, ...] = ()
    relabelled: tuple[Example, ...] = ()
    tallies: tuple[Tally, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    receipts: dict[str, str] = msgspec.field(default_factory=dict)


# ---------------------------------------------------------------- jobs


class JobState(StrEnum):
    """Where a job is. Only the store changes it."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job(Record, frozen=True, kw_only=True):
    """Anything asynchronous. `attempt` is the fence: writes with another number are refused.

    `failures` counts the job's own faults, `losses` the machine's (an expired lease).
    `progress` is the latest {"step", "of", "message"}; `result` and `error` are set at the end.
    """

    id: str
    kind: str
    model: str | None
    payload: dict[str, Any]
    state: JobState = JobState.QUEUED
    attempt: int = 0
    priority: int = 0
    created: float = 0.0
    available: float = 0.0
    started: float | None = None
    finished: float | None = None
    worker: str | None = None
    lease_until: float | None = None
    failures: int = 0
    losses: int = 0
    max_failures: int = 1
    max_losses: int = 3
    cancel_requested: bool = False
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    reason: str = ""
    tags: tuple[str, ...] = ()


class JobEvent(Record, frozen=True, kw_only=True):
    """One line of a job's story, in the order of `seq`, for live followers."""

    seq: int
    job: str
    kind: str  # queued | running | progress | done | failed | cancelled | lost
    at: float
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class WorkerRecord(Record, frozen=True, kw_only=True):
    """A process that leases jobs, as last heard of."""

    id: str
    host: str
    pid: int
    tags: tuple[str, ...] = ()
    started: float = 0.0
    seen: float = 0.0
    job: str | None = None


class Effects(Record, frozen=True, kw_only=True):
    """What finishing a job changes beside the job itself, in the same transaction.

    The store numbers the version, fills that number into the decision (where its `candidate` is
    0) and moves the aliases when `promote` is true and the champion is still `champion`.
    """

    version: Version | None = None
    decision: Decision | None = None
    promote: bool = False
    champion: int | None = None


class Token(Record, frozen=True, kw_only=True):
    """An access token: only its SHA-256 is stored."""

    name: str
    hash: str
    scopes: tuple[str, ...]
    created: float
    revoked: bool = False


# ---------------------------------------------------------------- ids

_lock = threading.Lock()
_last = 0


def new_ids(count: int = 1) -> list[str]:
    """Make time-ordered ids: UUIDv7 (RFC 9562), strictly increasing within this process.

    Args:
        count: how many.

    Returns:
        `count` ids in canonical text form; consecutive ones differ by one in the random part.
    """
    global _last
    milliseconds = time.time_ns() // 1_000_000
    fresh = (
        (milliseconds << 80)
        | (0x7 << 76)
        | (secrets.randbits(12) << 64)
        | (0b10 << 62)
        | secrets.randbits(61)
    )
    with _lock:
        first = max(fresh, _last + 1)
        _last = first + count
    # Only the last 48 bits differ, unless they run over.
    head, low = format_id(first)[:24], first & 0xFFFF_FFFF_FFFF
    if low + count > 0x1_0000_0000_0000:
        return [format_id(first + step) for step in range(count)]
    return [f"{head}{number:012x}" for number in range(low, low + count)]


def new_id() -> str:
    """Make one time-ordered id (UUIDv7)."""
    return new_ids(1)[0]


def format_id(number: int) -> str:
    """Write a 128-bit number in the canonical 8-4-4-4-12 form."""
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
