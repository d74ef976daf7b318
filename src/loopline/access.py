"""Who is calling, and what they may do: tokens with scopes, and one check at the verb.

An adapter finds the caller once (`Access.identify`) and hands it to the verb as `caller=`; the verb
calls `check` before anything else.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Collection
from typing import Any

import msgspec

from loopline.contracts import Store
from loopline.errors import (
    FieldError,
    Forbidden,
    InvalidInput,
    Unauthorized,
    Unavailable,
    WrongState,
)
from loopline.records import Record, Token

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SCOPES = ("predict", "outcome", "learn", "train", "worker", "admin")
"""What a token may be allowed to do; `admin` implies all the others."""

FRESH = 2.0
"""Seconds for which the stored tokens are believed to be unchanged, revocations included."""
RECHECK = 0.2
"""Seconds between two readings of the store that unknown tokens can cause."""


class Caller(Record, frozen=True, kw_only=True):
    """Somebody who calls a verb, with the scopes they hold."""

    name: str
    scopes: frozenset[str]


TRUSTED = Caller(name="local", scopes=frozenset(SCOPES))
"""The program itself, and everybody where no token is required."""


def check(caller: Caller, scope: str) -> None:
    """Let the caller pass if they hold the scope.

    Raises:
        Forbidden: they do not; the message names the scope.
    """
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise Forbidden(f"this needs the scope {scope!r}, which token {caller.name!r} lacks")


class Access:
    """The tokens of an installation.

    Args:
        store: where their hashes are kept; the clear text is kept nowhere.
        required: whether a caller without a token is refused.
    """

    def __init__(self, store: Store, required: bool = False) -> None:
        self.required = required
        self._store = store
        self._lock = threading.Lock()
        self._callers: dict[str, Caller] = {}
        self._read: float | None = None

    def identify(self, token: str | None) -> Caller:
        """Find out who holds a token.

        Args:
            token: its clear text, or None where the caller sent none.

        Returns:
            The token's caller; `TRUSTED` for everybody where no token is required. What the store
            said is believed for `FRESH` seconds, and for longer while the store is away.

        Raises:
            Unauthorized: a token is required, and this is none, unknown or revoked.
        """
        if not self.required:
            return TRUSTED
        if not token:
            raise Unauthorized("a token is needed: send the header `Authorization: Bearer ll_...`")
        digest = _digest(token)
        caller = self._known(digest)
        if caller is None:
            self._refresh()
            caller = self._callers.get(digest)
        if caller is None:
            raise Unauthorized("this token is not known here, or was revoked")
        return caller

    def recall(self, token: str | None) -> Caller | None:
        """The caller, if that can be said without asking the store; None where it cannot.

        Event loops use this first, because the store may take its time.
        """
        if not self.required:
            return TRUSTED
        return self._known(_digest(token)) if token else None

    def issue(self, name: str, scopes: Collection[str]) -> str:
        """Make a token.

        Args:
            name: what it is called from now on; a revoked token's name can be used again.
            scopes: at least one of `SCOPES`.

        Returns:
            The clear text, which cannot be read back later.

        Raises:
            InvalidInput: the name or a scope is none.
            WrongState: a token of that name is in use.
        """
        _check_token(name, scopes)
        wanted = tuple(dict.fromkeys(scopes))
        if any(token.name == name and not token.revoked for token in self._store.tokens()):
            raise WrongState(f"a token named {name!r} exists already; revoke it first")
        text = f"ll_{secrets.token_urlsafe(32)}"
        created = self._store.now()
        self._store.put_token(Token(name=name, hash=_digest(text), scopes=wanted, created=created))
        self._forget()
        return text

    def revoke(self, name: str) -> bool:
        """Make a token useless, here at once and in other processes within `FRESH` seconds.

        Returns:
            Whether there was such a token in use.
        """
        active = [t for t in self._store.tokens() if t.name == name and not t.revoked]
        for token in active:
            self._store.put_token(msgspec.structs.replace(token, revoked=True))
        self._forget()
        return bool(active)

    def tokens(self) -> list[Token]:
        """All tokens ever issued, revoked ones included, by name."""
        return sorted(self._store.tokens(), key=lambda token: token.name)

    def _known(self, digest: str) -> Caller | None:
        if self._read is None or time.monotonic() - self._read >= FRESH:
            return None
        return self._callers.get(digest)

    def _refresh(self) -> None:
        """Read the tokens again, unless somebody did so a moment ago."""
        with self._lock:
            if self._read is not None and time.monotonic() - self._read < RECHECK:
                return
            try:
                tokens = self._store.tokens()
            except Unavailable:
                if self._read is None:
                    raise
                return
            self._callers = {
                token.hash: Caller(name=token.name, scopes=frozenset(token.scopes))
                for token in tokens
                if not token.revoked
            }
            self._read = time.monotonic()

    def _forget(self) -> None:
        with self._lock:
            self._read = None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _check_token(name: Any, scopes: Any) -> None:
    errors = []
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        detail = "a name has 1 to 100 letters, digits, dots, dashes or underscores"
        errors.append(FieldError("/name", detail))
    known = ", ".join(SCOPES)
    if not isinstance(scopes, list | tuple | set | frozenset) or not scopes:
        errors.append(FieldError("/scopes", f"a list of at least one of {known}"))
        scopes = ()
    for index, scope in enumerate(scopes):
        if scope not in SCOPES:
            errors.append(FieldError(f"/scopes/{index}", f"{scope!r} is not one of {known}"))
    if errors:
        raise InvalidInput("the token cannot be made like this", fields=errors)
