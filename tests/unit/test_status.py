from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

import pytest

from loopline import errors
from loopline.adapters.status import (
    GRPC,
    HTTP,
    HTTP_ONLY,
    WEBSOCKET,
    http_retry_after,
    http_status,
)
from loopline.errors import CODES, LooplineError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LooplineError) and kind is not LooplineError
]


def test_the_table_has_every_code_and_no_other() -> None:
    """Each error code has an HTTP status, and HTTP's own codes are not taken from the tree."""
    assert set(HTTP) == set(GRPC) == set(CODES)
    assert set(WEBSOCKET) < set(CODES)
    assert not set(HTTP) & set(HTTP_ONLY)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_of_its_sort(kind: type[LooplineError]) -> None:
    """The caller's mistakes are 4xx, ours are 5xx, and only what passes asks to come back."""
    error = kind()
    status = http_status(error)
    assert HTTPStatus(status).phrase and status >= 400
    ours = {"overloaded", "timeout", "model-failed", "unavailable"}
    assert (status >= 500) == (kind.code in ours)
    asks = http_retry_after(error) is not None
    assert asks == (status == 503 and kind is not errors.MissingExtra)


def test_a_model_that_is_not_ready_is_a_conflict_until_a_training_is_on_its_way() -> None:
    """Only an error that says when to come back becomes 503."""
    assert http_status(errors.NotReady()) == 409
    assert http_retry_after(errors.NotReady()) is None
    soon = errors.NotReady(retry_after=2.0)
    assert http_status(soon) == 503
    assert http_retry_after(soon) == 2


def test_waiting_is_told_in_whole_seconds_and_never_none_at_all() -> None:
    """`Retry-After` takes whole seconds, so a fraction is rounded, up to one at least."""
    assert http_retry_after(errors.Overloaded(retry_after=0.05)) == 1
    assert http_retry_after(errors.Unavailable(retry_after=29.6)) == 30


def test_the_reference_has_the_table() -> None:
    """Whoever reads the docs sees the statuses that are sent."""
    text = (Path(__file__).parents[2] / "docs/reference/protocols.md").read_text("utf-8")
    for code in CODES:
        close = f"{WEBSOCKET[code]} |" if code in WEBSOCKET else "|"
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{code}` |")]
        assert line.startswith(f"| `{code}` | {HTTP[code]}")
        assert line.endswith(f"| `{GRPC[code]}` | {close}")
