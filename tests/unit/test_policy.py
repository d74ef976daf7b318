"""When to retrain: exactly every N, validated, and plain data both ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.errors import InvalidInput
from loopline.policy import Every, cooled, due, read, write


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 25))
def test_any_split_of_the_outcomes_gives_the_same_epochs(batches: list[int], every: int) -> None:
    """floor(n / N) distinct epochs in order, however the outcomes arrive."""
    rule, total, crossed = Every(outcomes=every), 0, []
    for batch in batches:
        crossed += due(rule, total, total + batch)
        total += batch
    assert crossed == list(range(1, total // every + 1))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"outcomes": 0}, "outcomes"),
        ({"mode": "maybe"}, "mode"),
        ({"cooldown": -1.0}, "cooldown"),
        ({"margin": -0.1}, "margin"),
        ({"minimum": 1}, "minimum"),
        ({"maturity": 0.0}, "maturity"),
        ({"timeout_label": 0}, "timeout_label"),
        ({"window": 0}, "window"),
        ({"confidence": 1.0}, "confidence"),
        ({"outcomes": "many"}, "outcomes"),
        ({"outcome": 5}, "outcome"),
        ({"kind": "sometimes"}, "kind"),
    ],
)
def test_a_wrong_policy_is_refused_by_field(wrong: dict[str, Any], field: str) -> None:
    """Every value that makes no sense is named."""
    with pytest.raises(InvalidInput) as caught:
        read(wrong)
    assert field in str([error.pointer + error.detail for error in caught.value.fields])


def test_a_policy_survives_as_plain_data() -> None:
    """What was written is read back the same; `kind` may be left out."""
    rule = Every(outcomes=7, mode="auto", maturity=60.0, timeout_label=0, window=100)
    assert read(write(rule)) == rule
    assert read({"outcomes": 7}) == Every(outcomes=7)


def test_the_cool_down_is_counted_from_the_last_start() -> None:
    """Before it has passed nothing starts; the first training does not wait."""
    rule = Every(cooldown=60.0)
    assert cooled(rule, None, 0.0)
    assert not cooled(rule, 100.0, 159.0)
    assert cooled(rule, 100.0, 160.0)
