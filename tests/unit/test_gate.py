"""The gate: three verdicts that hold up under simulation, and decisions by mode."""

from __future__ import annotations

import numpy
import pytest

from loopline.gate import KEEP, PROMOTE, UNSURE, decide, judge
from loopline.policy import Every

RULE = Every(outcomes=100)


def losses(seed: int, rows: int, better: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Losses of a candidate and a champion, the candidate better by so much on average."""
    chance = numpy.random.default_rng(seed)
    shared = chance.exponential(1.0, rows)
    noise = chance.normal(0, 0.5, (2, rows))
    return numpy.abs(shared + noise[0]) - better, numpy.abs(shared + noise[1])


def test_a_clearly_better_candidate_is_promoted_with_its_evidence() -> None:
    """The sentence and the evidence hold the same numbers."""
    candidate, champion = losses(1, 800, 0.3)
    verdict = judge(candidate, champion, RULE, "log-loss", range(800))
    assert verdict.verdict == PROMOTE
    evidence = verdict.evidence
    assert evidence["rows"] == 800 and evidence["low"] > 0
    assert evidence["difference"] == pytest.approx(0.3, abs=0.1)
    assert f"{evidence['candidate']:.4g}" in verdict.reason and "better" in verdict.reason
    assert len(evidence["largest"]) == 5


def test_a_clearly_worse_candidate_is_not() -> None:
    """Keep, saying by how much it is worse."""
    candidate, champion = losses(2, 800, -0.3)
    verdict = judge(candidate, champion, RULE)
    assert verdict.verdict == KEEP and "worse" in verdict.reason


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_rows_settle_nothing(rows: int) -> None:
    """Below the minimum there is no verdict, however large the difference."""
    candidate, champion = losses(3, rows, 5.0)
    verdict = judge(candidate, champion, RULE)
    assert verdict.verdict == UNSURE and "50" in verdict.reason


def test_identical_answers_are_no_reason_to_swap() -> None:
    """A candidate that answers as the champion does is not promoted."""
    same = numpy.linspace(0, 1, 200)
    verdict = judge(same, same, RULE)
    assert verdict.verdict == UNSURE and "same" in verdict.reason


def test_a_refresh_may_be_as_good_within_a_margin() -> None:
    """With a margin, equal is good enough; clearly worse than the margin is not."""
    rule = Every(outcomes=100, margin=0.2)
    assert judge(*losses(4, 2000, 0.0), rule).verdict == PROMOTE
    assert judge(*losses(4, 2000, -0.4), rule).verdict == KEEP


def test_losses_that_are_no_numbers_keep_the_champion() -> None:
    """NaN and infinity are never evidence for a swap."""
    for bad in (numpy.nan, numpy.inf):
        candidate, champion = losses(5, 100, 1.0)
        candidate[3] = bad
        verdict = judge(candidate, champion, RULE)
        assert verdict.verdict == KEEP and "not a finite number" in verdict.reason


def test_where_nothing_differs_promotions_are_rare() -> None:
    """Under the null the two-sided 95 % interval promotes in about 2.5 % of simulations."""
    verdicts = [judge(*losses(seed, 200, 0.0), RULE).verdict for seed in range(400)]
    assert verdicts.count(PROMOTE) <= 24
    assert verdicts.count(UNSURE) >= 360


@pytest.mark.parametrize(
    ("mode", "better", "promoted"),
    [
        ("propose", 0.3, False),
        ("auto", 0.3, True),
        ("auto", -0.3, False),
        ("always", -0.3, True),
    ],
)
def test_the_mode_says_who_promotes(mode: str, better: float, promoted: bool) -> None:
    """Propose waits for a person, auto follows the verdict, always promotes and says so."""
    rule = Every(outcomes=100, mode=mode)
    verdict = judge(*losses(6, 800, better), rule)
    decision, promote = decide("m", verdict, rule, champion=3, at=1.0)
    assert promote is promoted is decision.promoted
    assert (decision.by, decision.champion, decision.candidate) == ("gate", 3, 0)
    if mode == "propose":
        assert "waiting for approval" in decision.reason
    if mode == "always":
        assert "whatever the verdict" in decision.reason


def test_first_versions_and_trainings_by_hand_are_promoted() -> None:
    """No champion: first. No policy: by a person. No fresh rows: nothing to judge on."""
    first, promote = decide("m", None, RULE, champion=None, at=1.0)
    assert promote and first.by == "first"
    by_hand, promote = decide("m", None, None, champion=1, at=1.0)
    assert promote and by_hand.by == "person"
    empty, promote = decide("m", None, RULE, champion=1, at=1.0)
    assert not promote and empty.verdict == UNSURE
