"""The guard around foreign files: every exception except the machine's own becomes one error, with the reason."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ken_core.errors import CheckpointError, ConfigMismatchError, DeltaFormatError
from ken_core.foreign import is_from_rust, is_panic, reading
from ken_core.foreign_json import parse
from tests.tiny_checkpoints import write_tokenizer

PANICKING = {"type": "Precompiled", "precompiled_charsmap": ""}


def deep() -> None:
    deep()


def panic(folder: Path) -> None:
    """Panic as a tokenizer does whose normalizer is malformed."""
    write_tokenizer(folder)
    plain = json.loads((folder / "tokenizer.json").read_text())
    Tokenizer.from_str(json.dumps(plain | {"normalizer": PANICKING}))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("the first line\nand more"), "the file cannot be used: the first line$"),
        (KeyError("vocab"), "vocab"),
        (MemoryError(), "MemoryError"),
        (AssertionError(), "AssertionError"),
        (OSError("no such vocabulary"), "no such vocabulary"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "no such file"),
    ],
)
def test_what_a_library_raises_becomes_one_error_with_the_reason(error, reason):
    with pytest.raises(DeltaFormatError, match=reason) as found, reading("the file"):
        raise error
    assert found.value.__cause__ is error


def test_the_caller_chooses_which_error_it_becomes():
    with pytest.raises(CheckpointError, match="an adapter cannot be used"), reading("an adapter", CheckpointError):
        raise ValueError("no")


def test_a_stack_that_overflows_is_the_files_fault():
    with pytest.raises(DeltaFormatError, match="RecursionError"), reading("the file"):
        deep()


def test_a_panic_in_rust_is_one_too(tmp_path):
    with pytest.raises(DeltaFormatError, match="charsmap"), reading("the tokenizer"):
        panic(tmp_path)


def test_a_panic_is_told_from_an_error_and_both_from_our_own_mistakes(tmp_path):
    with pytest.raises(BaseException, match="charsmap") as found:
        panic(tmp_path)
    assert is_panic(found.value)
    assert is_from_rust(found.value)
    with pytest.raises(Exception, match="EOF") as found:
        Tokenizer.from_str("{")
    assert is_from_rust(found.value)
    assert not is_panic(found.value)
    assert not any(map(is_from_rust, (ValueError("x"), KeyError("x"), KeyboardInterrupt())))


def test_our_own_errors_pass_as_they_are():
    with pytest.raises(ConfigMismatchError, match=r"^as it was$"), reading("the file"):
        raise ConfigMismatchError("as it was")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), asyncio.CancelledError()])
def test_what_ends_the_work_passes(error):
    with pytest.raises(type(error)), reading("the file"):
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_a_full_disk_says_nothing_about_a_file(number):
    with pytest.raises(OSError, match=str(number)), reading("the file"):
        raise OSError(number, "the machine's fault")


# JSON


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "[Infinity]", '{"a": -Infinity}', "1e999", str(1 << 64), str(-(1 << 63) - 1), "9" * 5000,
        '"\\ud800"', '{"\\udfff": 1}', "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "", "{", "\0", "01",
    ],
    ids=lambda t: t[:16],
)  # fmt: skip
def test_json_that_could_not_be_written_again_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@pytest.mark.parametrize("value", [(1 << 64) - 1, -(1 << 63), 1.5, "\U0001f44d", "é", None, [{"a": [True]}]], ids=str)
def test_other_json_is_read_as_it_is(value):
    for escaped in (True, False):
        found = parse(json.dumps(value, ensure_ascii=escaped))
        assert (found, type(found)) == (value, type(value))
