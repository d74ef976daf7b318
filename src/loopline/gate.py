"""Champion against candidate, on the same matured rows, and a decision that can be read later.

The gate judges the recipe, not one fit of it: every row after the champion's training was scored
by the recipe fitted only on earlier rows, and is paired with the champion's loss on the same row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from loopline.policy import Every
from loopline.records import Decision, Record

Losses = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

PROMOTE, KEEP, UNSURE = "promote", "keep", "not-enough-evidence"
SHOWN = 5


class Verdict(Record, frozen=True, kw_only=True):
    """What the evidence says: promote, keep, or not enough evidence yet."""

    verdict: str
    reason: str
    evidence: dict[str, Any]


def judge(
    candidate: Losses,
    champion: Losses,
    policy: Every,
    metric: str = "loss",
    ids: Sequence[str | int] = (),
) -> Verdict:
    """Compare paired losses by a t-interval of their mean difference.

    Args:
        candidate, champion: float64 of shape (n,), the losses on the same rows in order.
        policy: margin, minimum and confidence.
        metric: what the losses are called.
        ids: how the rows are named in the evidence.

    Returns:
        `promote` when the whole interval of champion minus candidate lies above -margin, `keep`
        when it lies below, else `not-enough-evidence`.
    """
    rows = len(candidate)
    evidence: dict[str, Any] = {
        "metric": metric,
        "rows": rows,
        "margin": policy.margin,
        "confidence": policy.confidence,
    }
    if rows < policy.minimum:
        reason = f"{rows} rows to judge on; at least {policy.minimum} are needed"
        return Verdict(verdict=UNSURE, reason=reason, evidence=evidence)
    if not (numpy.isfinite(candidate).all() and numpy.isfinite(champion).all()):
        reason = f"the {metric} is not a finite number on some rows, so nothing is promoted"
        return Verdict(verdict=KEEP, reason=reason, evidence=evidence)
    difference = champion - candidate
    low, high = _interval(difference, policy.confidence)
    evidence |= {
        "candidate": float(candidate.mean()),
        "champion": float(champion.mean()),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "largest": _largest(difference, candidate, champion, ids),
    }
    verdict = _verdict(difference, low, high, policy.margin)
    return Verdict(verdict=verdict, reason=_sentence(verdict, evidence), evidence=evidence)


def _interval(difference: Losses, confidence: float) -> tuple[float, float]:
    """The two-sided t-interval of the mean (Student, Biometrika 6(1), 1908)."""
    from scipy.stats import t

    mean, rows = float(difference.mean()), len(difference)
    spread = float(difference.std(ddof=1)) / rows**0.5
    reach = float(t.ppf(0.5 + confidence / 2, rows - 1)) * spread
    return mean - reach, mean + reach


def _verdict(difference: Losses, low: float, high: float, margin: float) -> str:
    if not difference.any():
        return UNSURE
    if low > -margin:
        return PROMOTE
    return KEEP if high <= -margin else UNSURE


def _sentence(verdict: str, e: dict[str, Any]) -> str:
    if e["low"] == e["high"] == 0.0:
        return f"candidate and champion give the same {e['metric']} on all {e['rows']:,} rows"
    way = "better" if e["difference"] >= 0 else "worse"
    told = (
        f"candidate {e['metric']} {e['candidate']:.4g} against {e['champion']:.4g} on "
        f"{e['rows']:,} rows: {way} by {abs(e['difference']):.3g} "
        f"({e['confidence']:.0%} interval {e['low']:.3g} to {e['high']:.3g})"
    )
    return told if verdict != UNSURE else f"{told}, which does not settle it"


def _largest(
    difference: Losses, candidate: Losses, champion: Losses, ids: Sequence[str | int]
) -> list[dict[str, Any]]:
    order = numpy.argsort(-numpy.abs(difference), kind="stable")[:SHOWN]
    return [
        {
            "row": ids[int(i)] if ids else int(i),
            "candidate": float(candidate[i]),
            "champion": float(champion[i]),
        }
        for i in order
    ]


def decide(
    model: str,
    verdict: Verdict | None,
    policy: Every | None,
    *,
    champion: int | None,
    at: float,
    job: str | None = None,
) -> tuple[Decision, bool]:
    """Turn a verdict into a decision by the policy's mode.

    Args:
        verdict: None where there was nothing to compare with.
        policy: None for a training by hand, which promotes when it is done.
        champion: the version that answers now.

    Returns:
        The decision, and whether the candidate is to be promoted.
    """
    told, reason, by, promote = _ruling(verdict, policy, champion)
    decision = Decision(
        model=model,
        verdict=told,
        reason=reason,
        at=at,
        candidate=0,
        champion=champion,
        promoted=promote,
        by=by,
        evidence=verdict.evidence if verdict else {},
        job=job,
    )
    return decision, promote


def _ruling(
    verdict: Verdict | None, policy: Every | None, champion: int | None
) -> tuple[str, str, str, bool]:
    if champion is None:
        return PROMOTE, "the first version of this model", "first", True
    if policy is None:
        told = f"; {verdict.reason}" if verdict else ""
        return PROMOTE, f"trained by hand, and the model has no policy{told}", "person", True
    if verdict is None:
        reason = "there are no labelled rows after the champion's training"
        verdict = Verdict(verdict=UNSURE, reason=reason, evidence={})
    if policy.mode == "always":
        return verdict.verdict, f"promoted whatever the verdict; {verdict.reason}", "gate", True
    if verdict.verdict == PROMOTE and policy.mode == "propose":
        return PROMOTE, f"{verdict.reason}; waiting for approval", "gate", False
    return verdict.verdict, verdict.reason, "gate", verdict.verdict == PROMOTE
