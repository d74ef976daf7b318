"""The verdict on paired losses, how often it errs, and what a policy makes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from loopline.gate import Losses, Verdict, decide, judge
from loopline.policy import Every

POLICY = Every(minimum=50)


def noise(rows: int = 1200, seed: int = 0) -> Losses:
    """Losses that are never negative, with a long tail, as log-losses have."""
    return np.random.default_rng(seed).exponential(0.345, rows)


def test_a_better_candidate_is_promoted_and_the_reason_has_the_numbers() -> None:
    """Metric, both means, rows, the difference and its interval are in one sentence."""
    champion = noise()
    verdict = judge(champion * 0.9, champion, POLICY, "log-loss")
    assert verdict.verdict == "promote"
    for piece in ("candidate log-loss", "against", "on 1,200 rows", "better by", "interval"):
        assert piece in verdict.reason
    assert "\n" not in verdict.reason


def test_a_worse_candidate_is_not_taken() -> None:
    """The champion stays, and the reason says by how much it is better."""
    champion = noise()
    verdict = judge(champion * 1.1, champion, POLICY, "log-loss")
    assert verdict.verdict == "keep"
    assert "worse by" in verdict.reason


def test_the_same_answers_are_no_evidence() -> None:
    """Where nothing differs there is nothing to swap for."""
    champion = noise()
    verdict = judge(champion, champion, POLICY)
    assert verdict.verdict == "not-enough-evidence"
    assert "same" in verdict.reason


def test_too_few_rows_are_no_evidence() -> None:
    """However large the difference is; the reason names both numbers."""
    champion = noise(49)
    verdict = judge(champion * 0.1, champion, POLICY)
    assert verdict.verdict == "not-enough-evidence"
    assert "49" in verdict.reason and "50" in verdict.reason


def test_no_rows_at_all_are_no_evidence() -> None:
    """Nothing is divided by nothing."""
    assert judge(np.array([]), np.array([]), POLICY).verdict == "not-enough-evidence"


def test_noise_around_nought_does_not_settle_it() -> None:
    """An interval with nought in it gives no verdict."""
    champion = noise()
    shaken = champion + np.random.default_rng(1).normal(0, 0.1, len(champion))
    verdict = judge(shaken, champion, POLICY)
    assert verdict.verdict == "not-enough-evidence"
    assert verdict.evidence["low"] < 0 < verdict.evidence["high"]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("who", ["candidate", "champion"])
def test_losses_that_are_no_numbers_keep_the_champion(odd: float, who: str) -> None:
    """One of them is enough, and the reason says so."""
    good, bad = noise(), noise()
    bad[7] = odd
    pair = (bad, good) if who == "candidate" else (good, bad)
    verdict = judge(*pair, POLICY)
    assert verdict.verdict == "keep"
    assert verdict.reason


def test_a_margin_lets_an_equal_refresh_through() -> None:
    """Non-inferiority: a little worse is good enough, much worse is not."""
    champion = noise()
    shaken = champion + np.random.default_rng(1).normal(0.002, 0.05, len(champion))
    assert judge(shaken, champion, Every(margin=0.0)).verdict != "promote"
    assert judge(shaken, champion, Every(margin=0.02)).verdict == "promote"
    assert judge(champion + 0.1 + 0.01 * shaken, champion, Every(margin=0.02)).verdict == "keep"


def test_a_constant_gain_needs_no_spread() -> None:
    """An interval of no width is still an interval."""
    champion = np.full(100, 2.0)
    assert judge(np.full(100, 1.0), champion, POLICY).verdict == "promote"
    assert judge(np.full(100, 3.0), champion, POLICY).verdict == "keep"


@given(st.integers(60, 300), st.floats(-0.5, 0.5), st.floats(0.6, 0.99), st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_interval_is_students(rows: int, gain: float, confidence: float, seed: int) -> None:
    """The same as the reference gives for the mean of the paired differences."""
    champion = noise(rows, seed)
    gaps = np.random.default_rng(seed).normal(gain, 1.0, rows)
    evidence = judge(champion - gaps, champion, Every(confidence=confidence)).evidence
    expected = ttest_1samp(gaps, 0.0).confidence_interval(confidence)
    assert (evidence["low"], evidence["high"]) == pytest.approx(tuple(expected), abs=1e-9)


def test_without_a_difference_hardly_anything_is_promoted() -> None:
    """At 95 % confidence, chance promotes one in forty; 200 seeded worlds stay near that."""
    promoted = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        shared = random.exponential(0.3, 200)
        pair = [shared + random.exponential(0.1, 200) for _ in range(2)]
        promoted += judge(pair[0], pair[1], POLICY).verdict == "promote"
    assert promoted <= 12


def test_a_real_difference_is_nearly_always_seen() -> None:
    """The gate is not merely shy: a fifth off the loss is found in 200 rows."""
    found = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        shared = random.exponential(0.3, 200)
        candidate, champion = (shared + random.exponential(s, 200) for s in (0.05, 0.15))
        found += judge(candidate, champion, POLICY).verdict == "promote"
    assert found >= 95


def test_the_evidence_can_be_read_and_kept() -> None:
    """It is plain data, with the five rows where the two differ most."""
    champion = noise()
    candidate = champion.copy()
    candidate[[3, 700]] = [9.0, 5.0]
    names = [f"id-{n}" for n in range(len(champion))]
    evidence = judge(candidate, champion, POLICY, "log-loss", names).evidence
    assert msgspec.json.decode(msgspec.json.encode(evidence)) == evidence
    assert (evidence["metric"], evidence["rows"]) == ("log-loss", 1200)
    assert (evidence["confidence"], evidence["margin"]) == (0.95, 0.0)
    assert evidence["difference"] == pytest.approx((champion - candidate).mean())
    assert [each["row"] for each in evidence["largest"]][:2] == ["id-3", "id-700"]
    assert len(evidence["largest"]) == 5


def made(verdict: str) -> Verdict:
    """A verdict to decide on."""
    return Verdict(verdict=verdict, reason="as it was measured", evidence={"rows": 100})


@pytest.mark.parametrize("verdict", ["promote", "keep", "not-enough-evidence"])
@pytest.mark.parametrize("mode", ["propose", "auto", "always"])
def test_the_mode_says_what_follows_from_a_verdict(mode: str, verdict: str) -> None:
    """`propose` waits for a person, `auto` follows the verdict, `always` promotes regardless."""
    decision, promote = decide("m", made(verdict), Every(mode=mode), champion=3, at=5.0, job="j")
    expected = {"propose": False, "auto": verdict == "promote", "always": True}[mode]
    assert (promote, decision.promoted) == (expected, expected)
    assert (decision.verdict, decision.by, decision.champion) == (verdict, "gate", 3)
    assert (decision.candidate, decision.at, decision.job) == (0, 5.0, "j")
    assert "as it was measured" in decision.reason
    assert decision.evidence["rows"] == 100
    waiting = mode == "propose" and verdict == "promote"
    assert ("waiting for approval" in decision.reason) == waiting
    assert ("whatever" in decision.reason) == (mode == "always")


@pytest.mark.parametrize("policy", [None, Every(mode="propose"), Every(mode="auto")])
def test_the_first_version_goes_live(policy: Every | None) -> None:
    """There is nothing to compare with, and somebody has to answer."""
    decision, promote = decide("m", None, policy, champion=None, at=5.0)
    assert promote and decision.promoted
    assert (decision.verdict, decision.by, decision.champion) == ("promote", "first", None)


@pytest.mark.parametrize("verdict", [None, made("keep"), made("promote")])
def test_by_hand_without_a_policy_it_goes_live(verdict: Verdict | None) -> None:
    """A person asked for it; what was measured is kept as evidence."""
    decision, promote = decide("m", verdict, None, champion=1, at=5.0)
    assert promote and (decision.verdict, decision.by) == ("promote", "person")
    expected: dict[str, Any] = {} if verdict is None else {"rows": 100}
    assert decision.evidence.items() >= expected.items()


@pytest.mark.parametrize("mode", ["propose", "auto"])
def test_nothing_to_compare_on_is_not_enough(mode: str) -> None:
    """A policy asks for evidence, and there is none."""
    decision, promote = decide("m", None, Every(mode=mode), champion=1, at=5.0)
    assert (decision.verdict, promote) == ("not-enough-evidence", False)


def test_the_same_answers_are_no_evidence_with_a_margin_either() -> None:
    """A margin forgives a loss; it does not make a swap worth while."""
    champion = noise()
    assert judge(champion, champion, Every(margin=0.1)).verdict == "not-enough-evidence"


def test_always_promotes_even_with_nothing_to_compare_on() -> None:
    """The mode says whatever the verdict, and no verdict is one of them."""
    decision, promote = decide("m", None, Every(mode="always"), champion=1, at=5.0)
    assert (decision.verdict, promote) == ("not-enough-evidence", True)
