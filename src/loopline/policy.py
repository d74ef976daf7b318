"""When to retrain, and what a candidate must show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from loopline.errors import FieldError, InvalidInput
from loopline.records import Record

MODES = ("propose", "auto", "always")
METRICS = ("log_loss", "accuracy", "mse", "mae")
"""What a gate can compare by; each is judged as a loss per row, so smaller is better."""


class Every(
    Record, frozen=True, kw_only=True, tag="every", tag_field="kind", forbid_unknown_fields=True
):
    """Retrain once per so many matched outcomes, and judge the result.

    Args:
        outcomes: N; exactly every N matched outcomes cause one epoch.
        mode: `propose` leaves a good candidate for a person to promote, `auto` promotes it,
            `always` promotes whatever was trained.
        cooldown: seconds between the starts of two trainings.
        metric: what the gate compares by: log_loss or accuracy for classes, mse or mae for
            numbers. None is log_loss where both answer with probabilities, else accuracy; mse.
        margin: how much worse than the champion, in units of the loss, a candidate may be; 0
            asks it to be better.
        minimum: the fewest rows a verdict may rest on.
        maturity: seconds after which an outcome is late; None for never.
        timeout_label: what a prediction without an outcome by then is taken to have been.
        window: train on the newest so many examples; the base data set stays in only while
            there are fewer of them. None for the base data set and all examples.
        confidence: of the interval that gives the verdict.

    Raises:
        InvalidInput: names every value that is not right.
    """

    outcomes: int = 1000
    mode: str = "propose"
    cooldown: float = 0.0
    metric: str | None = None
    margin: float = 0.0
    minimum: int = 50
    maturity: float | None = None
    timeout_label: Any = None
    window: int | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        checks = [
            (_whole(self.outcomes, 1), "outcomes", "is a whole number, at least 1"),
            (self.mode in MODES, "mode", f"is one of {', '.join(MODES)}"),
            (_at_least(self.cooldown, 0.0), "cooldown", "is in seconds, 0 or more"),
            (self.metric in (None, *METRICS), "metric", f"is one of {', '.join(METRICS)}"),
            (_at_least(self.margin, 0.0), "margin", "is a number, 0 or more"),
            (_whole(self.minimum, 2), "minimum", "is a whole number, at least 2"),
            (
                self.maturity is None or (_at_least(self.maturity, 0.0) and self.maturity > 0),
                "maturity",
                "is in seconds, more than 0",
            ),
            (
                self.timeout_label is None or self.maturity is not None,
                "timeout_label",
                "needs a maturity, after which it is given",
            ),
            (
                self.window is None or _whole(self.window, 2),
                "window",
                "is a whole number, at least 2",
            ),
            (
                _at_least(self.confidence, 0.5) and 0.5 < self.confidence < 1,
                "confidence",
                "is between 0.5 and 1",
            ),
        ]
        errors = [FieldError(f"/retrain/{name}", told) for right, name, told in checks if not right]
        if errors:
            told = "; ".join(f"{error.pointer[9:]} {error.detail}" for error in errors)
            raise InvalidInput(f"the policy is not right: {told}", fields=errors)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _at_least(value: Any, least: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= least


def read(plain: Any) -> Every:
    """Read a policy from plain data; `kind` may be left out.

    Raises:
        InvalidInput: a value is not right, or a name or the kind is not known.
    """
    if isinstance(plain, Every):
        return plain
    if not isinstance(plain, Mapping):
        told = 'the policy is an object, for instance {"outcomes": 1000, "mode": "auto"}'
        raise InvalidInput.at(told, "/retrain")
    try:
        return msgspec.convert({"kind": "every", **plain}, Every)
    except msgspec.ValidationError as error:
        detail = f"the policy is not right: {error}"
        raise InvalidInput(detail, fields=[FieldError("/retrain", str(error))]) from error


def write(policy: Every) -> dict[str, Any]:
    """Write a policy as plain data, tagged with its `kind`."""
    plain: dict[str, Any] = msgspec.to_builtins(policy)
    return plain


def due(policy: Every, before: int, after: int) -> list[int]:
    """The epochs that a growing count of matched outcomes has crossed: exactly one per N.

    Args:
        before: the count of matched outcomes before a batch.
        after: the count behind it.

    Returns:
        The numbers k with `before < k * N <= after`, in order.
    """
    return list(range(before // policy.outcomes + 1, after // policy.outcomes + 1))


def cooled(policy: Every, last_started: float | None, now: float) -> bool:
    """Whether the cool-down since the last training has passed; times in seconds."""
    return last_started is None or now - last_started >= policy.cooldown
