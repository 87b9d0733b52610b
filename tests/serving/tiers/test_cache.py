"""The tiers above the store: byte budgets, single flight, files on disk, decoded deltas."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import hashlib
import os
import resource
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_disk import filled

from ken_core import BaseMismatchError, DeltaFile, DeltaFormatError, open_base
from ken_core.fingerprint import fingerprint
from serving.errors import NoRoomError, StoreError, UnfitDeltaError
from serving.store import Store
from serving.tiers.budget import ByteBudget
from serving.tiers.cache import DeltaCache
from serving.tiers.files import DeltaFiles
from serving.tiers.single_flight import SingleFlight
from serving.tiers.unfit import Unfit
from tests.tiny_checkpoints import Deltas, Tiny, write_base

# ByteBudget

KEYS = st.sampled_from("abcde")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 60)),
        st.tuples(st.just("reserve"), KEYS, st.integers(0, 60)),
        st.tuples(st.just("give back"), KEYS, st.just(0)),
        st.tuples(st.just("get"), KEYS, st.just(0)),
        st.tuples(st.just("pop"), KEYS, st.just(0)),
        st.tuples(st.just("use"), KEYS, st.just(0)),
        st.tuples(st.just("free"), KEYS, st.just(0)),
    ),
    max_size=40,
)


class Model:
    """What `ByteBudget` should do, said slowly: keys from least to most recently used, and their sizes."""

    def __init__(self, budget: int, used: set[str], worth: dict[str, int]) -> None:
        self.budget, self.used, self.worth = budget, used, worth
        self.sizes: OrderedDict[str, int] = OrderedDict()
        self.reserved: dict[str, int] = {}

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values()) + sum(self.reserved.values())

    def put(self, key: str, size: int) -> list[str]:
        self.reserved.pop(key, None)
        self.sizes.pop(key, None)
        self.sizes[key] = size
        return self.shrink(key)

    def reserve(self, key: str, size: int) -> None:
        self.reserved[key] = size
        self.shrink(key)

    def shrink(self, key: str) -> list[str]:
        left = []
        while self.nbytes > self.budget:
            free = [k for k in self.sizes if k != key and k not in self.used]
            if not free:
                break
            least = min(free, key=lambda k: (self.worth[k], list(self.sizes).index(k)))
            left.append(least)
            del self.sizes[least]
        return left


@given(st.integers(0, 100), st.fixed_dictionaries({k: st.integers(0, 2) for k in "abcde"}), ACTIONS)
def test_a_byte_budget_lets_the_least_worth_and_least_recently_used_go_but_nothing_in_use(
    budget: int, worth: dict[str, int], actions: list[tuple[str, str, int]]
) -> None:
    used: set[str] = set()
    kept, model = ByteBudget[str](budget, used.__contains__, worth.__getitem__), Model(budget, used, worth)
    for action, key, size in actions:
        match action:
            case "put":
                assert kept.put(key, key, size) == model.put(key, size)
            case "reserve":
                kept.reserve(key, size)
                model.reserve(key, size)
            case "give back":
                kept.give_back(key)
                model.reserved.pop(key, None)
            case "get":
                assert kept.get(key) == (key if key in model.sizes else None)
                if key in model.sizes:
                    model.sizes.move_to_end(key)
            case "pop":
                assert kept.pop(key) == (key if model.sizes.pop(key, None) is not None else None)
            case "use":
                used.add(key)
            case "free":
                used.discard(key)
        assert kept.nbytes == model.nbytes
        assert kept.reserved == sum(model.reserved.values())
        assert len(kept) == len(model.sizes)
        assert {k for k in "abcde" if k in kept} == set(model.sizes)


@given(st.integers(0, 100), st.lists(st.tuples(KEYS, st.integers(0, 60)), min_size=1, max_size=30))
def test_with_nothing_in_use_a_byte_budget_is_kept_unless_the_newest_alone_exceeds_it(
    budget: int, puts: list[tuple[str, int]]
) -> None:
    kept: ByteBudget[str] = ByteBudget(budget)
    for key, size in puts:
        kept.put(key, key, size)
        assert key in kept
        assert kept.nbytes <= max(budget, size)


# SingleFlight


class Gate:
    """Work that takes as long as the test wants, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.open: dict[str, threading.Event] = {k: threading.Event() for k in "abc"}
        self.entered: dict[str, threading.Event] = {k: threading.Event() for k in "abc"}
        self.error: Exception | None = None

    def __call__(self, key: str) -> str:
        self.calls.append(key)
        self.entered[key].set()
        assert self.open[key].wait(20)
        if self.error:
            raise self.error
        return f"{key}{len(self.calls)}"


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def flight(gate: Gate) -> Iterator[SingleFlight[str]]:
    made = SingleFlight(gate, threads=2, name="test-flight")
    yield made
    for event in gate.open.values():
        event.set()
    made.close()


def test_many_who_wait_for_one_key_cause_one_call_and_share_its_result(gate: Gate, flight: SingleFlight[str]) -> None:
    waiting = [flight("a") for _ in range(20)]
    gate.open["a"].set()
    assert {f.result(20) for f in waiting} == {"a1"}
    assert gate.calls == ["a"]


def test_different_keys_run_in_parallel(gate: Gate, flight: SingleFlight[str]) -> None:
    flight("a")
    second = flight("b")
    assert gate.entered["a"].wait(20)
    assert gate.entered["b"].wait(20)
    gate.open["b"].set()
    assert second.result(20).startswith("b")


def test_an_error_reaches_all_who_wait_and_the_next_call_tries_again(gate: Gate, flight: SingleFlight[str]) -> None:
    gate.error = StoreError("no")
    waiting = [flight("a") for _ in range(5)]
    gate.open["a"].set()
    assert all(f.exception(20) is gate.error for f in waiting)
    gate.error = None
    assert flight("a").result(20) == "a2"


def test_a_result_is_not_kept_for_later_calls(gate: Gate, flight: SingleFlight[str]) -> None:
    gate.open["a"].set()
    assert [flight("a").result(20) for _ in range(2)] == ["a1", "a2"]


def test_one_who_gives_up_waiting_does_not_take_the_result_from_the_others(
    gate: Gate, flight: SingleFlight[str]
) -> None:
    async def wait_and_give_up() -> str:
        patient = asyncio.create_task(_await(flight("a")))
        hasty = asyncio.create_task(_await(flight("a")))
        await asyncio.to_thread(gate.entered["a"].wait, 20)
        hasty.cancel()
        await asyncio.gather(hasty, return_exceptions=True)
        gate.open["a"].set()
        return await patient

    assert asyncio.run(wait_and_give_up()) == "a1"


async def _await(future: Future[str]) -> str:
    return await asyncio.wrap_future(future)


def test_one_who_gives_up_before_the_work_began_does_not_take_it_from_the_others(
    gate: Gate, flight: SingleFlight[str]
) -> None:
    for key in "ab":  # both threads are taken
        flight(key)
    waiting, hasty = flight("c"), flight("c")
    hasty.cancel()
    for event in gate.open.values():
        event.set()
    assert waiting.result(20).startswith("c")


def test_nobody_waits_for_ever_when_it_closes(gate: Gate, flight: SingleFlight[str]) -> None:
    for key in "ab":  # both threads are taken
        flight(key)
        assert gate.entered[key].wait(20)
    waiting = flight("c")
    closing = threading.Thread(target=flight.close)
    closing.start()
    for event in gate.open.values():
        event.set()
    closing.join(20)
    assert waiting in concurrent.futures.wait([waiting], timeout=1).done


# DeltaFiles


@pytest.fixture
def files(store: Store, tmp_path: Path) -> DeltaFiles:
    return DeltaFiles(tmp_path / "deltas", 1 << 30, store)


def test_a_delta_is_fetched_once_and_then_found_on_disk(files: DeltaFiles, store: Store, deltas: Deltas) -> None:
    store.deltas.put(deltas.spam)
    first, was_there = files.open(deltas.spam.digest)
    assert (first.digest, was_there) == (deltas.spam.digest, False)
    again, was_there = files.open(deltas.spam.digest)
    assert (again.digest, was_there) == (deltas.spam.digest, True)


def test_what_is_on_disk_needs_no_store(files: DeltaFiles, store: Store, deltas: Deltas, tmp_path: Path) -> None:
    store.deltas.put(deltas.spam)
    files.open(deltas.spam.digest)
    offline = DeltaFiles(tmp_path / "deltas", 1 << 30, Store("redis://127.0.0.1:1/0", timeout=0.2))
    assert offline.holds(deltas.spam.digest)
    file, was_there = offline.open(deltas.spam.digest)
    assert was_there
    assert file.path.read_bytes() == deltas.spam.path.read_bytes()


def test_what_is_nowhere_is_a_store_error(files: DeltaFiles, deltas: Deltas) -> None:
    with pytest.raises(StoreError, match="does not hold"):
        files.open(deltas.spam.digest)


def alter_a_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [alter_a_value, cut, empty])
def test_a_file_damaged_on_disk_is_fetched_again(
    damage: Callable[[Path], None], files: DeltaFiles, store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    files.open(deltas.spam.digest)
    damage(tmp_path / "deltas" / deltas.spam.digest)
    file, was_there = files.open(deltas.spam.digest)
    assert not was_there
    assert file.path.read_bytes() == deltas.spam.path.read_bytes()


def test_the_disk_budget_lets_the_least_recently_opened_file_go(store: Store, deltas: Deltas, tmp_path: Path) -> None:
    three = (deltas.spam, deltas.topic, deltas.emotion)
    for file in three:
        store.deltas.put(file)
    files = DeltaFiles(tmp_path / "deltas", deltas.spam.size + deltas.topic.size + deltas.emotion.size - 1, store)
    for digest in (deltas.spam.digest, deltas.topic.digest, deltas.spam.digest, deltas.emotion.digest):
        files.open(digest)
    kept = {deltas.spam.digest, deltas.emotion.digest}
    assert {p.name for p in (tmp_path / "deltas").iterdir()} == kept
    assert files.nbytes == deltas.spam.size + deltas.emotion.size
    assert [files.holds(f.digest) for f in three] == [True, False, True]


def test_a_restart_keeps_the_files_most_recently_opened_within_the_budget(
    store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    files = DeltaFiles(tmp_path / "deltas", 1 << 30, store)
    for i, file in enumerate((deltas.spam, deltas.topic, deltas.emotion)):
        store.deltas.put(file)
        files.open(file.digest)
        os.utime(tmp_path / "deltas" / file.digest, (1000 + i, 1000 + i))
    files.open(deltas.spam.digest)
    again = DeltaFiles(tmp_path / "deltas", deltas.spam.size + deltas.emotion.size + 1, store)
    assert again.holds(deltas.spam.digest)
    assert again.holds(deltas.emotion.digest)
    assert not (tmp_path / "deltas" / deltas.topic.digest).exists()


def test_what_a_killed_fetch_left_is_cleared_away(tmp_path: Path, store: Store, deltas: Deltas) -> None:
    folder = tmp_path / "deltas"
    folder.mkdir()
    left = folder / f".{deltas.spam.digest}.{'0' * 32}.partial"
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    files = DeltaFiles(folder, 1 << 30, store)
    assert list(folder.iterdir()) == []
    assert files.nbytes == 0


def test_a_replica_that_starts_does_not_disturb_a_fetch_of_its_neighbour_in_the_same_folder(
    store: Store, deltas: Deltas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.store.deltas.CHUNK_BYTES", 20)
    store.deltas.put(deltas.spam)
    folder = tmp_path / "deltas"
    neighbour = DeltaFiles(folder, 1 << 30, store)
    outcome: Future[DeltaFile] = Future()

    def fetch() -> None:
        try:
            outcome.set_result(neighbour.open(deltas.spam.digest)[0])
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fetch).start()
    while not list(folder.iterdir()):
        assert not outcome.done()
    DeltaFiles(folder, 1 << 30, store)
    assert outcome.result(20).digest == deltas.spam.digest


def sealed(folder: Path) -> None:
    """A file in a folder's place: nobody, not even root, can write into it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_bytes(b"")


def unsealed(folder: Path) -> None:
    folder.unlink()


def test_a_folder_that_takes_no_files_is_told_once_and_deltas_are_read_from_memory(
    store: Store, deltas: Deltas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (deltas.spam, deltas.topic):
        store.deltas.put(file)
    sealed(tmp_path / "deltas")
    files = DeltaFiles(tmp_path / "deltas", 1 << 30, store)
    for wanted in (deltas.spam, deltas.topic, deltas.spam):
        file, was_there = files.open(wanted.digest)
        assert not was_there
        assert file.path.read_bytes() == wanted.path.read_bytes()
    assert not files.holds(deltas.spam.digest)
    assert files.trouble is not None
    assert len(caplog.records) == 1
    unsealed(tmp_path / "deltas")
    files.open(deltas.spam.digest)
    assert files.trouble is None
    assert files.open(deltas.spam.digest)[1]


def test_what_is_read_from_memory_takes_memory_only_as_long_as_it_is_used(
    store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    sealed(tmp_path / "deltas")
    files = DeltaFiles(tmp_path / "deltas", 1 << 30, store)
    file, _ = files.open(deltas.spam.digest)
    path = file.path
    assert path.exists()
    del file
    assert not path.exists()


@pytest.fixture
def in_memory(
    store: Store, deltas: Deltas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., DeltaFiles]:
    """Files that no disk takes, of three deltas, with room for one of them at a time."""
    for file in (deltas.spam, deltas.topic, deltas.emotion):
        store.deltas.put(file)
    sealed(tmp_path / "sealed")

    def make(seconds: float) -> DeltaFiles:
        monkeypatch.setattr("serving.tiers.files._ROOM_SECONDS", seconds)
        return DeltaFiles(tmp_path / "sealed", 1 << 30, store, memory_budget=1)

    return make


def test_files_in_memory_wait_for_each_other_within_a_budget(
    in_memory: Callable[..., DeltaFiles], deltas: Deltas
) -> None:
    files = in_memory(60)
    file, _ = files.open(deltas.spam.digest)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(files.open, deltas.topic.digest)
        done, _ = concurrent.futures.wait([waiting], timeout=0.3)
        assert not done
        del file
        assert waiting.result(20)[0].digest == deltas.topic.digest


def test_a_file_that_finds_no_room_in_memory_is_refused_with_both_reasons(
    in_memory: Callable[..., DeltaFiles], deltas: Deltas
) -> None:
    files = in_memory(0.1)
    file, _ = files.open(deltas.spam.digest)
    with pytest.raises(NoRoomError, match=r"on disk \(.*File exists.*\) nor in memory \(.*being loaded take"):
        files.open(deltas.topic.digest)
    del file
    files.open(deltas.topic.digest)


def test_a_delta_that_is_remembered_as_unfit_leaves_memory(
    in_memory: Callable[..., DeltaFiles], tiny: Tiny, deltas: Deltas
) -> None:
    files = in_memory(0.1)
    cache, unfit = DeltaCache(files, 1 << 30, tiny.base, "another base"), Unfit()
    for file in (deltas.spam, deltas.topic):
        with pytest.raises(UnfitDeltaError), unfit.noting(file.digest):
            cache.load(file.digest)
        gc.collect()
    with pytest.raises(UnfitDeltaError, match=deltas.spam.digest):
        unfit.refuse(deltas.spam.digest)


class Emptied(DeltaFiles):
    """A folder in which another replica makes room just when a file was opened, so many times."""

    times = 0

    def open(self, digest: str) -> tuple[DeltaFile, bool]:
        found = super().open(digest)
        if self.times:
            self.times -= 1
            found[0].path.unlink()
        return found


def test_a_file_that_another_replica_deletes_while_it_is_read_is_fetched_again(
    store: Store, deltas: Deltas, make_cache: Callable[..., DeltaCache], tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    files = Emptied(tmp_path / "deltas", 1 << 30, store)
    files.times = 2
    assert make_cache(tier=files).load(deltas.spam.digest).tier == "store"


def test_a_file_that_is_deleted_again_and_again_is_no_fault_of_the_delta(
    store: Store, deltas: Deltas, make_cache: Callable[..., DeltaCache], tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    files = Emptied(tmp_path / "deltas", 1 << 30, store)
    files.times, unfit = 100, Unfit()
    with pytest.raises(StoreError, match="KEN_DISK_BYTES"), unfit.noting(deltas.spam.digest):
        make_cache(tier=files).load(deltas.spam.digest)
    unfit.refuse(deltas.spam.digest)
    files.times = 0
    make_cache(tier=files).load(deltas.spam.digest)


def test_a_process_with_too_many_open_files_is_no_fault_of_the_disk(
    files: DeltaFiles, store: Store, deltas: Deltas
) -> None:
    store.deltas.put(deltas.spam)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises((NoRoomError, StoreError), match="Too many open files"):
            files.open(deltas.spam.digest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert files.trouble is None


@pytest.mark.parametrize("damage", ["no container", "a wrong stream"])
def test_a_damaged_delta_that_is_read_from_memory_is_called_by_its_digest(
    damage: str, store: Store, deltas: Deltas, make_cache: Callable[..., DeltaCache], tmp_path: Path
) -> None:
    data = bytearray(deltas.spam.path.read_bytes())
    if damage == "no container":
        data[:8] = b"damaged!"
    else:
        data[-1] ^= 1
    path = tmp_path / "damaged.ken"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    store.deltas.put(DeltaFile(path, deltas.spam.manifest, len(data), digest))
    sealed(tmp_path / "sealed")
    with pytest.raises(DeltaFormatError, match=f"^{digest}"):
        make_cache(tier=DeltaFiles(tmp_path / "sealed", 1 << 30, store)).load(digest)


def test_a_delta_that_is_nowhere_is_a_store_error_whatever_the_disk_takes(
    deltas: Deltas, store: Store, tmp_path: Path
) -> None:
    sealed(tmp_path / "deltas")
    files = DeltaFiles(tmp_path / "deltas", 1 << 30, store)
    with pytest.raises(StoreError, match="does not hold"):
        files.open(deltas.spam.digest)


def test_a_disk_that_is_full_half_way_through_a_file_is_left_clean_and_is_used_again_when_it_has_room(
    store: Store, deltas: Deltas, small_disk: Path
) -> None:
    store.deltas.put(deltas.spam)
    files = DeltaFiles(small_disk, 1 << 30, store)
    ballast = small_disk / "ballast"
    filled(ballast, room=deltas.spam.size // 2)
    file, _ = files.open(deltas.spam.digest)
    assert file.path.read_bytes() == deltas.spam.path.read_bytes()
    assert "No space left on device" in str(files.trouble)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    ballast.unlink()
    files.open(deltas.spam.digest)
    assert files.trouble is None
    assert files.open(deltas.spam.digest)[1]


def test_a_disk_that_is_read_only_still_gives_what_it_holds(store: Store, deltas: Deltas, small_disk: Path) -> None:
    files = DeltaFiles(small_disk, 1 << 30, store)
    for file in (deltas.spam, deltas.topic, deltas.emotion):
        store.deltas.put(file)
        if file is not deltas.emotion:
            files.open(file.digest)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    files = DeltaFiles(small_disk, 1, store)
    opened = [files.open(file.digest)[1] for file in (deltas.spam, deltas.topic, deltas.emotion)]
    assert opened == [True, True, False]


def test_odd_entries_of_the_folder_are_no_reason_not_to_start(store: Store, deltas: Deltas, tmp_path: Path) -> None:
    store.deltas.put(deltas.spam)
    folder = tmp_path / "deltas"
    DeltaFiles(folder, 1 << 30, store).open(deltas.spam.digest)
    (folder / ("a" * 64)).symlink_to(tmp_path / "gone")
    (folder / ("b" * 64)).mkdir()
    (folder / ".c.partial").symlink_to(tmp_path / "gone")
    (folder / "d.sig").symlink_to(tmp_path / "gone")
    os.mkfifo(folder / ("e" * 64))
    again = DeltaFiles(folder, 1 << 30, store)
    assert again.nbytes == deltas.spam.size
    assert again.open(deltas.spam.digest)[1]


# DeltaCache


@pytest.fixture(scope="session")
def identity(tiny: Tiny) -> str:
    return fingerprint(tiny.base.backbone_tensors).digest


@pytest.fixture
def make_cache(tiny: Tiny, identity: str, files: DeltaFiles) -> Callable[..., DeltaCache]:
    return lambda budget=1 << 30, tier=files: DeltaCache(tier, budget, tiny.base, identity)


def test_a_delta_is_found_in_the_nearest_tier_that_holds_it(
    make_cache: Callable[..., DeltaCache], store: Store, deltas: Deltas
) -> None:
    store.deltas.put(deltas.spam)
    cache = make_cache()
    assert cache.tier_of(deltas.spam.digest) == "store"
    first = cache.load(deltas.spam.digest)
    assert first.tier == "store"
    assert cache.tier_of(deltas.spam.digest) == "host"
    again = cache.load(deltas.spam.digest)
    assert again.tier == "host"
    assert again.delta is first.delta
    restarted = make_cache()
    assert restarted.tier_of(deltas.spam.digest) == "disk"
    assert restarted.load(deltas.spam.digest).tier == "disk"


def test_a_loaded_delta_is_what_was_published(
    make_cache: Callable[..., DeltaCache], store: Store, deltas: Deltas
) -> None:
    store.deltas.put(deltas.spam)
    delta = make_cache().load(deltas.spam.digest).delta
    assert delta.stored == deltas.spam.manifest.stored
    assert delta.kind == "text-classification"


def test_what_is_in_host_memory_needs_neither_disk_nor_store(
    make_cache: Callable[..., DeltaCache], store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    cache = make_cache()
    first = cache.load(deltas.spam.digest).delta
    (tmp_path / "deltas" / deltas.spam.digest).unlink()
    assert cache.load(deltas.spam.digest).delta is first


def test_the_host_budget_lets_decoded_deltas_go(
    make_cache: Callable[..., DeltaCache], store: Store, deltas: Deltas
) -> None:
    store.deltas.put(deltas.spam)
    store.deltas.put(deltas.topic)
    cache = make_cache(budget=1)
    spam, topic = (cache.load(file.digest) for file in (deltas.spam, deltas.topic))
    assert cache.host_nbytes == topic.delta.nbytes
    again = cache.load(deltas.spam.digest)
    assert [found.tier for found in (spam, topic, again)] == ["store", "store", "disk"]


def test_a_delta_of_another_base_is_refused(
    tiny: Tiny, tmp_path: Path, files: DeltaFiles, store: Store, deltas: Deltas
) -> None:
    store.deltas.put(deltas.spam)
    other = open_base(str(write_base(tmp_path / "other-base", seed=9)))
    found = fingerprint(other.backbone_tensors).digest
    with pytest.raises(BaseMismatchError, match=f"{deltas.spam.manifest.base.fingerprint}.*{found}"):
        DeltaCache(files, 1 << 30, other, found).load(deltas.spam.digest)


def test_a_file_being_decoded_is_not_evicted_by_another_load(
    make_cache: Callable[..., DeltaCache], store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    """Two loads on a disk budget of one file: the second arrives between the first one's opening and decoding."""
    store.deltas.put(deltas.spam)
    store.deltas.put(deltas.topic)

    class Interleaved(DeltaFiles):
        def open(self, digest: str) -> Any:
            opened = super().open(digest)
            if digest == deltas.spam.digest:
                super().open(deltas.topic.digest)
            return opened

    cache = make_cache(tier=Interleaved(tmp_path / "small", 1, store))
    assert cache.load(deltas.spam.digest).delta.stored == deltas.spam.manifest.stored
