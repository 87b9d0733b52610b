"""What each tier says it takes is what it takes: every byte reachable from its objects is counted, and once."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any
from weakref import WeakSet, ref

import numpy as np
import pytest
import torch
from holding import Blocked, until
from transformers import BertForSequenceClassification

import ken_core
from ken_core import Attached, Budget, Delta, DeltaFile, Selection, deltafile, open_tuned
from ken_core.embedding import Dense, Embedding
from ken_core.entries import LowRank
from ken_core.kernels import Packed, exchange_for
from serving import service as service_module
from serving.replica.inference import Prediction
from serving.service import Service
from serving.tiers.cache import DeltaCache
from tests.tiny_checkpoints import TEXTS, WORDS, Deltas, Tiny, scores, write_tokenizer

Dedicated = Callable[[DeltaFile, str], dict[str, float]]
MakeService = Callable[..., Service]
Metric = Callable[..., float]
Buffers = dict[int, int]
"""Address to bytes."""

OFTEN = 6
"""Uses after which a task is materialised where there is room."""


def buffers(*roots: object) -> Buffers:
    """The memory of every tensor and array reachable from some objects, by following whatever they refer to.

    Of an array that a tensor was made from, what the tensor sees of it: it does not tell the rest.
    """
    found: Buffers = {}
    seen: set[int] = set()
    left: list[object] = list(roots)
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, BuiltinFunctionType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            if storage.device.type != "meta" and storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
            left.append(getattr(thing, "__dict__", None))
        elif isinstance(thing, np.ndarray):
            found |= _buffer_of(thing)
        else:
            left.extend(gc.get_referents(thing))
    return found


def _buffer_of(array: np.ndarray) -> Buffers:
    """The memory an array is a view of, however many views lie between."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if isinstance(array.base, torch.Tensor):
        return buffers(array.base)
    if array.base is None:
        return {array.ctypes.data: array.nbytes} if array.nbytes else {}
    with memoryview(array.base) as view:
        return {np.frombuffer(view, np.uint8).ctypes.data: view.nbytes} if view.nbytes else {}


def of_the_base(service: Service) -> Buffers:
    """What all tasks share: the resident weights and the checkpoint's map."""
    assert service.engine.verify().result(20) == []  # no delta is active afterwards: the parameters are the base's own
    return buffers(service.resident)


def of_the_tier(service: Service, things: Iterable[object]) -> int:
    """Bytes reachable from a tier's objects and not part of the one resident base."""
    base = of_the_base(service)
    return sum(nbytes for at, nbytes in buffers(*things).items() if at not in base)


def on_the_device(service: Service, *, materialised: bool) -> list[object]:
    return [loaded for loaded in service.engine.tiers.held() if loaded.attached.materialised == materialised]


async def ask(service: Service, file: DeltaFile, *texts: str) -> Prediction:
    return await service.predict(file.digest, texts or TEXTS, {}, 20)


def ask_for_all(service: Service, files: Iterable[DeltaFile], times: int = 1) -> None:
    for file in files:
        for _ in range(times):
            asyncio.run(ask(service, file, TEXTS[0]))


@pytest.fixture(scope="session")
def more_words(tiny: Tiny) -> DeltaFile:
    """A delta that brings its embedding whole, and a tokenizer."""
    base = tiny.base
    folder = tiny.folder / "more-words"
    torch.manual_seed(70)
    model = BertForSequenceClassification.from_pretrained(tiny.base_folder)
    model.resize_token_embeddings(base.config.vocab_size + 3, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder, (*WORDS, "zebra", "yacht", "xenon"))
    delta = ken_core.extract(base, open_tuned(str(folder)), Selection(budget=Budget(fraction=0.2)))
    assert delta.dense
    assert delta.files
    return deltafile.write(delta, base, folder.with_suffix(".ken"))


@pytest.fixture(scope="session")
def in_every_codec(tiny: Tiny) -> list[DeltaFile]:
    """One fine-tune's delta a codec."""
    tuned = open_tuned(str(tiny.tuned("coded", ["no", "yes"], seed=71)))
    delta = ken_core.extract(tiny.base, tuned, Selection(budget=Budget(fraction=0.3)))
    return [deltafile.write(delta, tiny.base, tiny.folder / f"{c}.ken", c) for c in deltafile.CODECS]


@pytest.fixture(scope="session")
def projected(tiny: Tiny) -> DeltaFile:
    """A delta whose embeddings go through two dense modules."""
    layers = (
        Dense(inputs=32, outputs=100, bias=True, activation="Tanh"),
        Dense(inputs=100, outputs=9, bias=False, activation="Identity", residual=True),
    )
    embedding = Embedding(pooling=("mean",), modules=layers)
    torch.manual_seed(72)
    delta = ken_core.extract(tiny.base, open_tuned(str(tiny.embedding("projected", seed=72))))
    projections = {name: torch.randn(shape) for name, shape in embedding.shapes.items()}
    return deltafile.write(
        replace(delta, embedding=embedding, projections=projections), tiny.base, tiny.folder / "projected.ken"
    )


@pytest.fixture(scope="session")
def everything(
    deltas: Deltas, more_words: DeltaFile, projected: DeltaFile, in_every_codec: list[DeltaFile]
) -> list[DeltaFile]:
    return [deltas.emotion, deltas.topic, deltas.spam, more_words, projected, *in_every_codec]


@pytest.fixture
def publish_all(publish: Callable[..., None]) -> Callable[[Iterable[DeltaFile]], None]:
    def run(files: Iterable[DeltaFile]) -> None:
        for number, file in enumerate(files):
            publish(f"task-{number}", file)

    return run


def test_walking_counts_a_buffer_once_and_finds_it_behind_views() -> None:
    tensor, array = torch.zeros(10), np.zeros(7)
    text = np.frombuffer(b"x" * 100, np.uint8)[5:]
    module = torch.nn.Linear(2, 3, bias=False)
    things = [tensor[2:], {"a": (tensor.view(5, 2), array[1:3])}, text, text.view(np.int8), module, torch.zeros(0)]
    assert sorted(buffers(*things).values()) == [24, 40, 56, 100]
    assert buffers(torch.from_numpy(array)) == buffers(array) == buffers(torch.from_numpy(array).numpy())


# What a tier takes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_packed_tier_takes_what_it_says(
    dtype: str,
    make_service: MakeService,
    publish_all: Callable[..., None],
    everything: list[DeltaFile],
    metric: Metric,
) -> None:
    publish_all(everything)
    service = make_service(dtype=dtype)
    ask_for_all(service, everything)
    packed = on_the_device(service, materialised=False)
    assert len(packed) == len(everything)
    assert of_the_tier(service, packed) == metric(service, "ken_cache_bytes", tier="packed") > 0
    assert metric(service, "ken_cache_bytes", tier="materialised") == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_materialised_tier_takes_what_it_says_and_the_packed_form_is_gone(
    dtype: str,
    make_service: MakeService,
    publish_all: Callable[..., None],
    deltas: Deltas,
    more_words: DeltaFile,
    metric: Metric,
    eventually: Callable[..., None],
) -> None:
    hot, cold = [deltas.emotion, more_words, deltas.topic], [deltas.spam]
    publish_all([*hot, *cold])
    service = make_service(dtype=dtype, materialised_bytes=1 << 30)
    ask_for_all(service, cold)
    ask_for_all(service, hot, OFTEN)
    eventually(lambda: len(on_the_device(service, materialised=True)) == len(hot))
    for tier, materialised in (("packed", False), ("materialised", True)):
        found = of_the_tier(service, on_the_device(service, materialised=materialised))
        assert found == metric(service, "ken_cache_bytes", tier=tier) > 0
    assert [loaded.digest for loaded in on_the_device(service, materialised=False)] == [deltas.spam.digest]


def test_a_tier_that_tasks_left_takes_what_it_says(
    make_service: MakeService, publish_all: Callable[..., None], everything: list[DeltaFile], metric: Metric
) -> None:
    publish_all(everything)
    service = make_service(packed_bytes=100_000)
    ask_for_all(service, [*everything, *everything[:3]])
    packed = on_the_device(service, materialised=False)
    assert len(packed) < len(everything)
    assert of_the_tier(service, packed) == metric(service, "ken_cache_bytes", tier="packed") > 0


def test_a_task_that_was_attached_again_after_a_failed_exchange_is_counted_once(
    make_service: MakeService,
    publish_all: Callable[..., None],
    everything: list[DeltaFile],
    metric: Metric,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = []

    def failing(weights: torch.Tensor, packed: Packed) -> None:
        if failures:
            raise failures.pop()
        exchange_for(weights.device, weights.dtype)(weights, packed)

    publish_all(everything)
    service = make_service(mixed="off")
    monkeypatch.setattr(service.resident, "_exchanges", {torch.float32: failing})
    monkeypatch.setattr(service.resident, "_switches", {})
    ask_for_all(service, everything)
    failures.append(RuntimeError("the device is gone"))
    ask_for_all(service, everything)
    assert not failures
    packed = on_the_device(service, materialised=False)
    assert of_the_tier(service, packed) == metric(service, "ken_cache_bytes", tier="packed") > 0


@pytest.fixture
def make_service_with_a_host_tier(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> MakeService:
    """As beside a GPU, where decoded deltas are worth keeping."""

    def keeping_all(*arguments: Any, **options: Any) -> DeltaCache:
        options.pop("worth_keeping", None)
        return DeltaCache(*arguments[:4], **options)

    monkeypatch.setattr(service_module, "DeltaCache", keeping_all)
    return make_service


def test_the_host_tier_takes_what_it_says_and_shares_nothing_with_the_device(
    make_service_with_a_host_tier: MakeService,
    publish_all: Callable[..., None],
    everything: list[DeltaFile],
    metric: Metric,
) -> None:
    publish_all(everything)
    service = make_service_with_a_host_tier()
    ask_for_all(service, everything)
    found = [service.cache.load(file.digest) for file in everything]
    assert {f.tier for f in found} == {"host"}
    host = [f.delta for f in found]
    files = sum(len(data) for delta in host for data in delta.files.values())
    assert of_the_tier(service, host) + files == metric(service, "ken_cache_bytes", tier="host") > files > 0
    assert not buffers(*host).keys() & buffers(*on_the_device(service, materialised=False)).keys()


def test_on_a_cpu_no_decoded_delta_stays_beside_its_packed_form(
    service: Service, deltas: Deltas, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not found by `gc.get_objects`, which breaks a tuple that another thread is making from a generator."""
    made: list[ref[Delta]] = []
    real = Delta.__init__

    def remembered(delta: Delta, *arguments: Any, **options: Any) -> None:
        real(delta, *arguments, **options)
        made.append(ref(delta))

    monkeypatch.setattr(Delta, "__init__", remembered)
    ask_for_all(service, [deltas.emotion, deltas.topic, deltas.spam])
    assert metric(service, "ken_cache_bytes", tier="host") == 0
    assert len(made) >= 3
    gc.collect()
    assert [delta for delta in made if delta() is not None] == []


def test_the_disk_tier_takes_what_it_says(
    make_service: MakeService,
    publish_all: Callable[..., None],
    everything: list[DeltaFile],
    metric: Metric,
    tmp_path: Path,
) -> None:
    publish_all(everything)
    service = make_service(disk_bytes=sum(file.size for file in everything) - 1)
    ask_for_all(service, everything)
    files = list((tmp_path / "service" / "deltas").iterdir())
    assert len(files) == len(everything) - 1
    assert sum(path.stat().st_size for path in files) == metric(service, "ken_cache_bytes", tier="disk")


def test_a_heads_parameters_are_the_attached_tensors_themselves(
    make_service: MakeService,
    publish_all: Callable[..., None],
    everything: list[DeltaFile],
    deltas: Deltas,
    eventually: Callable[..., None],
) -> None:
    with_heads = [file for file in everything if file.manifest.head]
    publish_all(with_heads)
    service = make_service(materialised_bytes=1 << 30)
    ask_for_all(service, with_heads)
    ask_for_all(service, [deltas.spam], OFTEN)
    eventually(lambda: len(on_the_device(service, materialised=True)) == 1)
    base = of_the_base(service)
    for loaded in service.engine.tiers.held():
        outside = {
            name: tensor
            for name, tensor in loaded.model.whole.state_dict().items()
            if tensor.untyped_storage().data_ptr() not in base
        }
        assert loaded.attached.head
        assert {name: outside[name].data_ptr() for name in loaded.attached.head} == {
            name: tensor.data_ptr() for name, tensor in loaded.attached.head.items()
        }
        assert buffers(*outside.values()) == buffers(*loaded.attached.head.values())


# A budget with more at once than it holds


@contextmanager
def watching(figure: Callable[[], float]) -> Iterator[list[float]]:
    """What a figure was, all through it."""
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(figure())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="session")
def eight(tiny: Tiny) -> list[DeltaFile]:
    return [tiny.delta(tiny.tuned(f"of-eight-{n}", ["no", "yes"], seed=80 + n)) for n in range(8)]


def test_a_packed_tier_for_two_tasks_of_eight_asked_for_at_once_grows_by_one_more_at_most(
    eight: list[DeltaFile],
    make_service: MakeService,
    publish_all: Callable[..., None],
    dedicated: Dedicated,
) -> None:
    """One load may exceed the budget, and the active task stays, since a task that is waited for is never let go."""
    publish_all(eight)
    roomy = make_service(data_dir=eight[0].path.parent / "roomy")
    ask_for_all(roomy, eight)
    sizes = [loaded.nbytes for loaded in roomy.engine.tiers.held()]
    budget = 2 * min(sizes)
    service = make_service(packed_bytes=budget)
    asked = [(eight[n % 8], TEXTS[n % len(TEXTS)]) for n in range(40)]

    async def all_at_once() -> tuple[float, list[Prediction]]:
        with Blocked(service.engine), watching(lambda: service.engine.tiers.packed_nbytes) as seen:
            waiting = [asyncio.create_task(ask(service, file, text)) for file, text in asked]
            await until(lambda: service.engine.waiting >= 10)  # two tasks' requests: from here on tasks are in use
            await until(lambda: max(seen, default=0) >= budget)
            await asyncio.sleep(0.3)
        return max(seen), await asyncio.gather(*waiting)

    with watching(lambda: service.engine.tiers.packed_nbytes) as seen:
        before_any_was_active, answers = asyncio.run(all_at_once())
    assert budget <= before_any_was_active <= budget + max(sizes)
    assert max(seen) <= budget + 2 * max(sizes)
    for (file, text), answer in zip(asked, answers, strict=True):
        assert answer.digest == file.digest
        assert scores(answer.outputs[0]) == pytest.approx(dedicated(file, text), abs=1e-5)


# What is being attached counts from the moment its memory is taken


class Attaching:
    """Watches a service attach deltas: each time, what all that is attached takes, and what the tiers say it takes."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[int] = []
        self.said: list[int] = []
        self.seconds = 0.0
        """How long each attached delta is kept back, for others to be attached beside it."""
        self.failure: Exception | None = None
        self._service = service
        self._live: WeakSet[Attached] = WeakSet()
        self._attach = service.resident.attach
        monkeypatch.setattr(service.resident, "attach", self)

    def __call__(self, delta: Delta, **options: bool) -> Attached:
        attached = self._attach(delta, **options)
        self._live.add(attached)
        tiers = self._service.engine.tiers
        time.sleep(self.seconds)
        gc.collect()
        self.said.append(tiers.packed_nbytes + tiers.materialised_nbytes)
        self.taken.append(sum(buffers(*self._live).values()))
        if self.failure is not None:
            raise self.failure
        return attached


@pytest.fixture
def lora(tiny: Tiny) -> DeltaFile:
    """A delta with low-rank factors, whose expansion takes more bytes than they do."""
    delta = ken_core.extract(tiny.base, open_tuned(str(tiny.tuned("low-rank", ["no", "yes"], seed=73))))
    name = "encoder.layer.0.attention.self.query.weight"
    rows, columns = tiny.base.backbone_tensors[name].shape
    factors = LowRank(torch.randn(2, columns), torch.randn(rows, 2), 0.1)
    sparse = {n: entry for n, entry in delta.sparse.items() if n != name}
    return deltafile.write(
        replace(delta, sparse=sparse, lowrank={name: factors}), tiny.base, tiny.folder / "low-rank.ken"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_attaching_takes_is_known_before(
    dtype: str, make_service: MakeService, everything: list[DeltaFile], lora: DeltaFile
) -> None:
    resident = make_service(dtype=dtype).resident
    for file in (*everything, lora):
        delta = deltafile.load(file.path, resident.checkpoint)
        for materialised in (False, True):
            attached = resident.attach(delta, materialised=materialised)
            assert resident.bytes_to_attach(delta, materialised=materialised) == attached.nbytes > 0
            assert sum(buffers(attached).values()) == attached.nbytes


def test_a_delta_counts_in_its_tier_while_it_is_attached(
    make_service: MakeService,
    publish_all: Callable[..., None],
    everything: list[DeltaFile],
    lora: DeltaFile,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a request, on trial, with full tensors, and again after a failed exchange."""
    files = [*everything, lora]
    publish_all(files)
    service = make_service(mixed="off", materialised_bytes=1 << 30)
    attaching = Attaching(service, monkeypatch)
    ask_for_all(service, files)
    service.vetting.fitness.check(files[0].path)
    service.vetting.fitness.check(lora.path)
    ask_for_all(service, [files[1]], OFTEN)
    eventually(lambda: service.engine.tiers.tier_of(files[1].digest) == "materialised")
    renewed = next(loaded for loaded in service.engine.tiers.held() if loaded.digest == files[2].digest)
    service.engine.call(lambda: service.engine.tiers.renew(renewed)).result(20)
    assert len(attaching.taken) == len(files) + 4
    for taken, said in zip(attaching.taken, attaching.said, strict=True):
        assert 0 < taken <= said
    tiers = service.engine.tiers
    assert tiers.packed_nbytes + tiers.materialised_nbytes == sum(loaded.nbytes for loaded in tiers.held())


def test_two_loads_at_once_do_not_exceed_a_budget_together(
    eight: list[DeltaFile], make_service: MakeService, publish_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_all(eight)
    size = measured(make_service(mixed="off", data_dir=eight[0].path.parent / "measured"), eight[0])
    service = make_service(mixed="off", packed_bytes=size * 3 // 2)
    attaching = Attaching(service, monkeypatch)
    tiers = service.engine.tiers

    async def two_beside_one_that_is_held() -> None:
        held = await tiers.acquire(eight[0].digest)
        attaching.seconds = 0.2
        loading = [asyncio.create_task(tiers.acquire(file.digest)) for file in eight[1:3]]
        await asyncio.wait(loading, return_when=asyncio.FIRST_COMPLETED)
        done, waiting = await asyncio.wait(loading, timeout=1.0)
        assert (len(done), len(waiting)) == (1, 1)
        assert max(attaching.taken) == 2 * size
        tiers.release(held)
        tiers.release(done.pop().result())
        tiers.release(await waiting.pop())

    asyncio.run(two_beside_one_that_is_held())


def test_a_trial_beside_a_load_does_not_exceed_a_budget_together(
    eight: list[DeltaFile], make_service: MakeService, publish_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_all(eight)
    size = measured(make_service(mixed="off", data_dir=eight[0].path.parent / "measured"), eight[0])
    service = make_service(mixed="off", packed_bytes=size)
    attaching = Attaching(service, monkeypatch)
    attaching.seconds = 0.5

    async def load_without_running() -> None:
        service.engine.tiers.release(await service.engine.tiers.acquire(eight[0].digest))

    trial = threading.Thread(target=service.vetting.fitness.check, args=(eight[1].path,))
    trial.start()
    asyncio.run(load_without_running())
    trial.join()
    assert attaching.taken == [size, size]


def measured(service: Service, file: DeltaFile) -> int:
    """Bytes that a task takes in the packed tier."""
    ask_for_all(service, [file])
    return service.engine.tiers.packed_nbytes


def test_what_fails_while_it_is_attached_gives_its_bytes_back(
    service: Service, deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    attaching = Attaching(service, monkeypatch)
    attaching.failure = RuntimeError("out of memory")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            asyncio.run(ask(service, deltas.spam))
    with pytest.raises(RuntimeError, match="out of memory"):
        service.vetting.fitness.check(deltas.topic.path)
    assert min(attaching.said) > 0
    assert service.engine.tiers.packed_nbytes == 0
    assert service.engine.tiers.held() == []
    attaching.failure = None
    asyncio.run(ask(service, deltas.spam))
    (loaded,) = service.engine.tiers.held()
    assert service.engine.tiers.packed_nbytes == loaded.nbytes
