"""What two merges must have in common to be one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ken_core.merge_recipe import MergeRecipe
from serving.routing.merges import Merge, MergePart

A, B = "a" * 64, "b" * 64
MERGE = Merge((MergePart(A, 0.7, "trec"), MergePart(B, 0.3, "news")), A, MergeRecipe("ties", 0.2))


def test_the_digest_is_that_of_what_the_merge_is_made_of() -> None:
    """It stands in clients' logs, so it must not change from one release to the next."""
    assert MERGE.digest == "24cca55edb3db8c7e8b212ca9f581bf812a445e112d6f3d3eb7e79db142cfb9f"


def test_names_of_tasks_do_not_matter() -> None:
    renamed = replace(MERGE, parts=(MergePart(A, 0.7, "questions"), MergePart(B, 0.3)))
    assert (renamed, renamed.digest) == (MERGE, MERGE.digest)


def test_a_method_s_own_way_to_normalize_may_be_said() -> None:
    assert replace(MERGE, recipe=MergeRecipe("ties", 0.2, normalize=True)).digest == MERGE.digest


@pytest.mark.parametrize(
    "other",
    [
        replace(MERGE, head=B),
        replace(MERGE, parts=(MergePart(A, 0.7), MergePart(B, 0.31))),
        replace(MERGE, parts=(MergePart(A, 0.7), MergePart("c" * 64, 0.3))),
        replace(MERGE, parts=(MergePart(A, 0.7),)),
        replace(MERGE, recipe=MergeRecipe("dare-ties", 0.2)),
        replace(MERGE, recipe=MergeRecipe("ties", 0.3)),
        replace(MERGE, recipe=MergeRecipe("ties", 0.2, normalize=False)),
        replace(MERGE, recipe=MergeRecipe("ties", 0.2, seed=1)),
    ],
)
def test_all_else_does(other: Merge) -> None:
    assert other.digest != MERGE.digest


def test_it_can_be_asked_for_again() -> None:
    assert MERGE.plain() == {
        "merge": {f"trec@{A}": 0.7, f"news@{B}": 0.3},
        "head": f"trec@{A}",
        "method": "ties",
        "density": 0.2,
        "normalize": True,
    }
