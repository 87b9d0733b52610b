"""Signing as an operator does it: making a key, signing a file, and trusting keys."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.running import Ken, facts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "signing.md"


@pytest.fixture(scope="module")
def extracted(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("delta") / "mood.ken"
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", file)
    assert ended.returncode == 0, ended.stderr
    return file


@pytest.fixture
def delta(extracted: Path, tmp_path: Path) -> Path:
    """A delta file without signatures."""
    file = tmp_path / "mood.ken"
    file.write_bytes(extracted.read_bytes())
    return file


def created(ken: Ken, path: Path) -> str:
    """The public half of a new key."""
    ended = ken("signing-key", "create", path)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_the_public_key_alone_is_on_stdout_and_the_private_one_nowhere(ken: Ken, tmp_path: Path) -> None:
    ended = ken("signing-key", "create", tmp_path / "ops.pem")
    public = ended.stdout.strip()
    assert f"KEN_TRUSTED_KEYS='[\"ops={public}\"]'" in ended.stderr
    private = (tmp_path / "ops.pem").read_text().splitlines()[1]
    assert private not in ended.stdout + ended.stderr
    assert ken("signing-key", "create", tmp_path / "ops.pem").returncode == 2
    assert (tmp_path / "ops.pem").read_text().splitlines()[1] == private


def test_a_signed_file_is_told_with_its_digest_and_signer(ken: Ken, delta: Path, tmp_path: Path) -> None:
    ops, ci = (created(ken, tmp_path / f"{name}.pem") for name in ("ops", "ci"))
    for name in ("ci", "ops", "ops"):
        assert ken("sign", delta, "--key", tmp_path / f"{name}.pem").returncode == 0
    assert [s["key"] for s in json.loads((tmp_path / "mood.ken.sig").read_text())] == [ci, ops]
    ended = ken("verify", delta, "--trusted-keys", f"ops={ops}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"delta {facts(ken('inspect', delta, '--json'))['digest']}, signed by ops\n"


def test_a_file_that_changed_or_was_signed_by_others_fails(ken: Ken, delta: Path, tmp_path: Path) -> None:
    ops, ci = (created(ken, tmp_path / f"{name}.pem") for name in ("ops", "ci"))
    assert ken("sign", delta, "--key", tmp_path / "ops.pem").returncode == 0
    ended = ken("verify", delta, "--trusted-keys", ci)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "not trusted here" in ended.stderr
    data = bytearray(delta.read_bytes())
    data[-1] ^= 1
    delta.write_bytes(data)
    ended = ken("verify", delta, "--trusted-keys", ops)
    assert ended.returncode == 1
    assert "not of this delta" in ended.stderr


def test_a_delta_is_published_only_if_a_trusted_key_signed_it(
    ken: Ken, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = created(ken, tmp_path / "ops.pem")
    monkeypatch.setenv("KEN_TRUSTED_KEYS", json.dumps([f"ops={ops}"]))
    ended = ken("publish", "signed", delta)
    assert ended.returncode == 1
    assert "is not signed" in ended.stderr
    assert "signed" not in [task["task"] for task in facts(ken("tasks", "--json"))["tasks"]]  # type: ignore[attr-defined]
    ken("sign", delta, "--key", tmp_path / "ops.pem")
    assert ken("publish", "signed", delta).returncode == 0
    assert ken("publish", "signed", delta, "--trusted-keys", created(ken, tmp_path / "ci.pem")).returncode == 1


def test_a_signature_of_another_file_is_not_published(ken: Ken, delta: Path, tmp_path: Path) -> None:
    created(ken, tmp_path / "ops.pem")
    ken("sign", delta, "--key", tmp_path / "ops.pem")
    records = (tmp_path / "mood.ken.sig").read_text()
    (tmp_path / "mood.ken.sig").write_text(records.replace(json.loads(records)[0]["signature"], "A" * 86 + "=="))
    ended = ken("publish", "stale", delta)
    assert ended.returncode == 1
    assert "sign the file again" in ended.stderr


@pytest.mark.parametrize("text", ["", "ops", "[]", "[1]", "{}", '["ops"]'])
def test_keys_in_the_environment_that_are_none_are_used_wrongly(
    text: str, ken: Ken, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEN_TRUSTED_KEYS", text)
    for command in (("verify", delta), ("publish", "mood", delta)):
        ended = ken(*command)
        assert ended.returncode == 2
        assert "KEN_TRUSTED_KEYS" in ended.stderr


def test_verifying_needs_somebody_to_trust(ken: Ken, delta: Path) -> None:
    assert ken("verify", delta).returncode == 2


def test_the_commands_of_the_page_are_run(
    ken: Ken, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the commands line by line. The page's public key is replaced with the one that the first command prints."""
    monkeypatch.chdir(tmp_path)
    delta.rename("trec.ken")
    block = re.search(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    first, *lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert first[:3] == ["ken", "signing-key", "create"]
    key = created(ken, Path(first[3]))
    ran = []
    for line in lines:
        if line[0] == "export":
            name, value = line[1].split("=", 1)
            monkeypatch.setenv(name, value.replace("BASE64", key))
        else:
            ended = ken(*line[1:])
            assert ended.returncode == 0, ended.stderr
            ran.append(line[1])
    assert ran == ["sign", "verify", "publish"]
