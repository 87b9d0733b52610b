"""Tokens, their holders, and what a token allows."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidInputError, UnauthorizedError
from serving.security.keys import ANYONE, SCOPES, Key, Keyring, Principal, Scope, new_key, readable

LATER = 4_000_000_000
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_. @-]{0,63}", fullmatch=True)
patterns = st.from_regex(r"[A-Za-z0-9_.*?\[\]!-]{1,20}", fullmatch=True)
task_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
scopes = st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3)


@given(names, scopes, st.lists(patterns, min_size=1, max_size=4))
def test_a_token_tells_its_own_key(name: str, held: list[Scope], tasks: list[str]) -> None:
    key, token = new_key(name, held, tasks)
    others = [new_key("other", ["admin"])[0] for _ in range(2)]
    found = Keyring([*others, key]).authenticate(token)
    assert (found.name, found.scopes, found.tasks) == (f"{name}/{key.id}", tuple(held), tuple(tasks))


@given(names, scopes, st.lists(patterns, min_size=1, max_size=4), st.none() | st.just(LATER))
def test_a_key_comes_back_from_its_record(name: str, held: list[Scope], tasks: list[str], expires: int | None) -> None:
    key, _ = new_key(name, held, tasks, expires)
    assert readable({key.id: key.record()}) == [key]


def test_a_token_has_256_random_bits_and_only_their_hash_is_kept() -> None:
    key, token = new_key("ci", ["predict"])
    found = re.fullmatch(r"ken_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", token)
    assert found is not None
    assert found[1] == key.id
    assert key.hash == hashlib.sha256(found[2].encode()).hexdigest()
    assert found[2] not in key.model_dump_json()
    assert new_key("ci", ["predict"])[1] != token


@given(st.integers(0, 59), st.characters())
def test_a_token_with_one_character_changed_is_refused(place: int, other: str) -> None:
    key, token = new_key("ci", ["predict"])
    changed = token[:place] + other + token[place + 1 :]
    if changed != token:
        with pytest.raises(UnauthorizedError, match="not valid here"):
            Keyring([key], "admin").authenticate(changed)


@pytest.mark.parametrize("harm", ["", "x", "-", "\n"])
def test_a_token_of_another_length_is_refused(harm: str) -> None:
    key, token = new_key("ci", ["predict"])
    with pytest.raises(UnauthorizedError):
        Keyring([key]).authenticate(token + harm if harm else token[:-1])


def test_the_secret_of_one_key_does_not_go_with_the_id_of_another() -> None:
    (one, token), (other, _) = new_key("one", ["predict"]), new_key("other", ["admin"])
    with pytest.raises(UnauthorizedError):
        Keyring([one, other]).authenticate(token.replace(one.id, other.id))


def test_an_unknown_id_and_a_wrong_secret_get_the_same_answer() -> None:
    (key, token), (_, unknown) = new_key("ci", ["predict"]), new_key("ci", ["predict"])
    answers = set()
    for wrong in (unknown, token[:-1] + ("A" if token[-1] != "A" else "B")):
        with pytest.raises(UnauthorizedError) as found:
            Keyring([key]).authenticate(wrong)
        answers.add(str(found.value))
    assert len(answers) == 1


def test_a_revoked_key_is_refused() -> None:
    (kept, _), (revoked, token) = new_key("kept", ["predict"]), new_key("revoked", ["predict"])
    assert Keyring([kept, revoked]).authenticate(token)
    with pytest.raises(UnauthorizedError):
        Keyring([kept]).authenticate(token)


def test_a_key_is_valid_until_it_expires_and_not_from_then_on() -> None:
    key, token = new_key("ci", ["predict"], expires=LATER)
    assert Keyring([key]).authenticate(token, now=LATER - 1)
    with pytest.raises(UnauthorizedError, match=r"'ci' expired on 2096-10-02"):
        Keyring([key]).authenticate(token, now=LATER)


def test_that_a_key_expired_is_told_only_to_who_has_its_secret() -> None:
    key, token = new_key("ci", ["predict"], expires=LATER)
    with pytest.raises(UnauthorizedError, match="not valid here"):
        Keyring([key]).authenticate(token[:-1] + ("A" if token[-1] != "A" else "B"), now=LATER)


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_the_answer_says_how_to_send_one(token: str | None) -> None:
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer") as found:
        Keyring([], "admin").authenticate(token)
    assert found.value.status == 401
    assert found.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_admin_token_may_everything() -> None:
    found = Keyring([], "open-sesame").authenticate("open-sesame")
    assert found.name == "admin-token"
    assert found.may("admin")
    assert found.may("publish", "any")


@pytest.mark.parametrize("token", ["open-sesam", "open-sesame ", "OPEN-SESAME", "é", "\udcff"])
def test_another_token_is_not_the_admin_token(token: str) -> None:
    with pytest.raises(UnauthorizedError):
        Keyring([], "open-sesame").authenticate(token)


def test_no_key_can_pass_for_the_admin_token_in_a_history() -> None:
    key, token = new_key("admin-token", ["predict"])
    assert Keyring([key], "open-sesame").authenticate(token).name == f"admin-token/{key.id}"


# What a principal may do


@pytest.mark.parametrize(
    ("held", "may"),
    [
        ("predict", {"predict"}),
        ("publish", {"predict", "publish"}),
        ("admin", {"predict", "publish", "admin"}),
    ],
)
def test_a_scope_includes_those_below_it(held: Scope, may: set[Scope]) -> None:
    assert {scope for scope in SCOPES if Principal("p", (held,)).may(scope, "spam")} == may
    assert {scope for scope in SCOPES if Principal("p", (held,)).may(scope)} == may


@given(st.lists(patterns, min_size=1, max_size=4), task_names)
def test_a_key_sees_the_tasks_that_any_of_its_patterns_matches(tasks: list[str], task: str) -> None:
    expected = any(fnmatch.fnmatchcase(task, pattern) for pattern in tasks)
    principal = Principal("p", ("publish",), tuple(tasks))
    assert principal.sees(task) is principal.may("publish", task) is expected


def test_a_pattern_is_for_whole_names_and_their_case() -> None:
    principal = Principal("p", ("predict",), ("trec*", "mood"))
    assert [principal.sees(t) for t in ("trec", "trec-2", "a-trec", "Trec", "mood", "moody", "*")] == [
        True, True, False, False, True, False, False,
    ]  # fmt: skip


def test_an_admin_of_some_tasks_is_none_of_the_server() -> None:
    principal = Principal("p", ("admin",), ("trec*",))
    assert principal.may("admin", "trec")
    assert not principal.may("admin", "mood")
    assert not principal.may("admin")
    assert principal.may("publish")


def test_where_no_key_is_needed_everybody_may_everything() -> None:
    assert all(ANYONE.may(scope) and ANYONE.may(scope, "spam") for scope in SCOPES)


# Forms


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"name": "line\n"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["a/b"]}, "tasks"),
        ({"tasks": [""]}, "tasks"),
        ({"expires": 10**15}, "expires"),
        ({"expires": 1}, "in the past"),
        ({"expires": -(10**30)}, "in the past"),
    ],
)
def test_a_key_of_another_form_is_not_made(harm: dict[str, object], named: str) -> None:
    described = {"name": "ci", "scopes": ["predict"], "tasks": ["*"], "expires": None}
    with pytest.raises(InvalidInputError, match=named):
        new_key(**described | harm)  # type: ignore[arg-type]


def test_a_record_that_cannot_be_read_leaves_the_others_valid(caplog: pytest.LogCaptureFixture) -> None:
    key, token = new_key("ci", ["predict"])
    with caplog.at_level(logging.ERROR):
        found = readable({"0" * 12: {"name": "from the future", "kind": 2}, key.id: key.record()})
    assert Keyring(found).authenticate(token)
    assert "0" * 12 in caplog.text


def test_a_record_counts_under_the_id_it_is_kept_at() -> None:
    key, _ = new_key("ci", ["predict"])
    (found,) = readable({"0" * 12: key.record()})
    assert found == Key(**{**key.record(), "id": "0" * 12})
