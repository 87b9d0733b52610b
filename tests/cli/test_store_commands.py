"""Commands that route, delete, and show the history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Ken, facts


@pytest.fixture(scope="module")
def files(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two deltas of one task, with different budgets."""
    made = [tmp_path_factory.mktemp("deltas") / f"{keep}.ken" for keep in ("0.1", "0.5")]
    for file in made:
        ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", file, "--keep", file.stem)
        assert ended.returncode == 0, ended.stderr
    return made


@pytest.fixture
def digests(ken: Ken, files: list[Path]) -> Iterator[list[str]]:
    """The task mood with two versions, live and canary: their digests."""
    for file, alias in zip(files, ("live", "canary"), strict=True):
        assert ken("publish", "mood", file, "--alias", alias).returncode == 0
    yield [str(facts(ken("inspect", file, "--json"))["digest"]) for file in files]
    ken("rm", "mood", "--force")


def weights(ken: Ken) -> object:
    return facts(ken("route", "mood", "--json"))["weights"]


def test_a_route_is_set_shown_rolled_back_and_cleared(ken: Ken, digests: list[str]) -> None:
    assert weights(ken) is None
    assert "no route: live answers" in ken("route", "mood").stderr
    ended = ken("route", "mood", "live=90", "canary=10")
    assert ended.returncode == 0, ended.stderr
    assert "90.0%" in ended.stdout
    assert digests[1] in ended.stdout
    assert ken("route", "mood", f"{digests[0]}=1", "canary=1").returncode == 0
    assert weights(ken) == {digests[0]: 1, "canary": 1}
    assert ken("route", "mood", "--rollback").returncode == 0
    assert weights(ken) == {"live": 90, "canary": 10}
    assert ken("route", "mood", "--clear").returncode == 0
    assert weights(ken) is None


def test_a_shadow_is_set_beside_the_shares_or_alone_and_then_they_stay(ken: Ken, digests: list[str]) -> None:
    ended = ken("route", "mood", "live=3", "canary=1", "--shadow", "canary")
    assert ended.returncode == 0, ended.stderr
    assert "shadow" in ended.stdout
    assert facts(ken("route", "mood", "--json"))["shadow"] == "canary"
    assert facts(ken("tasks", "--json"))["tasks"][0]["shadow"] == "canary"  # type: ignore[index]
    assert facts_of_history(ken)[0]["shadow"] == "canary"
    ken("route", "mood", "--shadow", digests[1])
    assert facts(ken("route", "mood", "--json")) == {
        "task": "mood", "weights": {"live": 3, "canary": 1}, "shadow": digests[1],
    }  # fmt: skip
    ken("route", "mood", "live=1")
    assert facts(ken("route", "mood", "--json"))["shadow"] is None


def test_tasks_are_listed_with_their_routes(ken: Ken, digests: list[str]) -> None:
    ken("route", "mood", "live=3", "canary=1")
    assert facts(ken("tasks", "--json"))["tasks"][0]["route"] == {"live": 3, "canary": 1}  # type: ignore[index]
    listed = ken("tasks").stdout
    assert "75.0%" in listed
    assert "25.0%" in listed


def test_a_version_in_use_is_removed_by_force_only(ken: Ken, digests: list[str]) -> None:
    refused = ken("rm", "mood", "--version", digests[1])
    assert refused.returncode == 1
    assert "in use by alias 'canary'" in refused.stderr
    assert ken("rm", "mood", "--version", digests[1], "--force").returncode == 0
    (task,) = facts(ken("tasks", "--json"))["tasks"]  # type: ignore[misc]
    assert [v["digest"] for v in task["versions"]] == [digests[0]]


def test_versions_are_named_by_their_first_digits_or_an_alias_and_told_whole(ken: Ken, digests: list[str]) -> None:
    first, second = digests
    assert f"mood@live is {second} " in ken("promote", "mood", second[:12]).stderr
    assert ken("route", "mood", f"{first[:12]}=1", "--shadow", second[:12]).returncode == 0
    assert facts(ken("route", "mood", "--json")) == {"task": "mood", "weights": {first: 1}, "shadow": second}
    assert ken("route", "mood", "--clear").returncode == 0
    assert f"version {first} of mood is gone" in ken("rm", "mood", "--version", first[:12]).stderr
    refused = ken("rm", "mood", "--version", "canary")
    assert refused.returncode == 1
    assert f"version {second} of task 'mood' is in use by alias 'canary', alias 'live'" in refused.stderr
    assert f"version {second} of mood is gone" in ken("rm", "mood", "--version", "canary", "--force").stderr


def test_a_task_in_use_is_removed_by_force_only(ken: Ken, digests: list[str]) -> None:
    refused = ken("rm", "mood")
    assert refused.returncode == 1
    assert "use force" in refused.stderr
    assert ken("rm", "mood", "--force").returncode == 0
    assert facts(ken("tasks", "--json"))["tasks"] == []


def test_history_tells_who_did_what_to_what(ken: Ken, digests: list[str]) -> None:
    ken("route", "mood", "live=90", "canary=10")
    ken("promote", "mood", "canary")
    promoted, routed = facts_of_history(ken)[:2]
    assert (promoted["action"], promoted["digest"]) == ("promote", digests[1])
    assert (routed["action"], routed["route"]) == ("route", {"live": 90, "canary": 10})
    shown = ken("history", "mood").stdout
    assert "canary=10 live=90" in shown
    assert digests[1][:12] in shown
    assert digests[1] not in shown
    assert str(promoted["who"]) in shown


def facts_of_history(ken: Ken) -> list[dict[str, object]]:
    return facts(ken("history", "mood", "--json"))  # type: ignore[return-value]


def test_history_of_a_task_that_is_gone_can_be_read(ken: Ken, digests: list[str]) -> None:
    ken("rm", "mood", "--force")
    assert facts_of_history(ken)[0]["action"] == "delete"
    assert ken("history", "mood").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("route", "nothing"), 1, "no task 'nothing'"),
        (("route", "nothing", "live=1"), 1, "no task 'nothing'"),
        (("route", "mood", "shadow=1"), 1, "'shadow' is neither an alias nor a version"),
        (("route", "nothing", "--rollback"), 1, "no task 'nothing'"),
        (("route", "mood", "--shadow", "next"), 1, "'next' is neither an alias nor a version"),
        (("route", "mood", "--shadow", "@route"), 2, "shadow '@route' is not usable"),
        (("route", "mood", "--shadow", "canary", "--clear"), 2, "give only one of the three"),
        (("route", "mood", "live"), 2, "found 'live'; expected an alias or a digest and its weight"),
        (("route", "mood", "live=ten"), 2, "found 'live=ten'"),
        (("route", "mood", "live=0"), 2, "weight of 'live' is 0"),
        (("route", "mood", "live=1", "live=2"), 2, "found 'live' twice"),
        (("route", "mood", "live=1", "--clear"), 2, "give only one of the three"),
        (("route", "mood", "--rollback", "--clear"), 2, "give only one of the three"),
        (("rm", "mood", "--version", "latest"), 1, "task 'mood' has no alias 'latest'; it has: canary, live"),
        (("rm", "mood", "--version", "abc"), 1, "of a digest, give at least 12 digits"),
        (("rm", "mood", "--version", "0" * 64), 1, "is no version of task 'mood'"),
        (("history", "nothing"), 1, "no task 'nothing'"),
    ],
)
def test_bad_input_is_refused_with_a_reason(
    ken: Ken, digests: list[str], arguments: tuple[str, ...], code: int, text: str
) -> None:
    ended = ken(*arguments)
    assert ended.returncode == code
    assert text in " ".join(ended.stderr.replace("│", " ").split())
    assert "Traceback" not in ended.stderr
    assert weights(ken) is None
