"""When to retrain: the records, their checks, and the arithmetic of every N."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.errors import InvalidInput
from loopline.policy import Every, cooled, due, read, write


@given(every=st.integers(1, 50), batches=st.lists(st.integers(0, 120), max_size=30))
def test_every_n_is_exact_however_outcomes_are_batched(every: int, batches: list[int]) -> None:
    """Any split of n outcomes into batches crosses each k up to floor(n / N) once, in order."""
    rule = Every(outcomes=every)
    counts = list(accumulate(batches, initial=0))
    crossed = [k for before, after in pairwise(counts) for k in due(rule, before, after)]
    assert crossed == list(range(1, counts[-1] // every + 1))


@given(every=st.integers(1, 50), before=st.integers(0, 500), grown=st.integers(0, 200))
def test_a_crossed_epoch_ends_inside_its_batch(every: int, before: int, grown: int) -> None:
    """Outcome number k * N is one of those that the batch brought."""
    for k in due(Every(outcomes=every), before, before + grown):
        assert before < k * every <= before + grown


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcomes", 0),
        ("outcomes", -3),
        ("mode", "sometimes"),
        ("cooldown", -1.0),
        ("margin", -0.1),
        ("minimum", 1),
        ("maturity", 0.0),
        ("timeout_label", 0),
        ("window", 0),
        ("confidence", 0.5),
        ("confidence", 1.0),
    ],
)
def test_a_value_that_is_not_right_is_named(field: str, value: Any) -> None:
    """Made in Python or read from plain data, the complaint points at the field."""
    for make in (lambda: Every(**{field: value}), lambda: read({field: value})):
        with pytest.raises(InvalidInput) as caught:
            make()
        assert [each.pointer for each in caught.value.fields] == [f"/retrain/{field}"]


def test_all_wrong_values_are_told_at_once() -> None:
    """Whoever mends a policy hears of everything in it."""
    with pytest.raises(InvalidInput) as caught:
        Every(outcomes=0, mode="never", confidence=2.0)
    pointers = {each.pointer for each in caught.value.fields}
    assert pointers == {"/retrain/outcomes", "/retrain/mode", "/retrain/confidence"}


@pytest.mark.parametrize(
    "plain", [{"kind": "daily"}, {"outcome": 10}, {"outcomes": "10"}, {"outcomes": 1.5}]
)
def test_plain_data_that_is_no_policy_is_refused(plain: dict[str, Any]) -> None:
    """Unknown kinds, unknown names and wrong types are complaints, not defaults."""
    with pytest.raises(InvalidInput):
        read(plain)


policies = st.builds(
    Every,
    outcomes=st.integers(1, 10**6),
    mode=st.sampled_from(["propose", "auto", "always"]),
    cooldown=st.floats(0, 1e6),
    margin=st.floats(0, 10),
    minimum=st.integers(2, 1000),
    maturity=st.floats(1, 1e6),
    timeout_label=st.none() | st.integers(0, 5) | st.sampled_from(["no"]),
    window=st.none() | st.integers(2, 10**6),
    confidence=st.floats(0.6, 0.999),
)


@given(policies)
def test_a_policy_survives_being_written(rule: Every) -> None:
    """Plain data, through JSON and back, is the same policy, tagged with its kind."""
    plain = msgspec.json.decode(msgspec.json.encode(write(rule)))
    assert plain["kind"] == "every"
    assert read(plain) == rule


def test_the_kind_may_be_left_out() -> None:
    """A table of a configuration file names only what it changes."""
    assert read({"outcomes": 5}) == Every(outcomes=5)
    assert read({}).mode == "propose"


def test_a_policy_does_not_change() -> None:
    """It is a frozen record."""
    with pytest.raises(AttributeError):
        Every().outcomes = 3  # type: ignore[misc]


def test_the_cool_down_counts_from_the_last_start() -> None:
    """The first training never waits; the next one waits so many seconds."""
    rule = Every(cooldown=60.0)
    assert cooled(rule, None, 0.0)
    assert not cooled(rule, 100.0, 159.9)
    assert cooled(rule, 100.0, 160.0)
    assert cooled(Every(), 100.0, 100.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcomes", "10"),
        ("outcomes", True),
        ("outcomes", 10.5),
        ("margin", math.nan),
        ("maturity", math.inf),
        ("confidence", "high"),
        ("metric", "rmse"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, value: Any) -> None:
    """Whoever writes a policy in Python gets the same complaint as whoever sends one."""
    with pytest.raises(InvalidInput, match=field):
        Every(**{field: value})


@pytest.mark.parametrize("metric", [None, "log_loss", "accuracy", "mse", "mae"])
def test_the_metric_of_the_gate_can_be_chosen(metric: str | None) -> None:
    """And it travels with the policy."""
    assert read(write(Every(metric=metric))).metric == metric
