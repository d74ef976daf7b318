"""The one process of an installation that owns everything that ticks.

It writes the log (through an inlet that other processes hand their events to), runs the join of
every model, and on slower beats the timers: outcomes that wait, timeout labels, triggers, expired
leases, retention. It decides nothing that is not in the store: killed at any moment and started
again, it goes on from the positions there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from loopline import policy
from loopline.contracts import Doorbell, EventLog, Inlet, Store
from loopline.errors import Unavailable, WrongState
from loopline.facts import examples_topic, outcomes_topic, predictions_topic
from loopline.join import Join
from loopline.records import Job, JobState, ModelRecord, new_id
from loopline.settings import Settings

logger = logging.getLogger("loopline.keeper")

PUMP = 0.05
"""Seconds without any event after which the timers are looked at."""
FOLLOW = 0.1
TICK = 0.25
RECOVERY = 0.5
"""Seconds without joins and timers after something failed."""
RECEIPTS_KEPT = 60.0
RETENTION_TICK = 30.0


class Keeper:
    """The keeper's work, in whatever process or thread runs it.

    Args:
        log, store: the two truths; this must be the only keeper that has them.
        settings: retention and orphan time.
        doorbell: rung after every join and trigger.
        inlet: where other processes hand their events over; None when all is in one process.
    """

    def __init__(
        self,
        log: EventLog,
        store: Store,
        settings: Settings,
        doorbell: Doorbell,
        inlet: Inlet | None = None,
    ) -> None:
        self._log = log
        self._store = store
        self._settings = settings
        self._doorbell = doorbell
        self._inlet = inlet
        self._joins: dict[str, Join] = {}
        self._revision = -1
        self._trouble = ""
        self._stop = threading.Event()
        self._beats: list[_Beat] = [
            _Beat(FOLLOW, self._follow),
            _Beat(TICK, self._settle),
            _Beat(TICK, self._trigger),
            _Beat(1.0, self._sweep),
            _Beat(1.0, self._expire),
            _Beat(RETENTION_TICK, self._retain),
        ]

    def stop(self) -> None:
        """Let `run` return after taking in what was already handed over."""
        self._stop.set()
        self._doorbell.ring()

    def run(self) -> None:
        """Tick until `stop` is called."""
        while not self._stop.is_set():
            try:
                self.turn()
            except Unavailable as error:
                if self._trouble != str(error):
                    self._trouble = str(error)
                    logger.warning("%s; trying again", error)
                self._recover()
            except Exception:
                logger.exception("the keeper stumbled; it goes on")
                self._recover()
        if self._inlet is not None:
            self._inlet.close()
        for join in self._joins.values():
            join.close()

    def _recover(self) -> None:
        """Only take in what comes for a moment: the log may be well while the store is not."""
        until = time.monotonic() + RECOVERY
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            if self._inlet is not None:
                self._inlet.pump(min(PUMP, left))
            else:
                self._stop.wait(left)

    def turn(self) -> int:
        """Take in what came, join it, and do what is due.

        Returns:
            How many events were joined.
        """
        if self._inlet is not None:
            self._inlet.pump(PUMP)
        now = time.monotonic()
        for beat in self._beats:
            beat.maybe(now)
        joined = sum(self._join(join) for join in list(self._joins.values()))
        if joined:
            self._doorbell.ring()
        elif self._inlet is None:
            self._doorbell.wait(PUMP)
        return joined

    def _follow(self) -> None:
        """Have one join per model, made anew when the model's record changed."""
        revision = self._store.revision()
        if revision == self._revision:
            return
        records = {record.name: record for record in self._store.models()}
        for name in list(self._joins):
            record = records.get(name)
            if record is None or not _joins_alike(record, self._joins[name].model):
                self._joins.pop(name).close()
        for name, record in records.items():
            if name not in self._joins:
                self._joins[name] = Join(record, self._log, self._store, self._settings.orphan_time)
        self._revision = revision

    def _join(self, join: Join) -> int:
        try:
            return join.step()
        except WrongState as error:
            logger.warning("join of %s: %s", join.model.name, error)
            return 0

    def _settle(self) -> None:
        now = self._store.now()
        changed = sum(join.settle(now) for join in self._joins.values())
        if changed:
            self._doorbell.ring()

    def _trigger(self) -> None:
        for name, join in self._joins.items():
            rule = join.rule
            if rule is None or not self._cool(name, rule):
                continue
            reason = f"{rule.outcomes} more outcomes"
            job = Job(id=new_id(), kind="train", model=name, payload={}, reason=reason)
            if self._store.trigger(name, job) is not None:
                logger.info("%s: a retraining was triggered", name)
                self._doorbell.ring()

    def _cool(self, name: str, rule: policy.Every) -> bool:
        if not rule.cooldown:
            return True
        started = [job.created for job in self._store.jobs(model=name, most=1)]
        return policy.cooled(rule, started[0] if started else None, self._store.now())

    def _sweep(self) -> None:
        if self._trouble:
            # The store was away, so no lease could be extended: none ran out by its worker's fault.
            self._store.stretch_leases(self._settings.lease)
            logger.warning("it works again")
            self._trouble = ""
        for job in self._store.sweep():
            logger.warning("job %s: its lease ran out; now %s", job.id, job.state.value)
            if job.state is JobState.QUEUED:
                self._doorbell.ring()

    def _expire(self) -> None:
        now = self._store.now()
        for join in self._joins.values():
            join.expire(now)

    def _retain(self) -> None:
        self._store.trim_receipts(self._store.now() - RECEIPTS_KEPT)
        if not self._settings.retention:
            return
        before = self._store.now() - self._settings.retention
        for name in self._joins:
            for topic in (predictions_topic(name), outcomes_topic(name), examples_topic(name)):
                self._log.trim(topic, before)


class _Beat:
    """Something that is done at most every so many seconds."""

    def __init__(self, every: float, act: Callable[[], None]) -> None:
        self._every = every
        self._act = act
        self._due = 0.0

    def maybe(self, now: float) -> None:
        """Do it if it is due."""
        if now >= self._due:
            self._due = now + self._every
            self._act()


def _joins_alike(a: ModelRecord, b: ModelRecord) -> bool:
    return (a.schema, a.policy, a.task, a.target) == (b.schema, b.policy, b.task, b.target)
