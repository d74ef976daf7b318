"""The conformance suite of an adapter: the same stories, told through a client of its protocol.

Subclass `AdapterSuite` and override its `driver` fixture. A `Driver` speaks the protocol as its
real clients do, and translates what they say into `Said` and `Refusal`, so that a test can
compare protocols by comparing values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Said(NamedTuple):
    """One row's answer."""

    id: str
    prediction: Any
    version: int


class Refusal(Exception):
    """The protocol's error, read as its clients would.

    Args:
        code: one of `errors.CODES`.
        detail: the sentence for the person who asked.
        pointers: the JSON Pointers of the fields complained of, where the protocol carries them.
    """

    def __init__(self, code: str, detail: str, pointers: Sequence[str] = ()) -> None:
        super().__init__(code, detail, tuple(pointers))
        self.code = code
        self.detail = detail
        self.pointers = tuple(pointers)


class Driver:
    """A client of one protocol; a verb that the protocol does not have stays as it is here.

    Args:
        token: sent with every request where the protocol carries tokens.
    """

    name = ""
    verbs: frozenset[str] = frozenset({"predict"})
    """Of predict, ids, versions, deadline, stream, learn, outcome, train, describe, tokens."""

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        """Predict rows, or one row that is not in a list."""
        raise NotImplementedError

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        """Predict rows as they come, yielding answers before all rows were read."""
        raise NotImplementedError

    def learn(self, model: str, rows: Sequence[Row]) -> int:
        """Add labelled rows; returns how many were accepted."""
        raise NotImplementedError

    def outcome(self, model: str, items: Sequence[Row]) -> list[str]:
        """Tell outcomes ({"id", "outcome"}); returns their statuses."""
        raise NotImplementedError

    def train(self, model: str) -> int:
        """Train and wait; returns the version."""
        raise NotImplementedError

    def describe(self, model: str) -> Row:
        """What the protocol tells of a model: at least {"name", "version", "inputs": [names]}."""
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""
