from __future__ import annotations

import pytest

from loopline.access import SCOPES, TRUSTED, Access, Caller, check
from loopline.backends.memory_store import MemoryStore
from loopline.errors import Forbidden, InvalidInput, Unauthorized, Unavailable, WrongState
from loopline.records import Token


class FadingStore(MemoryStore):
    """A store that can be away."""

    away = False

    def tokens(self) -> list[Token]:
        if self.away:
            raise Unavailable
        return super().tokens()


def test_a_token_is_told_once_and_only_its_hash_is_stored() -> None:
    """The clear text is nowhere in the store, and begins with our prefix."""
    store = MemoryStore()
    text = Access(store, required=True).issue("ci", ["predict"])
    assert text.startswith("ll_") and len(text) > 40
    assert text not in repr(store.tokens())
    assert [token.scopes for token in store.tokens()] == [("predict",)]


def test_a_token_carries_its_name_and_scopes() -> None:
    """Identifying a token gives the caller that it was issued for."""
    access = Access(MemoryStore(), required=True)
    text = access.issue("ci", ["predict", "learn"])
    assert access.identify(text) == Caller(name="ci", scopes=frozenset({"predict", "learn"}))
    assert access.recall(text) == access.identify(text)


@pytest.mark.parametrize("token", [None, "", "ll_wrong", "Ünïcode"])
def test_a_caller_without_a_known_token_is_refused(token: str | None) -> None:
    """Missing, empty and unknown tokens are all unauthorized."""
    access = Access(MemoryStore(), required=True)
    access.issue("ci", ["predict"])
    with pytest.raises(Unauthorized):
        access.identify(token)
    assert access.recall(token) is None


@pytest.mark.parametrize("token", [None, "ll_whatever"])
def test_everybody_is_trusted_where_no_token_is_required(token: str | None) -> None:
    """An open server asks nobody who they are."""
    assert Access(MemoryStore()).identify(token) is TRUSTED


def test_a_revoked_token_is_refused_at_once() -> None:
    """Revoking does not wait for the cache, and the name can be used again afterwards."""
    access = Access(MemoryStore(), required=True)
    old = access.issue("ci", ["predict"])
    access.identify(old)
    assert access.revoke("ci")
    with pytest.raises(Unauthorized):
        access.identify(old)
    assert not access.revoke("ci")
    new = access.issue("ci", ["train"])
    assert access.identify(new).scopes == {"train"}
    with pytest.raises(Unauthorized):
        access.identify(old)


def test_a_token_issued_by_another_process_is_found() -> None:
    """The store is asked again where a token is not among those read before."""
    store = MemoryStore()
    here, there = Access(store, required=True), Access(store, required=True)
    assert here.identify(there.issue("other", ["predict"])).name == "other"


def test_known_tokens_go_on_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was known before the store went away is still known; the first reading has to work."""
    monkeypatch.setattr("loopline.access.FRESH", 0.0)
    monkeypatch.setattr("loopline.access.RECHECK", 0.0)
    store = FadingStore()
    access = Access(store, required=True)
    text = access.issue("ci", ["predict"])
    store.away = True
    with pytest.raises(Unavailable):
        access.identify(text)
    store.away = False
    access.identify(text)
    store.away = True
    assert access.identify(text).name == "ci"


def test_a_name_in_use_is_not_given_twice() -> None:
    """Issuing a token under a name in use changes nothing."""
    access = Access(MemoryStore(), required=True)
    text = access.issue("ci", ["predict"])
    with pytest.raises(WrongState):
        access.issue("ci", ["admin"])
    assert access.identify(text).scopes == {"predict"}


def test_all_that_is_wrong_with_a_token_is_told_at_once() -> None:
    """The name and every unknown scope are named, and no token is made."""
    store = MemoryStore()
    with pytest.raises(InvalidInput) as caught:
        Access(store).issue("no spaces", ["predict", "fly", "swim"])
    assert [each.pointer for each in caught.value.fields] == ["/name", "/scopes/1", "/scopes/2"]
    with pytest.raises(InvalidInput) as caught:
        Access(store).issue("ci", [])
    assert [each.pointer for each in caught.value.fields] == ["/scopes"]
    assert store.tokens() == []


def test_admin_implies_every_scope_and_others_only_themselves() -> None:
    """The check lets the holder of a scope pass, and names the scope to anybody else."""
    admin = Caller(name="root", scopes=frozenset({"admin"}))
    reader = Caller(name="reader", scopes=frozenset({"predict"}))
    for scope in SCOPES:
        check(admin, scope)
        check(TRUSTED, scope)
    check(reader, "predict")
    with pytest.raises(Forbidden, match=r"'train'.*'reader'"):
        check(reader, "train")
