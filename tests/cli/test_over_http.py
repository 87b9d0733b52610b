"""Commands through a server: the same options, the same output and the same exit codes as on the store."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import ADMIN, Ended, Ken, facts


@pytest.fixture
def far(ken: Ken, url: str, monkeypatch: pytest.MonkeyPatch) -> Ken:
    """Runs `ken` with the URL of a server."""
    monkeypatch.setenv("KEN_API_KEY", ADMIN)
    return lambda *arguments: ken(*arguments, "--url", url)


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
def digests(ken: Ken, far: Ken, files: list[Path]) -> Iterator[list[str]]:
    """The task mood with two versions, live and canary, published through the server: their digests."""
    found = [str(facts(ken("inspect", file, "--json"))["digest"]) for file in files]
    for file, alias, digest in zip(files, ("live", "canary"), found, strict=True):
        ended = far("publish", "mood", file, "--alias", alias, "--wait", "20")
        assert ended.returncode == 0, ended.stderr
        assert f"mood@{alias} is {digest} (revision " in ended.stderr
        assert "seen by the one replica" in ended.stderr
    yield found
    assert ken("rm", "mood", "--force", "--wait", "20").returncode == 0


def told(ended: Ended) -> str:
    """What a command that succeeded printed on stderr."""
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.split(" (revision")[0]


def test_what_was_done_through_the_server_is_in_the_store(ken: Ken, far: Ken, digests: list[str]) -> None:
    assert told(far("promote", "mood", "canary", "--wait", "20")) == f"mood@live is {digests[1]}"
    assert facts(ken("tasks", "--json"))["tasks"][0]["aliases"] == dict.fromkeys(("live", "canary"), digests[1])  # type: ignore[index]
    assert told(far("rollback", "mood", "--wait", "20")) == told(ken("promote", "mood", digests[0]))
    assert told(far("rm", "mood", "--version", "canary", "--force", "--wait", "20")) == (
        f"version {digests[1]} of mood is gone"
    )
    (task,) = facts(ken("tasks", "--json"))["tasks"]  # type: ignore[misc]
    assert [version["digest"] for version in task["versions"]] == [digests[0]]


@pytest.mark.parametrize(
    "command", [("history", "mood"), ("history", "mood", "--json"), ("route", "mood"), ("route", "mood", "--json")]
)
def test_either_way_prints_the_same(ken: Ken, far: Ken, digests: list[str], command: tuple[str, ...]) -> None:
    changed = far("route", "mood", "live=90", "canary=10", "--wait", "20")
    assert "90.0%" in changed.stdout
    near, through = ken(*command), far(*command)
    assert (near.returncode, near.stdout, near.stderr) == (through.returncode, through.stdout, through.stderr)
    assert near.stdout


def test_tasks_are_listed_alike_but_for_bytes_that_only_the_store_knows(ken: Ken, far: Ken, digests: list[str]) -> None:
    near, through = facts(ken("tasks", "--json")), facts(far("tasks", "--json"))
    assert "bytes" in ken("tasks").stdout
    assert "bytes" not in far("tasks").stdout
    for version in near["tasks"][0]["versions"]:  # type: ignore[index]
        assert version["bytes"] > 0
        version["bytes"] = None
    assert near == through
    assert all(digest in far("tasks").stdout for digest in digests)


def test_other_labels_are_refused_alike_and_taken_where_that_is_allowed(
    ken: Ken, far: Ken, digests: list[str], other: Path
) -> None:
    digest = facts(ken("inspect", other, "--json"))["digest"]
    changes = [
        ("publish", "mood", other, "--alias", "odd"),
        ("route", "mood", "live=9", "odd=1"),
        ("route", "mood", "--shadow", "odd"),
        ("promote", "mood", digest, "--alias", "canary"),
    ]
    for changed, asked in zip(changes, (far, ken, far, ken), strict=True):
        before = _listed(ken)
        near, through = ken(*changed), far(*changed)
        assert (near.returncode, through.returncode) == (1, 1)
        for ended in (near, through):
            said = " ".join(ended.stderr.split())
            assert "only in the live version: 'bad', 'good'; only in" in said
            assert "'number', 'person', 'place'" in said
            assert "--allow-other-labels" in said
        assert _listed(ken) == before
        ended = asked(*changed, "--allow-other-labels", "--wait", "20")
        assert ended.returncode == 0, ended.stderr
    assert _listed(ken)["aliases"] == {"live": digests[0], "canary": digest, "odd": digest}
    assert far("history", "mood").stdout.count("other labels") == 4


def _listed(ken: Ken) -> dict[str, Any]:
    """The task mood."""
    (task,) = facts(ken("tasks", "--json"))["tasks"]  # type: ignore[misc]
    return task  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def other(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of another task."""
    file = tmp_path_factory.mktemp("deltas") / "topics.ken"
    assert ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["topics"], "--out", file).returncode == 0
    return file


def test_garbage_is_collected_through_the_server_and_on_the_store_alike(
    ken: Ken, far: Ken, digests: list[str], files: list[Path]
) -> None:
    _let_uploads_end()
    ken("gc")
    expected = []
    for collecting in (ken, far):
        assert far("publish", "passing", files[1]).returncode == 0
        assert ken("rm", "mood", "--version", digests[1], "--force").returncode == 0
        assert ken("rm", "passing", "--force").returncode == 0
        held = collecting("gc")
        assert held.returncode == 0
        assert "freed 0 deltas, 0 B" in held.stderr
        assert re.search(r"1 more \(\d+.* kB\) is held by uploads until \d{4}-\S+ \d\d:\d\d", held.stderr)
        _let_uploads_end()
        expected.append(facts(collecting("gc", "--json")))
        assert ken("publish", "mood", files[1], "--alias", "canary").returncode == 0
    near, through = expected
    assert near == through
    assert near == {
        "deltas": 1,
        "bytes": files[1].stat().st_size,
        "held_deltas": 0,
        "held_bytes": 0,
        "held_until": None,
    }


def _let_uploads_end() -> None:
    from serving.store.embedded import embedded_store
    from serving.store.urls import connect

    with embedded_store(Path(os.environ["KEN_DATA_DIR"])) as store_url:
        client = connect(store_url)
        for key in list(client.scan_iter("ken:{default}:upload:*")):
            client.delete(key)


def test_only_an_admin_collects_garbage(ken: Ken, far: Ken, monkeypatch: pytest.MonkeyPatch) -> None:
    made = facts(ken("keys", "create", "publishers", "--scope", "publish", "--wait", "20", "--json"))
    monkeypatch.setenv("KEN_API_KEY", str(made["token"]))
    refused = far("gc")
    assert refused.returncode == 1
    assert "needs the scope 'admin'" in refused.stderr
    assert ken("keys", "revoke", made["id"]).returncode == 0


def test_keys_are_made_listed_and_revoked(ken: Ken, far: Ken, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = facts(far("keys", "create", "readers", "--task", "mo*", "--expires", "90d", "--wait", "20", "--json"))
    assert (made["scopes"], made["tasks"]) == (["predict"], ["mo*"])
    listed = json.loads(far("keys", "list", "--json").stdout)
    assert [{**key, "hash": None} for key in json.loads(ken("keys", "list", "--json").stdout)] == [
        {**key, "hash": None} for key in listed
    ]
    assert ken("keys", "list").stdout == far("keys", "list").stdout
    monkeypatch.setenv("KEN_API_KEY", str(made["token"]))
    refused = far("keys", "list")
    assert refused.returncode == 1
    assert str(made["token"]) not in refused.stderr
    monkeypatch.setenv("KEN_API_KEY", ADMIN)
    assert "is revoked" in far("keys", "revoke", made["id"]).stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rm", "nothing"), "no task 'nothing'"),
        (("rollback", "nothing"), "no task 'nothing'"),
        (("promote", "mood", "0" * 64), "publish it first"),
        (("publish", "bad/name", "DELTA"), "expected 1 to 128 letters"),
        (("publish", "mood", "NO DELTA"), "cannot be served here"),
        (("publish", "mood", "/nonexistent.ken"), "cannot be read"),
        (("rm", "mood"), "in use by"),
        (("route", "mood", "nobody=1"), "neither an alias nor a version"),
        (("history", "nothing"), "no task 'nothing'"),
        (("keys", "revoke", "0" * 12), "0" * 12),
    ],
)
def test_what_fails_ends_with_1_and_the_servers_reason(
    far: Ken, digests: list[str], files: list[Path], tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    (tmp_path / "no.ken").write_text("no delta")
    named = {"DELTA": str(files[0]), "NO DELTA": str(tmp_path / "no.ken")}
    ended = far(*(named.get(a, a) for a in arguments))
    assert ended.returncode == 1
    assert text in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_the_environment_names_the_server_and_the_key(ken: Ken, url: str, digests: list[str]) -> None:
    with pytest.MonkeyPatch.context() as shell:
        shell.setenv("KEN_URL", url)
        assert digests[0] in ken("tasks").stdout
        shell.delenv("KEN_API_KEY")
        refused = ken("tasks")
    assert refused.returncode == 1
    assert "this needs a key" in refused.stderr


def test_a_store_that_nobody_doubts_is_not_adopted(ken: Ken, far: Ken) -> None:
    for run in (ken, far):
        ended = run("adopt-store", "--wait", "20")
        assert ended.returncode == 1
        assert "there is nothing to end" in ended.stderr
