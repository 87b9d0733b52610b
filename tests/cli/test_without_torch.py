"""Commands that only talk to a store or a server, or only read a delta file's manifest, start without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import ADMIN, Ken, facts

HEAVY = ("torch", "transformers", "ray", "numba")

RUN_ALL = f"""
import json, sys
from serving.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        refused = arguments[0] == "adopt-store"  # the store is the one that the server knows
        assert ended.code == 1 if refused else not ended.code, (arguments, ended.code)
    assert not (found := [name for name in {HEAVY} if name in sys.modules]), (arguments, found)
"""


@pytest.fixture(scope="module")
def files(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Two deltas of one task, with different budgets."""
    made = [tmp_path_factory.mktemp("deltas") / f"{keep}.ken" for keep in ("0.1", "0.5")]
    for file in made:
        ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", file, "--keep", file.stem)
        assert ended.returncode == 0, ended.stderr
    return list(map(str, made))


def run_all(commands: list[list[str]]) -> None:
    """Run commands one after another in a process of their own; each must end as it should and import nothing heavy."""
    ended = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        env={**os.environ, "KEN_API_KEY": ADMIN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def on_tasks_and_keys(ken: Ken, files: list[str]) -> list[list[str]]:
    """Every command that works on a store and through a server, in an order in which each has something to do."""
    key = str(facts(ken("keys", "create", "ci", "--json"))["id"])
    return [
        ["publish", "mood", files[0]],
        ["publish", "mood", files[1], "--alias", "canary", "--wait", "5"],
        ["tasks"],
        ["tasks", "--json"],
        ["promote", "mood", "canary"],
        ["rollback", "mood"],
        ["route", "mood", "live=9", "canary=1", "--shadow", "canary"],
        ["route", "mood"],
        ["route", "mood", "--clear"],
        ["route", "mood", "--rollback"],
        ["history", "mood"],
        ["rm", "mood", "--version", "canary", "--force"],
        ["rm", "mood", "--force"],
        ["keys", "create", "tests", "--scope", "predict"],
        ["keys", "list"],
        ["keys", "revoke", key],
        ["adopt-store"],
        ["gc"],
    ]


def test_commands_on_the_store_import_no_torch(ken: Ken, files: list[str]) -> None:
    run_all(on_tasks_and_keys(ken, files))


def test_commands_through_a_server_import_no_torch(ken: Ken, url: str, files: list[str]) -> None:
    run_all([[*command, "--url", url] for command in on_tasks_and_keys(ken, files)])


def test_answers_of_a_server_are_read_and_judged_without_torch(
    ken: Ken, url: str, files: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "dev.jsonl"
    data.write_text('{"text": "a good film", "label": "good"}\n')
    asked = ["judged", "--url", url, "--data", str(data)]
    predict = ["predict", *asked, "--out", str(tmp_path / "answers.jsonl")]
    run_all([["publish", "judged", files[0], "--url", url, "--wait", "5"], predict, ["eval", *asked, "--json"]])


def test_commands_on_delta_files_that_decode_nothing_import_no_torch(files: list[str], tmp_path: Path) -> None:
    key = str(tmp_path / "signing.pem")
    run_all(
        [
            ["signing-key", "create", key],
            ["sign", files[0], "--key", key],
            ["inspect", files[0], "--tensors"],
            ["diff", *files],
        ]
    )
    public = json.loads(Path(f"{files[0]}.sig").read_text())[0]["key"]
    run_all([["verify", files[0], "--trusted-keys", public]])
