"""Which version a name means: whole digests, how they begin, and aliases that look like either."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidInputError, UnknownTaskError
from serving.routing.routes import Route
from serving.routing.versions import is_pin, pinned, version_of, with_whole_digests
from serving.store import Task

ONE = "0123456789ab" + "c" * 52
LIKE_IT = "0123456789ab" + "c" * 51 + "d"
OTHER = "fedcba987654" + "0" * 52
TASK = Task("spam", 1, {"live": ONE, "canary": OTHER, OTHER[:12]: ONE}, (ONE, LIKE_IT, OTHER))
EITHER: list[Callable[[Task, str], str]] = [version_of, pinned]


@pytest.mark.parametrize("look", EITHER)
def test_a_whole_digest_is_itself(look: Callable[[Task, str], str]) -> None:
    assert [look(TASK, digest) for digest in TASK.versions] == list(TASK.versions)


@given(st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), unique=True, min_size=1), st.integers(12, 64))
def test_a_beginning_means_the_one_version_that_begins_so_or_none(versions: list[str], length: int) -> None:
    task = Task("spam", 1, {}, tuple(versions))
    for digest in versions:
        alike = [v for v in versions if v[:length] == digest[:length]]
        if len(alike) == 1:
            assert version_of(task, digest[:length]) == pinned(task, digest[:length]) == digest
        else:
            with pytest.raises(InvalidInputError):
                version_of(task, digest[:length])


@pytest.mark.parametrize("look", EITHER)
def test_of_several_all_are_named(look: Callable[[Task, str], str]) -> None:
    with pytest.raises(InvalidInputError, match=rf"(?s)2 versions of task 'spam': {ONE}, {LIKE_IT}; give more digits"):
        look(TASK, ONE[:63])


@pytest.mark.parametrize(
    "named", [OTHER[:11], "", "fed", OTHER[:12].upper(), OTHER + "0", OTHER + "\n", OTHER[:12] + "*"]
)
def test_what_is_no_beginning_is_told_what_is_expected(named: str) -> None:
    with pytest.raises(UnknownTaskError, match="expected a digest, 64 hexadecimal digits in lower case, or 12 or more"):
        pinned(TASK, named)
    with pytest.raises(UnknownTaskError, match="task 'spam' has no alias"):
        version_of(TASK, named)


def test_too_few_digits_are_told_how_many_it_takes_where_an_alias_counts_too() -> None:
    with pytest.raises(
        UnknownTaskError, match=r"no alias 'fed'; it has: canary, .*, live; of a digest, give at least 12"
    ):
        version_of(TASK, "fed")


@pytest.mark.parametrize("look", EITHER)
def test_a_beginning_that_no_version_has_is_refused(look: Callable[[Task, str], str]) -> None:
    with pytest.raises(UnknownTaskError, match="'aaaaaaaaaaaa' is no version of task 'spam'; publish it first"):
        look(TASK, "a" * 12)


def test_an_alias_that_looks_like_a_beginning_comes_first_but_never_for_a_pin() -> None:
    assert version_of(TASK, OTHER[:12]) == ONE
    assert version_of(TASK, OTHER[:13]) == OTHER
    assert pinned(TASK, OTHER[:12]) == OTHER
    assert [is_pin(TASK, named) for named in (OTHER[:12], OTHER[:13], OTHER, "live", "fed")] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_an_alias_that_looks_like_a_whole_digest_hides_no_version() -> None:
    task = Task("spam", 1, {OTHER: ONE}, (ONE, OTHER))  # of an older version, which took such names
    assert version_of(task, OTHER) == OTHER
    assert with_whole_digests(task, Route({OTHER: 1})) == Route({OTHER: 1})


def test_a_route_keeps_aliases_and_is_given_whole_digests() -> None:
    given = Route({"live": 3, OTHER[:14]: 1, OTHER[:12]: 2}, shadow=ONE)
    assert with_whole_digests(TASK, given) == Route({"live": 3, OTHER: 1, OTHER[:12]: 2}, shadow=ONE)
    assert with_whole_digests(TASK, Route()) == Route()


def test_a_route_that_names_one_version_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=f"names version {OTHER} twice, once as '{OTHER[:20]}'"):
        with_whole_digests(TASK, Route({OTHER: 1, OTHER[:20]: 2}))


@pytest.mark.parametrize("route", [Route({"next": 1}), Route({"live": 1, "a" * 12: 1}), Route(shadow="abc")])
def test_a_target_that_is_neither_is_named(route: Route) -> None:
    unknown = route.shadow or list(route.weights)[-1]
    with pytest.raises(UnknownTaskError, match=f"{re.escape(repr(unknown))} is neither an alias nor a version"):
        with_whole_digests(TASK, route)


def test_a_target_that_may_be_several_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="begins 2 versions"):
        with_whole_digests(TASK, Route({ONE[:12]: 1}))
