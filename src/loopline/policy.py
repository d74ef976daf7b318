"""When to retrain, and what a candidate must show."""

from __future__ import annotations

from typing import Any

import msgspec

from loopline.errors import FieldError, InvalidInput
from loopline.records import Record

MODES = ("propose", "auto", "always")


class Every(
    Record, frozen=True, kw_only=True, tag="every", tag_field="kind", forbid_unknown_fields=True
):
    """Retrain once per so many matched outcomes, and judge the result.

    Args:
        outcomes: N; exactly every N matched outcomes cause one epoch.
        mode: `propose` leaves a good candidate for a person to promote, `auto` promotes it,
            `always` promotes whatever was trained.
        cooldown: seconds between the starts of two trainings.
        margin: how much worse than the champion, in units of the loss, a candidate may be; 0
            asks it to be better.
        minimum: the fewest rows a verdict may rest on.
        maturity: seconds after which an outcome is late; None for never.
        timeout_label: what a prediction without an outcome by then is taken to have been.
        window: train on the newest so many examples; None for all.
        confidence: of the interval that gives the verdict.
    """

    outcomes: int = 1000
    mode: str = "propose"
    cooldown: float = 0.0
    margin: float = 0.0
    minimum: int = 50
    maturity: float | None = None
    timeout_label: Any = None
    window: int | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        wrong = [
            (self.outcomes < 1, "outcomes", "is at least 1"),
            (self.mode not in MODES, "mode", f"is one of {', '.join(MODES)}"),
            (self.cooldown < 0, "cooldown", "is in seconds, 0 or more"),
            (self.margin < 0, "margin", "is 0 or more"),
            (self.minimum < 2, "minimum", "is at least 2"),
            (self.maturity is not None and self.maturity <= 0, "maturity", "is more than 0"),
            (
                self.timeout_label is not None and self.maturity is None,
                "timeout_label",
                "needs a maturity, after which it is given",
            ),
            (self.window is not None and self.window < 1, "window", "is at least 1"),
            (not 0.5 < self.confidence < 1, "confidence", "is between 0.5 and 1"),
        ]
        errors = [FieldError(f"/retrain/{name}", told) for bad, name, told in wrong if bad]
        if errors:
            raise InvalidInput("the policy is not right", fields=errors)


def read(plain: dict[str, Any]) -> Every:
    """Read a policy from plain data; `kind` may be left out.

    Raises:
        InvalidInput: a value is not right, or a name is not known.
    """
    try:
        return msgspec.convert({"kind": "every", **plain}, Every)
    except msgspec.ValidationError as error:
        detail = f"the policy is not right: {error}"
        raise InvalidInput(detail, fields=[FieldError("/retrain", str(error))]) from error


def write(policy: Every) -> dict[str, Any]:
    """Write a policy as plain data."""
    plain: dict[str, Any] = msgspec.to_builtins(policy)
    return plain


def due(policy: Every, before: int, after: int) -> list[int]:
    """The epochs that a growing count of matched outcomes has crossed: exactly one per N."""
    return list(range(before // policy.outcomes + 1, after // policy.outcomes + 1))


def cooled(policy: Every, last_started: float | None, now: float) -> bool:
    """Whether the cool-down since the last training has passed."""
    return last_started is None or now - last_started >= policy.cooldown
