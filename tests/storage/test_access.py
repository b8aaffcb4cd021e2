"""Tokens, the audit, and answers that are kept, on both databases."""

import pytest
import sqlalchemy as sa

from storage.access import Access, Answer, RequestInUse
from storage.errors import StoreError
from storage.store import Store


@pytest.fixture
def access(store: Store) -> Access:
    return store.access


def test_a_token_names_its_holder_until_it_is_revoked(access: Access) -> None:
    assert not access.any_token()
    viewer, operator = access.create("v", "viewer"), access.create("o", "operator")
    assert viewer != operator
    found = [access.caller(t) for t in (viewer, operator, viewer[:-1], "")]
    assert [(c.name, c.role) if c else None for c in found] == [("v", "viewer"), ("o", "operator"), None, None]
    access.revoke("v")
    assert access.caller(viewer) is None
    assert access.any_token()
    with pytest.raises(StoreError, match="only a token that is in force can be revoked"):
        access.revoke("v")


def test_a_revoked_name_is_not_used_again(access: Access) -> None:
    """Or the audit would not say who did what."""
    access.create("v", "viewer")
    access.revoke("v")
    with pytest.raises(StoreError, match="token names must be unique, revoked ones included"):
        access.create("v", "operator")


def test_every_change_of_who_may_do_what_is_in_the_audit(access: Access) -> None:
    access.create("v", "viewer")
    access.revoke("v")
    access.record("o", "10.0.0.1", "launch", "study", {"trials": 5})
    found = access.audit()
    assert [(e.action, e.about) for e in found] == [("create token", "v"), ("revoke token", "v"), ("launch", "study")]
    assert found[0].who.startswith("command line")
    assert (found[2].who, found[2].address, found[2].detail) == ("o", "10.0.0.1", {"trials": 5})


def test_an_answer_is_given_again_to_the_same_request_of_the_same_caller(access: Access) -> None:
    assert access.begin("me", "k", "asked") is None
    with pytest.raises(RequestInUse):
        access.begin("me", "k", "asked")
    access.answer("me", "k", Answer(status=201, body={"a": 1}))
    assert access.begin("me", "k", "asked") == Answer(status=201, body={"a": 1})
    with pytest.raises(StoreError, match="belongs to one request"):
        access.begin("me", "k", "something else")
    assert access.begin("you", "k", "asked") is None


def test_a_request_that_came_to_nothing_or_whose_process_died_is_begun_again(access: Access, store: Store) -> None:
    access.begin("me", "k", "asked")
    access.abandon("me", "k")
    assert access.begin("me", "k", "asked") is None
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mergefront_request SET created = created - 601"))
    assert access.begin("me", "k", "asked") is None


def test_answers_are_kept_for_a_day(access: Access, store: Store) -> None:
    access.begin("me", "k", "asked")
    access.answer("me", "k", Answer(status=201, body={}))
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mergefront_request SET created = created - 86000"))
    assert access.begin("me", "k", "asked") is not None
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mergefront_request SET created = created - 1000"))
    assert access.begin("me", "k", "asked") is None
