"""Texts that end a continuation, wherever the parts of its text begin and end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.generation.stops import Stops

few_letters = st.text("ab\n", max_size=12)


def through(stops: list[str], parts: list[str]) -> tuple[str, str | None]:
    looking, told = Stops(stops), ""
    for part in parts:
        given_out, found = looking.add(part)
        told += given_out
        if found is not None:
            return told, found
    return told + looking.end(), None


def test_a_stop_across_parts_is_found_and_nothing_of_it_is_given_out() -> None:
    assert through(["\nUser:"], ["Hello", "\nUs", "er", ": what"]) == ("Hello", "\nUser:")


def test_what_only_begins_like_a_stop_is_given_out_later() -> None:
    looking = Stops(["END"])
    assert looking.add("the EN") == ("the ", None)
    assert looking.add("G") == ("ENG", None)
    assert looking.add("LAND E") == ("LAND ", None)
    assert looking.end() == "E"


@given(st.lists(few_letters.filter(bool), max_size=3), st.lists(few_letters, max_size=6))
def test_the_text_up_to_the_first_stop_however_it_comes(stops: list[str], parts: list[str]) -> None:
    told, found = through(stops, parts)
    whole = "".join(parts)
    if found is None:
        assert told == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(told + found)
        assert not any(stop in told for stop in stops)
