"""From our error codes to each protocol's own status: one table, walked by one test."""

from __future__ import annotations

from typing import Any

from loopline.errors import LooplineError, MissingExtra, ModelFailed, NotReady

ENDED = ("done", "failed", "cancelled")
"""The states that a job stays in."""

HTTP: dict[str, int] = {
    "invalid-input": 422,
    "unreadable": 400,
    "unknown-model": 404,
    "unknown-version": 404,
    "unknown-prediction": 404,
    "unknown-job": 404,
    "not-ready": 409,
    "wrong-state": 409,
    "too-large": 413,
    "overloaded": 503,
    "timeout": 504,
    "unauthorized": 401,
    "forbidden": 403,
    "model-failed": 500,
    "unavailable": 503,
}
"""Every code of `errors.py`. `http_status` knows the one exception: a `not-ready` that passes."""

HTTP_ONLY: dict[str, int] = {
    "unknown-path": 404,
    "unknown-token": 404,
    "wrong-method": 405,
    "unsupported-media-type": 415,
    "internal-error": 500,
}
"""Refusals that exist on HTTP alone, because no verb was reached."""

GRPC: dict[str, str] = {
    "invalid-input": "INVALID_ARGUMENT",
    "unreadable": "INVALID_ARGUMENT",
    "unknown-model": "NOT_FOUND",
    "unknown-version": "NOT_FOUND",
    "unknown-prediction": "NOT_FOUND",
    "unknown-job": "NOT_FOUND",
    "not-ready": "UNAVAILABLE",
    "wrong-state": "FAILED_PRECONDITION",
    "too-large": "RESOURCE_EXHAUSTED",
    "overloaded": "RESOURCE_EXHAUSTED",
    "timeout": "DEADLINE_EXCEEDED",
    "unauthorized": "UNAUTHENTICATED",
    "forbidden": "PERMISSION_DENIED",
    "model-failed": "INTERNAL",
    "unavailable": "UNAVAILABLE",
}
"""The names of gRPC's status codes."""

WEBSOCKET: dict[str, int] = {
    "unreadable": 1007,
    "unknown-model": 1008,
    "unauthorized": 1008,
    "forbidden": 1008,
    "too-large": 1009,
    "overloaded": 1013,
    "unavailable": 1013,
}
"""The close codes (RFC 6455) of what ends a connection; all else answers its message."""


def http_status(error: LooplineError) -> int:
    """The HTTP status of an error.

    A model that is not ready is a conflict (409: somebody has to train it) until a training is on
    its way, which is what `retry_after` says: then it is 503, and asking again makes sense.
    """
    if isinstance(error, NotReady) and error.retry_after is not None:
        return 503
    return HTTP[error.code]


def http_retry_after(error: LooplineError) -> int | None:
    """Whole seconds for the `Retry-After` header; None where waiting would not help."""
    if error.retry_after is not None:
        return max(1, round(error.retry_after))
    if isinstance(error, MissingExtra):
        return None
    return 1 if HTTP[error.code] == 503 else None


def job_error(error: dict[str, Any]) -> LooplineError:
    """The error that a job ended with, as that of the request which waited for it."""
    detail = str(error.get("detail") or error.get("message") or "the training failed")
    kinds = {kind.code: kind for kind in reversed(LooplineError.__subclasses__())}
    return kinds.get(str(error.get("code")), ModelFailed)(detail)
