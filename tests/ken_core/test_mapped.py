"""Writing to a checkpoint's file while its tensors are mapped is noticed, and changed values are never used."""

from __future__ import annotations

import gc
import logging
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ken_core import calibration, deltafile
from ken_core.checkpoint import Checkpoint, open_as, open_base, open_tuned
from ken_core.delta import Delta, apply, merge
from ken_core.deltafile import DeltaFile
from ken_core.errors import CheckpointChangedError, DeltaFormatError, ExchangeError, PoisonedError
from ken_core.extraction import extract
from ken_core.fingerprint import fingerprint
from ken_core.judges import judges_for
from ken_core.kernels import Exchange, Packed, exchange_for
from ken_core.progress import Stage
from ken_core.resident import ResidentModel
from ken_core.selection import Budget, Selection

WEIGHTS = "model.safetensors"
HALF = Selection(budget=Budget(fraction=0.5))


def write_in_place(path: Path, times_too: bool = False) -> None:
    """Write other values over the second half of a file of weights: the same file, of the same size.

    Args:
        times_too: whether to set the time of the last write back as well.
    """
    before = path.stat()
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data), 4):
        data[at] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    if times_too:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A base's folder of this test's own."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def tuned(tiny_tuned: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_tuned["mood"], tmp_path / "mood"))


@pytest.fixture
def base(folder: Path) -> Checkpoint:
    opened = open_base(str(folder))
    assert opened.identity == fingerprint(opened.backbone_tensors)
    return opened


@pytest.fixture
def delta(base: Checkpoint, tuned: Path) -> Delta:
    return extract(base, open_tuned(str(tuned)), HALF)


@pytest.fixture
def file(base: Checkpoint, delta: Delta, tmp_path: Path) -> DeltaFile:
    return deltafile.write(delta, base, tmp_path / "mood.ken")


Use = Callable[[Checkpoint, Delta, DeltaFile, Path], object]
USES: dict[str, Use] = {
    "decode": lambda base, delta, file, out: deltafile.read(file, base, file.manifest.base.fingerprint),
    "encode": lambda base, delta, file, out: deltafile.write(delta, base, out),
    "merge": lambda base, delta, file, out: merge(base, delta),
    "apply": lambda base, delta, file, out: apply(base, delta, out),
    "extract": lambda base, delta, file, out: extract(base, open_tuned(str(file.path.with_suffix(""))), HALF),
    "take into memory": lambda base, delta, file, out: ResidentModel(base),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("times_too", [False, True])
def test_nothing_is_read_from_a_file_that_was_written_to(
    use: str, times_too: bool, base: Checkpoint, delta: Delta, file: DeltaFile, folder: Path, tmp_path: Path
) -> None:
    write_in_place(folder / WEIGHTS, times_too)
    assert fingerprint(base.backbone_tensors) != base.identity  # the map does show it
    with pytest.raises(CheckpointChangedError, match=r"model\.safetensors.*more hold other values.*rename") as refused:
        USES[use](base, delta, file, tmp_path / "out")
    assert base.files.trouble == str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("use", USES)
def test_a_file_that_was_cut_is_refused_before_it_is_read(
    use: str, base: Checkpoint, delta: Delta, file: DeltaFile, folder: Path, tmp_path: Path
) -> None:
    os.truncate(folder / WEIGHTS, 100)
    with pytest.raises(CheckpointChangedError, match="shorter"):
        USES[use](base, delta, file, tmp_path / "out")
    assert base.differing() == list(base.backbone_tensors)


def test_a_file_that_was_merely_touched_is_hashed_once_and_used_on(
    base: Checkpoint, file: DeltaFile, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = deltafile.read(file, base, base.identity.digest)
    os.utime(folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o600)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            after = deltafile.read(file, base, base.identity.digest)
    assert [record.message.count("was touched") for record in caplog.records] == [1]
    assert all((after.sparse[n].values == s.values).all() for n, s in before.sparse.items())
    assert base.files.trouble is None


def test_a_file_whose_content_was_put_back_is_used_again(
    base: Checkpoint, file: DeltaFile, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = (folder / WEIGHTS).read_bytes()
    write_in_place(folder / WEIGHTS)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(CheckpointChangedError):
                deltafile.read(file, base, base.identity.digest)
    assert len(caplog.records) == 1
    with (folder / WEIGHTS).open("r+b") as opened:
        opened.write(held)
    deltafile.read(file, base, base.identity.digest)
    assert base.files.trouble is None


@pytest.mark.parametrize("which", ["base", "fine-tune"])
@pytest.mark.parametrize("change", ["renamed over", "linked", "made read-only"])
def test_what_moves_no_time_of_writing_is_no_change_though_nothing_was_hashed(
    change: str, which: str, folder: Path, tuned: Path
) -> None:
    opened, fine_tune = open_base(str(folder)), open_tuned(str(tuned))
    path = (folder if which == "base" else tuned) / WEIGHTS
    match change:
        case "renamed over":
            shutil.copy(path, path.with_suffix(".tmp")).replace(path)
        case "linked":
            path.with_suffix(".link").hardlink_to(path)
        case _:
            path.chmod(0o444)
    assert extract(opened, fine_tune, HALF).sparse


def test_a_file_that_another_one_was_renamed_over_is_read_on(
    base: Checkpoint, delta: Delta, file: DeltaFile, folder: Path
) -> None:
    """This is how updates should be made: the map keeps the old file."""
    other = folder / "new.tmp"
    save_file({n: t + 1 for n, t in load_file(folder / WEIGHTS).items()}, other, {"format": "pt"})
    other.replace(folder / WEIGHTS)
    read = deltafile.read(file, base, base.identity.digest)
    assert all((read.sparse[n].values == s.values).all() for n, s in delta.sparse.items())
    with pytest.raises(CheckpointChangedError, match="replaced after the base was opened"):
        open_as(base, type(base.model), base.config)


def test_what_no_time_tells_is_found_by_hashing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that writes through a map of its own moves no time until its pages are flushed."""
    with (folder / WEIGHTS).open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as shared:
        shared[-4] = shared[-4]
        base = open_base(str(folder))
        names = list(base.identity.tensors)
        assert base.differing() == []
        before = base.files.states()
        shared[-4] ^= 1
        if base.files.states() != before:
            pytest.skip("this file system tells of every write through a map")
        with base.unchanged():
            pass
        found = base.differing()
        assert len(found) == 1
        assert base.differing(set(names) - set(found)) == []
        with pytest.raises(CheckpointChangedError, match=found[0]), base.unchanged():
            raise AssertionError("what follows would read other values")


# While it is read


def test_whatever_goes_wrong_while_a_file_is_written_to_is_said_to_come_from_that(
    base: Checkpoint, folder: Path
) -> None:
    def decode() -> None:
        with base.unchanged():
            write_in_place(folder / WEIGHTS)
            raise DeltaFormatError("the delta's values hold NaN or infinity")

    with pytest.raises(CheckpointChangedError, match="while it was read"):
        decode()


@pytest.mark.parametrize("whose", ["base", "mood"])
@pytest.mark.parametrize("stage", ["comparing", "threshold, reading 1", "selecting"])
def test_a_fine_tune_is_not_extracted_from_files_that_change_meanwhile(
    whose: str, stage: str, folder: Path, tuned: Path, tmp_path: Path
) -> None:
    def meanwhile(now: Stage) -> None:
        seen.append(now.what)
        if now.what == stage and seen.count(stage) == 2:
            write_in_place(tmp_path / whose / WEIGHTS)

    seen: list[str] = []
    with pytest.raises(CheckpointChangedError, match=whose):
        extract(open_base(str(folder)), open_tuned(str(tuned)), HALF, progress=meanwhile)
    assert stage in seen


def test_a_fine_tune_that_is_saved_over_while_it_is_open_is_refused(base: Checkpoint, tuned: Path) -> None:
    opened = open_tuned(str(tuned))
    write_in_place(tuned / WEIGHTS)
    with pytest.raises(CheckpointChangedError, match="had not been hashed before"):
        extract(base, opened, HALF)


def test_a_calibration_ends_when_the_base_changes(folder: Path, tuned: Path, tmp_path: Path) -> None:
    theirs = open_tuned(str(tuned))
    judges = judges_for(theirs, [f"{a} {b}" for a in ("good", "bad", "boring") for b in ("film", "war", "king")])
    seen: list[Stage] = []

    def meanwhile(now: Stage) -> None:
        seen.append(now)
        if sum(stage.what == "trying" for stage in seen) == 2:
            write_in_place(folder / WEIGHTS)

    with pytest.raises(CheckpointChangedError, match=r"model\.safetensors|base"):
        calibration.best_within(
            open_base(str(folder)), theirs, judges, 60_000, tmp_path / "out.ken", progress=meanwhile
        )
    assert not (tmp_path / "out.ken").exists()


def test_a_base_that_changes_between_its_opening_and_its_hashing_has_no_identity(folder: Path) -> None:
    opened = open_base(str(folder))
    write_in_place(folder / WEIGHTS)
    with pytest.raises(CheckpointChangedError):
        _ = opened.identity
    with pytest.raises(CheckpointChangedError):
        ResidentModel(opened)


def test_a_base_that_changes_while_it_is_opened_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    load = AutoModel.from_pretrained

    def meanwhile(*args: object, **options: object) -> object:
        loaded = load(*args, **options)
        write_in_place(folder / WEIGHTS)
        return loaded

    monkeypatch.setattr(AutoModel, "from_pretrained", meanwhile)
    with pytest.raises(CheckpointChangedError, match="while it was being opened"):
        open_base(str(folder))


def test_a_pickled_base_is_watched_too(folder: Path, tuned: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    base = open_base(str(folder))
    assert base.differing() == []
    os.truncate(folder / "pytorch_model.bin", 100)
    with pytest.raises(CheckpointChangedError, match="shorter"):
        extract(base, open_tuned(str(tuned)), HALF)


# The resident weights


def test_a_task_is_neither_materialised_nor_restored_from_a_changed_file(
    base: Checkpoint, delta: Delta, folder: Path
) -> None:
    fail = False

    def faulty(device: torch.device, dtype: torch.dtype) -> Exchange:
        real = exchange_for(device, dtype)

        def exchange(weights: torch.Tensor, packed: Packed) -> None:
            real(weights, packed)
            if fail:
                raise RuntimeError("the device is on fire")

        return exchange

    resident = ResidentModel(base, exchange_factory=faulty, switch_factory=None)
    attached = resident.attach(delta)
    write_in_place(folder / WEIGHTS)
    with pytest.raises(CheckpointChangedError):
        resident.attach(delta, materialised=True)
    resident.activate(attached)
    resident.revert()
    assert resident.verify() == []  # what is in memory is right, and a decoded delta needs no file
    resident.activate(resident.attach(delta))
    resident.revert()
    fail = True
    with pytest.raises(PoisonedError, match=r"restoring the base.*model\.safetensors was written to"):
        resident.activate(attached)
    assert resident.poisoned


def test_a_failed_exchange_is_restored_from_a_file_that_was_merely_touched(
    base: Checkpoint, delta: Delta, folder: Path
) -> None:
    def failing(device: torch.device, dtype: torch.dtype) -> Exchange:
        def exchange(weights: torch.Tensor, packed: Packed) -> None:
            weights.zero_()
            raise RuntimeError("the device is on fire")

        return exchange

    resident = ResidentModel(base, exchange_factory=failing, switch_factory=None)
    attached = resident.attach(delta)
    assert attached.names == set(resident.names)
    os.utime(folder / WEIGHTS)
    with pytest.raises(ExchangeError, match="the base was restored"):
        resident.activate(attached)
    assert resident.verify() == []


def test_files_are_closed_with_the_checkpoint(folder: Path) -> None:
    def held() -> int:
        gc.collect()
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        return sum(link.exists() and link.resolve() == (folder / WEIGHTS).resolve() for link in links)

    before = held()
    opened = open_base(str(folder))
    assert held() == before + 1
    del opened
    assert held() == before
