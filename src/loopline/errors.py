"""Every way a verb can refuse or fail, with a stable code that each protocol translates for itself.

LooplineError
├── InvalidInput         invalid-input       a value breaks the schema; names every field at once
├── Unreadable           unreadable          the bytes are not what their content type says
├── UnknownModel         unknown-model
├── UnknownVersion       unknown-version
├── UnknownPrediction    unknown-prediction
├── UnknownJob           unknown-job
├── NotReady             not-ready           no fitted version yet, or it is still loading
├── WrongState           wrong-state         the thing exists, but not in a state that allows this
├── StaleAttempt         wrong-state         a fenced-off attempt came back
├── TooLarge             too-large
├── Overloaded           overloaded          a bounded queue is full; try again later
├── TimedOut             timeout
├── Unauthorized         unauthorized        no token, or not one of ours
├── Forbidden            forbidden           a token without the scope
├── ModelFailed          model-failed        the model itself raised
├── Tampered             model-failed        an artifact's bytes do not match its signature
├── Unavailable          unavailable         the log, the store or a process is away for a moment
└── MissingExtra         unavailable         an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One field's complaint: a JSON Pointer to the value and a sentence about it."""

    pointer: str
    detail: str


class LooplineError(Exception):
    """Loopline could not do what was asked.

    The docstring of each class is its default message.

    Args:
        detail: what happened and what to do about it, for the person who asked.
        fields: one entry for every offending field, all of them at once.
        retry_after: seconds after which trying again makes sense, where it does.
    """

    code: ClassVar[str] = "model-failed"

    def __init__(
        self,
        detail: str | None = None,
        *,
        fields: Sequence[FieldError] = (),
        retry_after: float | None = None,
    ) -> None:
        doc = (type(self).__doc__ or "").strip().splitlines()
        self.detail = detail or (doc[0] if doc else type(self).__name__)
        self.fields = tuple(fields)
        self.retry_after = retry_after
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.detail, self.fields, self.retry_after))


def _rebuild(
    kind: type[LooplineError], detail: str, fields: tuple[FieldError, ...], retry: float | None
) -> LooplineError:
    return kind(detail, fields=fields, retry_after=retry)


class InvalidInput(LooplineError):
    """The input does not fit the schema."""

    code = "invalid-input"

    @classmethod
    def at(cls, detail: str, *pointers: str) -> InvalidInput:
        """The same complaint about every one of these places."""
        return cls(detail, fields=[FieldError(pointer, detail) for pointer in pointers])


class Unreadable(LooplineError):
    """The body could not be read."""

    code = "unreadable"


class UnknownModel(LooplineError):
    """There is no model of that name."""

    code = "unknown-model"


class UnknownVersion(LooplineError):
    """The model has no such version."""

    code = "unknown-version"


class UnknownPrediction(LooplineError):
    """No prediction with that id is known."""

    code = "unknown-prediction"


class UnknownJob(LooplineError):
    """There is no such job."""

    code = "unknown-job"


class NotReady(LooplineError):
    """The model has no version in service yet; train it first."""

    code = "not-ready"


class WrongState(LooplineError):
    """The current state does not allow this."""

    code = "wrong-state"


class StaleAttempt(WrongState):
    """This attempt no longer holds the job's lease."""


class TooLarge(LooplineError):
    """The request is larger than the server accepts."""

    code = "too-large"


class Overloaded(LooplineError):
    """The server has as much work as it accepts; try again shortly."""

    code = "overloaded"


class TimedOut(LooplineError):
    """The deadline passed before there was an answer."""

    code = "timeout"


class Unauthorized(LooplineError):
    """A valid token is needed."""

    code = "unauthorized"


class Forbidden(LooplineError):
    """The token does not carry the scope this needs."""

    code = "forbidden"


class ModelFailed(LooplineError):
    """The model raised an exception."""

    code = "model-failed"


class Tampered(ModelFailed):
    """The artifact's bytes do not match its signature, so it was not loaded."""


class Unavailable(LooplineError):
    """A part of the installation is away for a moment; try again shortly."""

    code = "unavailable"


class MissingExtra(Unavailable):
    """An optional dependency is not installed."""


CODES = tuple(
    sorted(
        {
            kind.code
            for kind in list(globals().values())
            if isinstance(kind, type)
            and issubclass(kind, LooplineError)
            and kind is not LooplineError
        }
    )
)
