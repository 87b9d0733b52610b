"""Low-rank entries: expanded as they should be, written and read back, and refused where a file lies about them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from ken_core.bits import as_bits, same_bits
from ken_core.checkpoint import Checkpoint, open_base
from ken_core.delta import Delta, merge
from ken_core.deltafile import DeltaFile, open_file, read, write
from ken_core.entries import LowRank, expanded, overflows
from ken_core.errors import DeltaFormatError, ExchangeError
from ken_core.extraction import extract
from ken_core.fingerprint import fingerprint
from ken_core.heads import graft
from ken_core.kernels import Packed, exchange_for
from ken_core.resident import ResidentModel
from ken_core.viz.survey import survey

QUERY = "encoder.layer.0.attention.self.query.weight"
UP = "encoder.layer.1.intermediate.dense.weight"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def factors(rows: int, columns: int, rank: int, dtype: torch.dtype = torch.float32, scale: float = 0.5) -> LowRank:
    make = torch.Generator().manual_seed(rows + rank)
    a, b = torch.randn(rank, columns, generator=make), torch.randn(rows, rank, generator=make)
    return LowRank(a.to(dtype), b.to(dtype), scale)


@pytest.fixture(scope="module")
def delta(base: Checkpoint, tuned: Checkpoint) -> Delta:
    """A fine-tune's delta in which two matrices are shifted by factors instead."""
    extracted = extract(base, tuned)
    rest = {n: s for n, s in extracted.sparse.items() if n not in (QUERY, UP)}
    shifts = {QUERY: factors(32, 32, 3), UP: factors(64, 32, 2, torch.bfloat16, -1.5)}
    return dataclasses.replace(extracted, sparse=rest, lowrank=shifts, adapter="lora")


@pytest.fixture(scope="module")
def identity(base: Checkpoint) -> str:
    return fingerprint(base.backbone_tensors).digest


@pytest.fixture(scope="module", params=["zstd", "raw"])
def file(request: pytest.FixtureRequest, base: Checkpoint, delta: Delta, tmp_path_factory: Any) -> DeltaFile:
    return write(delta, base, tmp_path_factory.mktemp("lowrank") / "d.ken", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
def test_a_shift_is_multiplied_and_added_in_float32_at_least_and_rounded_once(dtype, base_dtype):
    entry = factors(6, 5, 2, dtype)
    tensor = torch.randn(6, 5).to(base_dtype)
    found = expanded(tensor, entry)
    wide = torch.float64 if base_dtype == torch.float64 else torch.float32
    assert found.dtype == base_dtype
    assert same_bits(found, (tensor.to(wide) + 0.5 * (entry.b.to(wide) @ entry.a.to(wide))).to(base_dtype))


def test_a_delta_with_factors_reads_back_the_same(base, delta, file, identity):
    found = read(open_file(file.path), base, identity)
    assert found.adapter == "lora"
    assert found.lowrank.keys() == delta.lowrank.keys()
    for name, entry in delta.lowrank.items():
        other = found.lowrank[name]
        assert same_bits(other.a, entry.a)
        assert same_bits(other.b, entry.b)
        assert (other.scale, other.shape, other.rank) == (entry.scale, entry.shape, entry.rank)
    assert found.nbytes == delta.nbytes
    assert delta.nbytes - dataclasses.replace(delta, lowrank={}).nbytes == 4 * 3 * (32 + 32) + 2 * 2 * (64 + 32)


def test_factors_take_the_files_lossless_codec_under_a_lossy_one(base, delta, identity, tmp_path):
    found = read(write(delta, base, tmp_path / "d", "int4"), base, identity)
    assert all(same_bits(found.lowrank[n].a, e.a) for n, e in delta.lowrank.items())


@pytest.mark.parametrize("materialised", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_resident_weights_are_the_merged_ones_and_reverted_the_bases(tiny_base, delta, dtype, materialised):
    resident = ResidentModel(open_base(str(tiny_base)), dtype=dtype)
    merged = merge(open_base(str(tiny_base)), delta)
    attached = resident.attach(delta, materialised=materialised)
    resident.activate(attached)
    found = dict(resident.backbone.named_parameters())
    assert all(same_bits(found[n].data, t.to(dtype or t.dtype)) for n, t in merged.items())
    assert resident.verify() == []
    assert {QUERY, UP} <= set(attached.whole)


def test_a_failed_exchange_restores_the_shifted_matrices_too(tiny_base, delta):
    def fail_on_the_way_out(weights: torch.Tensor, packed: Packed) -> None:
        if resident.active is None and leaving:
            raise RuntimeError("a kernel failed")
        exchange_for(weights.device, weights.dtype)(weights, packed)

    leaving: list[bool] = []
    resident = ResidentModel(
        open_base(str(tiny_base)), exchange_factory=lambda device, dtype: fail_on_the_way_out, switch_factory=None
    )
    resident.activate(resident.attach(delta))
    leaving.append(True)
    with pytest.raises(ExchangeError, match="the base was restored"):
        resident.revert()
    assert resident.verify() == []


def test_one_delta_with_factors_follows_another(tiny_base, delta):
    resident = ResidentModel(open_base(str(tiny_base)))
    less = dataclasses.replace(delta, lowrank={UP: delta.lowrank[UP]})
    first, second = resident.attach(delta), resident.attach(less, materialised=True)
    for attached, expected in ((first, delta), (second, less), (first, delta)):
        resident.activate(attached)
        merged = merge(open_base(str(tiny_base)), expected)
        found = dict(resident.backbone.named_parameters())
        assert all(same_bits(found[n].data, t) for n, t in merged.items())
    assert resident.verify() == []


def test_a_grafted_model_answers_with_the_shift_while_it_is_active(tiny_base, delta, batch):
    resident = ResidentModel(open_base(str(tiny_base)))
    attached = resident.attach(dataclasses.replace(delta, sparse={}))
    model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
    with torch.no_grad():
        before = model(**batch).logits
        resident.activate(attached)
        during = model(**batch).logits
        resident.revert()
        after = model(**batch).logits
    assert not torch.allclose(before, during, atol=1e-3)
    assert same_bits(before, after)


def test_a_picture_counts_a_shifted_matrix_as_changed_in_full(base, delta):
    shapes = {n: tuple(t.shape) for n, t in base.backbone_tensors.items()}
    found = survey(delta, shapes, [QUERY], [QUERY, UP])
    assert set(found.whole) == {QUERY, UP}
    assert found.tallies[QUERY].kept == found.tallies[QUERY].elements == 32 * 32
    assert not {QUERY, UP} & {*found.single, *found.layered, *found.packed}


# lies


Manifest = dict[str, Any]
Streams = dict[str, np.ndarray]


@pytest.fixture
def rewritten(file, tmp_path) -> Callable[[Callable[[Manifest, Streams], object]], Path]:
    """``rewritten(edit)``: the file with its manifest and streams changed, digests of changed streams corrected."""

    def rewrite(edit: Callable[[Manifest, Streams], object]) -> Path:
        with safe_open(file.path, "np") as container:
            manifest = json.loads(container.metadata()["ken"])
            streams = {name: container.get_tensor(name).copy() for name in container.keys()}  # noqa: SIM118
        before = dict(streams)
        edit(manifest, streams)
        for name in before.keys() & streams.keys():
            if streams[name] is not before[name]:
                data, (_, tensor, part) = streams[name], name.split("/")
                digest = hashlib.sha256(data.tobytes()).hexdigest()
                manifest["lowrank"][tensor][part].update(bytes=data.size, sha256=digest)
        save_file(streams, tmp_path / "edited", {"ken": json.dumps(manifest)})
        return tmp_path / "edited"

    return rewrite


@pytest.fixture
def attempt(base, identity) -> Callable[[Path], Delta]:
    return lambda path: read(open_file(path), base, identity)


def entry(**changes: Any) -> Callable[[Manifest, Streams], None]:
    return lambda manifest, streams: manifest["lowrank"][QUERY].update(changes)


def encoded(manifest: Manifest, tensor: torch.Tensor) -> np.ndarray:
    plain = as_bits(tensor).view(np.uint8)
    if manifest["codec"] == "raw":
        return plain.copy()
    planes = np.ascontiguousarray(plain.reshape(-1, tensor.itemsize).T)
    return np.frombuffer(zstandard.ZstdCompressor().compress(planes.tobytes()), np.uint8)


def factor(tensor: torch.Tensor, which: str = "a") -> Callable[[Manifest, Streams], None]:
    def replace(manifest: Manifest, streams: Streams) -> None:
        streams[f"lowrank/{QUERY}/{which}"] = encoded(manifest, tensor)

    return replace


def to_name(name: str) -> Callable[[Manifest, Streams], None]:
    def rename(manifest: Manifest, streams: Streams) -> None:
        manifest["lowrank"][name] = manifest["lowrank"].pop(QUERY)
        for part in "ab":
            streams[f"lowrank/{name}/{part}"] = streams.pop(f"lowrank/{QUERY}/{part}")

    return rename


LIES: dict[str, Callable[[Manifest, Streams], object]] = {
    "a transposed shape of another matrix": entry(shape=[64, 32]),
    "a huge shape": entry(shape=[1 << 39, 1 << 39]),
    "an empty shape": entry(shape=[0, 32]),
    "a shape of one axis": entry(shape=[32]),
    "a shape of three axes": entry(shape=[32, 32, 1]),
    "a smaller rank": entry(rank=2),
    "a larger rank": entry(rank=4),
    "a rank above the matrix's": entry(rank=33),
    "a huge rank": entry(rank=(1 << 40) - 1),
    "no rank": entry(rank=0),
    "a negative rank": entry(rank=-3),
    "a scale of NaN": entry(scale=float("nan")),
    "an infinite scale": entry(scale=float("inf")),
    "a scale that overflows": entry(scale=1e38),
    "a scale that is no number": entry(scale="large"),
    "a narrower dtype": entry(dtype="bfloat16"),
    "a wider dtype": entry(dtype="float64"),
    "a dtype that is no float": entry(dtype="int32"),
    "the other codec": lambda m, s: m["lowrank"][QUERY].update(codec="raw" if m["codec"] == "zstd" else "zstd"),
    "a lossy codec": entry(codec="int8"),
    "an unknown key": entry(surprise=1),
    "no codec": lambda m, s: m["lowrank"][QUERY].pop("codec"),
    "no scale": lambda m, s: m["lowrank"][QUERY].pop("scale"),
    "a sha256": lambda m, s: m["lowrank"][QUERY]["b"].update(sha256="0" * 64),
    "a length": lambda m, s: m["lowrank"][QUERY]["b"].update(bytes=1 << 39),
    "swapped factors": lambda m, s: s.update(
        {f"lowrank/{UP}/a": s[f"lowrank/{UP}/b"].copy(), f"lowrank/{UP}/b": s[f"lowrank/{UP}/a"].copy()}
    ),
    "a missing factor": lambda m, s: s.pop(f"lowrank/{QUERY}/a"),
    "a third factor": lambda m, s: s.update({f"lowrank/{QUERY}/c": np.zeros(4, np.uint8)}),
    "NaN in a factor": factor(torch.full((3, 32), float("nan"))),
    "infinity in a factor": factor(torch.full((32, 3), -float("inf")), "b"),
    "factors whose product overflows": lambda m, s: (
        factor(torch.full((3, 32), 1e30))(m, s),
        factor(torch.full((32, 3), 1e30), "b")(m, s),
    ),
    "a shorter factor": factor(torch.ones(2, 32)),
    "a longer factor": factor(torch.ones(300, 32)),
    "a name the base does not have": to_name("encoder.layer.9.weight"),
    "a name of a vector": to_name("encoder.layer.0.attention.self.query.bias"),
    "a name with a sparse entry": to_name("encoder.layer.0.attention.self.key.weight"),
    "a name with a slash": to_name("encoder/weight"),
    "an unknown adapter": lambda m, s: m.update(adapter="ia3"),
    "entries that are no table": lambda m, s: m.update(lowrank=[1]),
    "an unread codec of the file": lambda m, s: m.update(codec="none"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_about_factors_is_refused(rewritten, attempt, lie):
    with pytest.raises(DeltaFormatError):
        attempt(rewritten(LIES[lie]))


def test_the_mere_rewrite_of_the_file_is_read(rewritten, attempt):
    assert set(attempt(rewritten(lambda manifest, streams: None)).lowrank) == {QUERY, UP}


def test_a_decompression_bomb_among_the_factors_is_refused_by_the_size_it_claims(base, delta, identity, tmp_path):
    file = write(delta, base, tmp_path / "d", "zstd")
    with safe_open(file.path, "np") as container:
        manifest = json.loads(container.metadata()["ken"])
        streams = {name: container.get_tensor(name) for name in container.keys()}  # noqa: SIM118
    bomb = np.frombuffer(zstandard.ZstdCompressor().compress(bytes(50_000_000)), np.uint8)
    streams[f"lowrank/{QUERY}/a"] = bomb
    manifest["lowrank"][QUERY]["a"] = {"bytes": bomb.size, "sha256": hashlib.sha256(bomb.tobytes()).hexdigest()}
    save_file(streams, tmp_path / "bomb", {"ken": json.dumps(manifest)})
    with pytest.raises(DeltaFormatError, match="claims 50000000 bytes, expected 384"):
        read(open_file(tmp_path / "bomb"), base, identity)


powers = st.floats(-40, 40).map(lambda p: 10.0**p)


@given(sizes=st.tuples(powers, powers, powers, powers), dtype=st.sampled_from(DTYPES))
def test_what_is_said_not_to_overflow_does_not(sizes, dtype):
    made = factors(5, 4, 3)
    found = LowRank(made.a * sizes[0], made.b * sizes[1], sizes[2])
    tensor = (torch.randn(5, 4).double() * sizes[3]).clamp(-6e4, 6e4).to(dtype)
    assert overflows(tensor, found) or expanded(tensor, found).isfinite().all()


def test_what_is_far_from_the_largest_number_is_not_said_to_overflow():
    for dtype in DTYPES:
        assert not overflows(torch.randn(5, 4).to(dtype), factors(5, 4, 3))
