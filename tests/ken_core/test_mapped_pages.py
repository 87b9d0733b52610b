"""What reading a checkpoint's map took of the memory is given back, and nothing else changes."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch

from ken_core import mapped_pages
from ken_core.checkpoint import Checkpoint, open_base
from ken_core.fingerprint import fingerprint
from ken_core.resident import ResidentModel
from tests.resident_pages import bytes_in_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and madvise are Linux's")


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A base's folder of this test's own, so that nobody else maps its file."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def base(folder: Path) -> Checkpoint:
    return open_base(str(folder))


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_a_base_in_the_arena_is_not_in_memory_twice(base: Checkpoint, folder: Path) -> None:
    resident = ResidentModel(base)
    read = bytes_in_memory(weights_of(folder))
    assert read >= resident.nbytes // 2  # the map was read indeed
    base.files.let_go()
    assert bytes_in_memory(weights_of(folder)) == 0
    assert fingerprint(base.backbone_tensors) == base.identity
    assert resident.verify() == []


def test_what_is_read_again_is_let_go_again(base: Checkpoint, folder: Path) -> None:
    before = base.identity
    for _ in range(3):
        assert fingerprint(base.backbone_tensors) == before
        assert bytes_in_memory(weights_of(folder)) > 0
        base.files.let_go()
        assert bytes_in_memory(weights_of(folder)) == 0


def test_a_map_that_this_process_wrote_to_is_left_as_it_is(base: Checkpoint, folder: Path) -> None:
    tensor = next(iter(base.backbone_tensors.values()))
    with torch.no_grad():
        tensor.view(-1)[0] = 7.25
    base.files.let_go()
    assert tensor.view(-1)[0] == 7.25
    assert bytes_in_memory(weights_of(folder)) > 0


def test_another_file_in_its_place_is_not_taken_for_it(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    before = base.identity
    shutil.copy(weights_of(folder), tmp_path / "new")
    os.replace(tmp_path / "new", weights_of(folder))
    new = open_base(str(folder))
    assert new.identity == before
    base.files.let_go()
    assert bytes_in_memory(weights_of(folder)) > 0
    assert bytes_in_memory(Path(f"{weights_of(folder)} (deleted)")) == 0
    assert fingerprint(base.backbone_tensors) == before


def test_others_may_read_meanwhile(base: Checkpoint) -> None:
    before = base.identity
    wrong: list[bool] = []

    def read() -> None:
        wrong.extend(fingerprint(base.backbone_tensors) != before for _ in range(20))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        base.files.let_go()
    assert wrong == [False] * 40


@pytest.mark.parametrize("missing", ["/proc/self/maps", "/proc/self/pagemap"])
def test_where_the_system_does_not_say_what_is_mapped_nothing_is_let_go(
    missing: str, base: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: str, *args: object, **kwargs: object) -> object:
        if path == missing:
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **kwargs)  # type: ignore[call-overload]

    assert base.identity
    with weights_of(folder).open("rb") as file:
        monkeypatch.setattr(mapped_pages, "open", refusing, raising=False)
        assert mapped_pages.let_go([file.fileno()]) == 0
        monkeypatch.undo()
        assert mapped_pages.let_go([file.fileno()]) > 0
