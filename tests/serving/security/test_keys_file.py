"""A file of keys is read again when it changes. If it is not valid then, the old keys stay."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from serving.errors import StartError
from serving.security.keys import Key, new_key
from serving.security.keys_file import KeysFile

ONE, TWO = new_key("one", ["predict"])[0], new_key("two", ["admin"], ["trec*"])[0]


def write(path: Path, *keys: Key) -> None:
    path.write_text(json.dumps([key.record() for key in keys]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "keys.json", ONE)
    return tmp_path / "keys.json"


def test_its_keys_are_those_in_it(path: Path) -> None:
    assert KeysFile(path).current() == [ONE]


def test_a_change_is_seen_and_otherwise_nothing_is_read(path: Path) -> None:
    file = KeysFile(path)
    before = file.current()
    assert file.current() is before
    write(path, ONE, TWO)
    assert file.current() == [ONE, TWO]


def test_a_file_moved_into_its_place_is_seen_even_with_the_same_size_and_time(path: Path, tmp_path: Path) -> None:
    other = new_key("two", ["predict"])[0]
    write(path, ONE)
    write(tmp_path / "next", other)
    stat = path.stat()
    os.utime(tmp_path / "next", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (tmp_path / "next").stat().st_size == stat.st_size
    file = KeysFile(path)
    (tmp_path / "next").replace(path)
    assert file.current() == [other]


def test_a_link_that_points_elsewhere_is_seen(path: Path, tmp_path: Path) -> None:
    """Replaces the file as Kubernetes updates a mounted Secret."""
    write(tmp_path / "renewed", TWO)
    link = tmp_path / "link"
    link.symlink_to(path)
    file = KeysFile(link)
    (tmp_path / "next").symlink_to(tmp_path / "renewed")
    (tmp_path / "next").replace(link)
    assert file.current() == [TWO]


@pytest.mark.parametrize("text", [None, "", "[", "{}", '[{"id": "x"}]'])
def test_one_that_became_bad_or_went_away_leaves_the_last_keys_and_is_logged_once(
    text: str | None, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = KeysFile(path)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with caplog.at_level(logging.ERROR):
        assert [file.current() for _ in range(3)] == [[ONE]] * 3
    (record,) = caplog.records
    assert "the 1 keys read before stay valid" in record.getMessage()
    write(path, ONE, TWO)
    assert file.current() == [ONE, TWO]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[", "Invalid JSON"),
        ("{}", "list"),
        ('[{"id": "x"}]', r"0\.id"),
        (json.dumps([ONE.record() | {"scopes": ["root"]}]), r"0\.scopes"),
        (json.dumps([ONE.record() | {"token": "ken_secret"}]), r"0\.token"),
        (json.dumps([ONE.record()] * 2), "twice; expected each id once"),
    ],
)
def test_a_bad_one_is_a_start_error_that_names_the_place_and_no_value(text: str, named: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(StartError, match=rf"keys\.json: .*{named}") as found:
        KeysFile(path)
    assert "ken_secret" not in str(found.value)
    assert ONE.hash not in str(found.value)


def test_a_missing_one_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"keys\.json cannot be read: No such file"):
        KeysFile(tmp_path / "keys.json")
