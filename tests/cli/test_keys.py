"""Keys as an operator makes, lists and revokes them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from serving.security.keys import Keyring, readable
from serving.security.keys_file import KeysFile
from tests.cli.running import Ken, facts


def created(ken: Ken, *arguments: str) -> tuple[str, str]:
    """Id and token of a new key."""
    found = facts(ken("keys", "create", *arguments, "--json"))
    return str(found["id"]), str(found["token"])


def records(ken: Ken) -> list[dict[str, object]]:
    ended = ken("keys", "list", "--json")
    assert ended.returncode == 0, ended.stderr
    listed: list[dict[str, object]] = json.loads(ended.stdout)
    return listed


def test_the_token_alone_is_on_stdout_and_the_advice_on_stderr(ken: Ken) -> None:
    ended = ken("keys", "create", "app", "--scope", "publish", "--task", "trec*", "--task", "mood", "--expires", "90d")
    assert ended.returncode == 0, ended.stderr
    token = ended.stdout.rstrip("\n")
    assert re.fullmatch(r"ken_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", token)
    assert token not in ended.stderr
    assert "publish on tasks trec*, mood" in ended.stderr
    (record,) = (r for r in records(ken) if r["name"] == "app")
    assert record["id"] == token.split("_")[1]
    assert record["expires"] == pytest.approx(time.time() + 90 * 86_400, abs=600)


def test_the_first_key_and_the_last_say_what_they_do_to_everybody_else(ken: Ken) -> None:
    apart = ("--namespace", "apart")
    first = ken("keys", "create", "first", *apart)
    told = " ".join(first.stderr.split())
    for text in ("from now on, servers of this store refuse requests without a key", "KEN_API_KEY", "KEN_AUTH=off"):
        assert text in told
    second = ken("keys", "create", "second", *apart)
    assert "note:" not in second.stderr
    ids = [ended.stdout.split("_")[1] for ended in (first, second)]
    assert "note:" not in ken("keys", "revoke", ids[1], *apart).stderr
    told = " ".join(ken("keys", "revoke", ids[0], *apart).stderr.split())
    for text in ("stay locked, after a restart too", "ken keys create NAME --scope admin", "KEN_AUTH=off"):
        assert text in told
    assert "note:" not in ken("keys", "create", "after all", *apart).stderr  # the store was locked before this key


def test_a_key_is_for_predicting_with_every_task_for_ever_unless_told(ken: Ken) -> None:
    found = facts(ken("keys", "create", "plain", "--json"))
    assert (found["scopes"], found["tasks"], found["expires"]) == (["predict"], ["*"], None)
    assert "hash" not in found


def test_what_is_listed_is_a_keys_file_and_tells_no_token(ken: Ken, tmp_path: Path) -> None:
    key_id, token = created(ken, "filed")
    ended = ken("keys", "list", "--json")
    assert token.split("_", 2)[2] not in ended.stdout
    (tmp_path / "keys.json").write_text(ended.stdout)
    found = Keyring(KeysFile(tmp_path / "keys.json").current()).authenticate(token)
    assert found.name == f"filed/{key_id}"


def test_the_table_shows_names_and_neither_tokens_nor_hashes(ken: Ken) -> None:
    key_id, token = created(ken, "shown")
    (record,) = (r for r in records(ken) if r["id"] == key_id)
    ended = ken("keys", "list")
    assert key_id in ended.stdout
    assert "never" in ended.stdout
    assert token.split("_", 2)[2] not in ended.stdout
    assert str(record["hash"]) not in ended.stdout


def test_a_revoked_key_is_valid_no_more(ken: Ken) -> None:
    key_id, _ = created(ken, "gone")
    assert any(r["id"] == key_id for r in records(ken))
    ended = ken("keys", "revoke", key_id)
    assert ended.returncode == 0, ended.stderr
    kept = readable({str(r["id"]): r for r in records(ken)})
    assert key_id not in {key.id for key in kept}
    again = ken("keys", "revoke", key_id)
    assert again.returncode == 1
    assert key_id in again.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("app", "--scope", "root"), "scopes"),
        (("app", "--task", "a/b"), "tasks"),
        (("two\nlines",), "name"),
        (("app", "--expires", "soon"), "90d"),
        (("app", "--expires", "0d"), "90d"),
        (("app", "--expires", "9999999w"), "expires"),
    ],
)
def test_a_key_of_another_form_is_not_made(arguments: tuple[str, ...], named: str, ken: Ken) -> None:
    before = records(ken)
    ended = ken("keys", "create", *arguments)
    assert ended.returncode in (1, 2)
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr
    assert records(ken) == before
