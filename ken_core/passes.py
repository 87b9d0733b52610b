"""Rows divided into passes of a model: rows of similar length together, and few enough for the memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_TOKENS = 2048
"""Of a pass, padding included. Logits over 50,000 tokens take 400 MB for as many, and their gradients again."""


def passes(lengths: Sequence[int], most_tokens: int = MOST_TOKENS, most_rows: int | None = None) -> Iterator[list[int]]:
    """Places of the rows of each pass, the shortest rows first; always at least one row.

    Args:
        lengths: of the rows, in tokens.
        most_tokens: of a pass, padding included; a longer row has a pass of its own.
        most_rows: of a pass; None: as many as there is room for.
    """
    places: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = lengths[place] * (len(places) + 1) > most_tokens or len(places) == most_rows
        if places and full:
            yield places
            places = []
        places.append(place)
    if places:
        yield places
