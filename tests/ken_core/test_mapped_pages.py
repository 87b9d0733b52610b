"""What reading a checkpoint's map took of the memory is given back, and nothing else changes."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
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
    base.let_go()
    assert bytes_in_memory(weights_of(folder)) == 0
    assert fingerprint(base.backbone_tensors) == base.identity
    assert resident.verify() == []


def test_what_is_read_again_is_let_go_again(base: Checkpoint, folder: Path) -> None:
    before = base.identity
    for _ in range(3):
        assert fingerprint(base.backbone_tensors) == before
        assert bytes_in_memory(weights_of(folder)) > 0
        base.let_go()
        assert bytes_in_memory(weights_of(folder)) == 0


def test_a_map_that_this_process_wrote_to_is_left_as_it_is(base: Checkpoint, folder: Path) -> None:
    tensor = next(iter(base.backbone_tensors.values()))
    with torch.no_grad():
        tensor.view(-1)[0] = 7.25
    base.let_go()
    assert tensor.view(-1)[0] == 7.25
    assert bytes_in_memory(weights_of(folder)) > 0


def test_another_file_in_its_place_is_not_taken_for_it(base: Checkpoint, folder: Path, tmp_path: Path) -> None:
    before = base.identity
    shutil.copy(weights_of(folder), tmp_path / "new")
    os.replace(tmp_path / "new", weights_of(folder))
    new = open_base(str(folder))
    assert new.identity == before
    base.let_go()
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
        base.let_go()
    assert wrong == [False] * 40


def test_where_the_system_does_not_say_what_pages_are_nothing_is_let_go(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: str, *args: object, **kwargs: object) -> object:
        if path == "/proc/self/pagemap":
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **kwargs)  # type: ignore[call-overload]

    assert base.identity
    with monkeypatch.context() as without:
        without.setattr(mapped_pages, "open", refusing, raising=False)
        assert mapped_pages.let_go(base.backbone_tensors.values()) == 0
    assert mapped_pages.let_go(base.backbone_tensors.values()) > 0


@pytest.mark.parametrize("name", ["a\nb", "cr\rx", " x (deleted)"])
def test_any_name_of_a_folder_will_do(name: str, tiny_base: Path, tmp_path: Path) -> None:
    base = open_base(str(shutil.copytree(tiny_base, tmp_path / name)))
    assert base.identity
    assert mapped_pages.let_go(base.backbone_tensors.values()) > 0


def test_tensors_that_lie_in_no_file_are_left_as_they_are() -> None:
    tensors = [torch.arange(size, dtype=torch.float32) for size in (1, 7, 1_000_000)]
    assert mapped_pages.let_go([*tensors, torch.empty(0)]) == 0
    assert all(torch.equal(tensor, torch.arange(tensor.numel(), dtype=torch.float32)) for tensor in tensors)


def test_others_may_open_and_close_the_file_and_use_its_addresses_meanwhile(base: Checkpoint, folder: Path) -> None:
    """A page that is let go after it has become another's would be zeros there."""
    assert base.identity
    stop = threading.Event()
    wrong: list[int] = []

    def reopen() -> None:
        while not stop.is_set():
            shared = torch.UntypedStorage.from_file(str(weights_of(folder)), False, weights_of(folder).stat().st_size)
            del shared
            taken = np.ones(weights_of(folder).stat().st_size, np.uint8)
            wrong.append(int((taken != 1).sum()))

    others = [threading.Thread(target=reopen) for _ in range(2)]
    for other in others:
        other.start()
    rounds = 0
    while rounds < 300 or len(wrong) <= 2:
        fingerprint(base.backbone_tensors)
        base.let_go()
        rounds += 1
    stop.set()
    for other in others:
        other.join()
    assert len(wrong) > 2
    assert not any(wrong)
