"""One training run as a function: a frozen plan in, a candidate with its evidence out.

The data are the base data set followed by the examples up to `upto`, in order. The same plan gives
the same rows, so a run can be repeated exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy

from loopline import __version__, artifacts, gate, policy, scoring
from loopline.artifacts import Keys
from loopline.codecs import pack_table, unpack_table
from loopline.contracts import BlobStore
from loopline.errors import InvalidInput, ModelFailed, WrongState
from loopline.model import Adopted, Answers
from loopline.policy import Every
from loopline.records import Cursor, Decision, Example, ModelRecord, Record, Row, Version
from loopline.schema import Schema

Pair = tuple[Row, Any]
Told = tuple[Adopted, Sequence[Pair], Answers]
Progress = Callable[[int, int, str], None]

LIBRARIES = ("numpy", "pandas", "scikit-learn", "lightgbm", "xgboost", "river")
WORDS = {
    "log_loss": "log-loss",
    "accuracy": "error rate",
    "mse": "squared error",
    "mae": "absolute error",
}
BLOCKS = 4
BLOCK_ROWS = 25
COMPARED = 20_000
"""Without a policy a comparison is only evidence, and left out where there are more rows."""
HOLDOUT_ROWS = 20
UNSEEN_SHARE = 0.05
SHIFT = 5.0


class Plan(Record, frozen=True, kw_only=True):
    """What one training run needs; plain, so that it can travel.

    `base` and `examples` are digests of tables in the blob store. `policy` is None where a person
    asked for the run and the model has none.
    """

    model: ModelRecord
    parameters: dict[str, Any]
    base: str | None
    examples: str
    upto: int
    champion: Version | None
    policy: dict[str, Any] | None
    job: str
    cursor: Cursor | None


class Outcome(Record, frozen=True, kw_only=True):
    """What a run came to: a version still without a number, and the decision about it."""

    version: Version
    decision: Decision
    promote: bool
    metrics: dict[str, float]
    seconds: float


def freeze(
    schema: dict[str, Any], examples: Iterable[Example], blobs: BlobStore
) -> tuple[str, int]:
    """Write a slice of examples as a table in the blob store.

    Returns:
        Its digest and number of rows.

    Raises:
        InvalidInput: an example has another number of values than the schema has fields.
    """
    names = [field["name"] for field in schema.get("fields", ())]
    if schema.get("open"):
        names = ["row"]
    columns: list[list[Any]] = [[] for _ in range(len(names) + 3)]
    for example in examples:
        if len(example.row) != len(names):
            raise InvalidInput(
                f"example {example.seq} has {len(example.row)} values where the schema has "
                f"{len(names)} fields: it was taken under another schema"
            )
        values = (example.seq, example.id, *example.row, example.label)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    packed = pack_table(["seq", "id", *(f"row:{name}" for name in names), "label"], columns)
    return blobs.put(packed), len(columns[0])


def _thaw(digest: str, blobs: BlobStore) -> tuple[list[int], list[str | None], list[Pair]]:
    _, columns = unpack_table(blobs.get(digest))
    seqs, ids, *fields, labels = columns
    rows = list(zip(*fields, strict=True)) if fields else [()] * len(labels)
    return seqs, ids, list(zip(rows, labels, strict=True))


def base_pairs(record: ModelRecord, blobs: BlobStore) -> list[Pair]:
    """The base data set as rows and labels; rows without a label are left out.

    Raises:
        InvalidInput: the data set lacks a column that the schema has, or a number is none.
    """
    if record.dataset is None:
        return []
    columns, data = unpack_table(blobs.get(record.dataset))
    table = dict(zip(columns, data, strict=True))
    names = [field["name"] for field in record.schema["fields"]]
    missing = [name for name in (*names, record.target) if name not in table]
    if missing:
        raise InvalidInput(f"the data set has no column {', '.join(map(str, missing))}")
    schema = msgspec.convert(record.schema, Schema)
    cells = [
        _floats(field.name, table[field.name]) if field.kind == "number" else table[field.name]
        for field in schema.fields
    ]
    labels = table[str(record.target)]
    rows: list[Row] = list(zip(*cells, strict=True)) if cells else [()] * len(labels)
    return [
        (row, schema.label(label))
        for row, label in zip(rows, labels, strict=True)
        if label is not None
    ]


def _floats(name: str, values: Sequence[Any]) -> list[float | None]:
    try:
        return [None if value is None else float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"column {name} of the data set has to hold numbers: {error}") from error


def measure(fitted: Adopted, schema: Schema, task: str, pairs: Sequence[Pair]) -> dict[str, float]:
    """Score a fitted model on labelled rows."""
    answers = fitted.answer(schema, [row for row, _ in pairs])
    labels = [label for _, label in pairs]
    return scoring.evaluate(task, labels, answers.outputs, answers.probabilities, fitted.classes)


def run(plan: Plan, blobs: BlobStore, keys: Keys, progress: Progress) -> Outcome:
    """Train once: check the data, measure, judge, fit on everything, keep the result.

    Args:
        plan: see `Plan`.
        blobs, keys: where the data are and the artifact goes.
        progress: called with (step, of, message) before each fit.

    Raises:
        InvalidInput: the parameters or the data do not fit the recipe.
        ModelFailed: the recipe raised.
        WrongState: there is nothing to train on.
    """
    began = time.monotonic()
    job = _Run(plan, blobs, keys, progress)
    metrics = job.holdout()
    verdict = job.verdict()
    job.say("fitting on all rows")
    fitted = job.fit(job.pairs)
    metrics |= {f"train_{k}": v for k, v in job.measure(fitted, job.pairs).items()}
    made = job.version(fitted, metrics)
    champion = plan.champion.number if plan.champion else None
    decision, promote = gate.decide(
        plan.model.name, verdict, job.policy, champion=champion, at=time.time(), job=plan.job
    )
    if job.warnings:
        evidence = {**decision.evidence, "warnings": job.warnings}
        decision = msgspec.structs.replace(decision, evidence=evidence)
    seconds = time.monotonic() - began
    return Outcome(
        version=made, decision=decision, promote=promote, metrics=metrics, seconds=seconds
    )


class _Run:
    """The state of one run."""

    def __init__(self, plan: Plan, blobs: BlobStore, keys: Keys, progress: Progress) -> None:
        record = plan.model
        if record.recipe is None:
            raise WrongState(f"model {record.name!r} has no recipe to fit")
        self.policy: Every | None = policy.read(plan.policy) if plan.policy else None
        self.schema = msgspec.convert(record.schema, Schema)
        self._plan = plan
        self._blobs = blobs
        self._keys = keys
        self._progress = progress
        self._recipe = artifacts.load(record.recipe, blobs, keys)
        self._base = base_pairs(record, blobs)
        self._seqs, self._ids, self._examples = _thaw(plan.examples, blobs)
        self._window()
        self.pairs = [*self._base, *self._examples]
        if not self.pairs:
            raise WrongState(f"model {record.name!r} has no labelled rows to train on")
        known = plan.champion.upto if plan.champion else None
        self._fresh = 0 if known is None else sum(seq > known for seq in self._seqs)
        self._blocks = self._cut()
        self._step = 0
        self._steps = 2 + len(self._blocks)
        self.warnings = self._skew()

    def _window(self) -> None:
        """A window keeps the newest examples; once it is full, the base data set is left out."""
        window = self.policy.window if self.policy else None
        if window is not None and len(self._examples) >= window:
            self._seqs, self._ids = self._seqs[-window:], self._ids[-window:]
            self._base, self._examples = [], self._examples[-window:]

    def say(self, message: str) -> None:
        """Report the next step."""
        self._step += 1
        self._progress(self._step, self._steps, message)

    def fit(self, pairs: Sequence[Pair]) -> Adopted:
        """Fit the recipe on these rows."""
        rows, labels = [row for row, _ in pairs], [label for _, label in pairs]
        return self._recipe.fit(self.schema, rows, labels, self._plan.parameters or None)

    def measure(self, fitted: Adopted, pairs: Sequence[Pair]) -> dict[str, float]:
        """Score a fit."""
        return measure(fitted, self.schema, self._plan.model.task, pairs)

    def holdout(self) -> dict[str, float]:
        """Scores on rows a fit has not seen: the newest fifth, or a seeded fifth of all rows.

        The order of a base data set means nothing (it may be sorted by class), so the newest
        fifth is only taken where it consists of examples.
        """
        self.say("measuring on held-out rows")
        if len(self.pairs) < HOLDOUT_ROWS:
            return {}
        pairs = list(self.pairs)
        size = max(10, len(pairs) // 5)
        if len(self._examples) < size:
            order = numpy.random.default_rng(0).permutation(len(pairs))
            pairs = [pairs[i] for i in order]
        known, held = pairs[:-size], pairs[-size:]
        if self._one_class(known):
            return {}
        scores = self.measure(self.fit(known), held)
        return {f"holdout_{name}": value for name, value in scores.items()}

    def _one_class(self, pairs: Sequence[Pair]) -> bool:
        """Whether a classifier would be asked to learn from a single class."""
        task = self._plan.model.task
        return task == "classification" and len({label for _, label in pairs}) < 2

    def _cut(self) -> list[tuple[int, int]]:
        """Expanding blocks over the rows after the champion's training."""
        if not self._fresh or (self.policy is None and self._fresh > COMPARED):
            return []
        first = len(self.pairs) - self._fresh
        count = max(1, min(BLOCKS, self._fresh // BLOCK_ROWS))
        edges = [first + self._fresh * n // count for n in range(count + 1)]
        blocks = itertools.pairwise(edges)
        return [(a, b) for a, b in blocks if a and not self._one_class(self.pairs[:a])]

    def verdict(self) -> gate.Verdict | None:
        """Judge the recipe against the champion on the rows after the champion's training."""
        champion = self._plan.champion
        if champion is None or not self._blocks:
            return None
        try:
            ours, theirs, metric = self._paired(champion)
        except ModelFailed as error:
            reason = f"candidate and champion could not be compared: {error.detail}"
            return gate.Verdict(verdict=gate.UNSURE, reason=reason, evidence={})
        first, last = self._blocks[0][0] - len(self.pairs), self._blocks[-1][1] - len(self.pairs)
        rows = slice(first, last or None)
        seqs, ids = self._seqs[rows], self._ids[rows]
        names = [id or seq for id, seq in zip(ids, seqs, strict=True)]
        verdict = gate.judge(ours, theirs, self.policy or Every(), WORDS[metric], names)
        more = {
            "blocks": len(self._blocks),
            "from_seq": seqs[0],
            "to_seq": seqs[-1],
            "champion_version": champion.number,
        }
        return msgspec.structs.replace(verdict, evidence={**verdict.evidence, **more})

    def _paired(self, champion: Version) -> tuple[gate.Losses, gate.Losses, str]:
        """The losses of recipe and champion on the same rows, both by the same metric."""
        served = artifacts.load(champion.artifact, self._blobs, self._keys)
        mine: list[Told] = []
        theirs: list[Told] = []
        for number, (start, stop) in enumerate(self._blocks, 1):
            self.say(f"judging on block {number} of {len(self._blocks)}")
            pairs = self.pairs[start:stop]
            rows = [row for row, _ in pairs]
            fitted = self.fit(self.pairs[:start])
            mine.append((fitted, pairs, fitted.answer(self.schema, rows)))
            theirs.append((served, pairs, served.answer(self.schema, rows)))
        metric = self.policy.metric if self.policy else None
        if metric is None and self._plan.model.task != "classification":
            metric = "mse"
        elif metric is None:
            likely = all(answers.probabilities for *_, answers in mine + theirs)
            metric = "log_loss" if likely else "accuracy"
        return self._losses(mine, metric), self._losses(theirs, metric), metric

    def _losses(self, told: Sequence[Told], metric: str) -> gate.Losses:
        task = self._plan.model.task
        parts = [
            scoring.losses(
                task, [y for _, y in pairs], a.outputs, a.probabilities, fitted.classes, metric
            )
            for fitted, pairs, a in told
        ]
        return numpy.concatenate(parts)

    def _skew(self) -> list[str]:
        """What is odd about the new rows' values, for a person to look at."""
        rows = [row for row, _ in self._examples]
        unseen = {name: count / len(rows) for name, count in self.schema.unseen(rows).items()}
        found = [
            f"{name}: {share:.0%} of the new rows were never seen"
            for name, share in unseen.items()
            if share > UNSEEN_SHARE
        ]
        for index, field in enumerate(self.schema.fields):
            moved = self._shift(index) if field.kind in ("number", "integer") else 0.0
            if moved > SHIFT:
                found.append(f"{field.name}: its mean moved by {moved:.1f} standard deviations")
        return found

    def _shift(self, index: int) -> float:
        """How far a column's mean moved, in its standard deviations; 0 where rows are few."""
        old = [row[index] for row, _ in self._base if row[index] is not None]
        new = [row[index] for row, _ in self._examples if row[index] is not None]
        if min(len(old), len(new)) < HOLDOUT_ROWS:
            return 0.0
        before, after = numpy.asarray(old, dtype=float), numpy.asarray(new, dtype=float)
        return float(abs(after.mean() - before.mean()) / (before.std() or 1.0))

    def version(self, fitted: Adopted, metrics: dict[str, float]) -> Version:
        """Keep the fit as an artifact, and describe where it comes from."""
        plan = self._plan
        recipe = plan.model.recipe
        code = f"{recipe.digest if recipe else ''} loopline {__version__}"
        report = fitted.report()
        return Version(
            model=plan.model.name,
            number=0,
            artifact=artifacts.save(fitted, self._blobs, self._keys),
            created=time.time(),
            metrics=metrics,
            parameters=fitted.parameters(),
            classes=fitted.classes,
            data=plan.base,
            rows=len(self.pairs),
            upto=plan.upto,
            cursor=plan.cursor,
            code=hashlib.sha256(code.encode()).hexdigest(),
            environment=environment(),
            job=plan.job,
            report=self._blobs.put(msgspec.json.encode(report)) if report else None,
        )


def environment() -> str:
    """The interpreter and the libraries a fit depends on, as one line."""
    found = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
