"""The delta file, written and decoded. `ken_core.container` says what it holds, and opens it.

A reader treats the file as hostile: what its container cannot show to be wrong is checked here against the base's own
shapes, before anything of a claimed size is allocated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from safetensors import safe_open
from safetensors.numpy import save_file

from ken_core import manifest as m
from ken_core.bits import as_bits, from_bits, pack_mask, take
from ken_core.blocks import is_finite, workers
from ken_core.checkpoint import Checkpoint
from ken_core.claims import check_claims
from ken_core.codec import decode_values, decode_whole, encode_values, encode_whole
from ken_core.codings import CODE_BITS, CODECS, Codec, FactorCodec
from ken_core.compression import Bytes, compress, decompress
from ken_core.configs import check_config, restore
from ken_core.container import MAX_HEADER_BYTES, DeltaFile, open_file
from ken_core.delta import Delta, check_base
from ken_core.entries import LowRank, Sparse, overflows
from ken_core.errors import DeltaFormatError, SelectionError
from ken_core.factor_codec import decode_components, encode_components
from ken_core.fingerprint import dtype_name
from ken_core.foreign import reading
from ken_core.foreign_tokenizer import check_content
from ken_core.positions import decode_positions, encode_positions
from ken_core.progress import Progress, Stage, silent
from ken_core.selection import Budget, Selection
from ken_core.tensor_filter import EVERYTHING, TensorFilter
from ken_core.version import __version__
from ken_core.writing import new_file

__all__ = ["CODECS", "MAX_HEADER_BYTES", "DeltaFile", "load", "open_file", "read", "read_masks", "warm", "write"]


@contextmanager
def _describing() -> Iterator[None]:
    """Turn errors about what a manifest cannot hold into `DeltaFormatError`s."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeltaFormatError(f"this delta cannot be written: {where or 'its manifest'}: {first['msg']}") from error
    except PydanticSerializationError as error:
        raise DeltaFormatError(f"this delta cannot be written: its config is no JSON: {error}") from error


@_describing()
def write(
    delta: Delta,
    base: Checkpoint,
    path: Path,
    codec: Codec = "zstd",
    *,
    calibration: m.Calibration | None = None,
    progress: Progress = silent,
) -> DeltaFile:
    """Write a delta; a reader sees the whole file or none. The same inputs give the same bytes.

    Args:
        calibration: how the budget was chosen, to be recorded in the manifest.
        progress: is told which tensor is being encoded.

    Returns:
        The file, read back and checked.

    Raises:
        CheckpointChangedError: the base's file was written to after it was opened.
        OutputError: the file cannot be written.
        DeltaFormatError: the delta holds something that a delta file cannot express.
    """
    streams: dict[str, Bytes] = {}
    sparse = {}
    with base.unchanged():
        for done, (name, entry) in enumerate(delta.sparse.items()):
            progress(Stage("encoding", name, done, len(delta.sparse)))
            sparse[name] = _write_sparse(name, entry, base, codec, streams)
    stored_as = codec_of_factors(delta, codec)
    lowrank = {name: _write_lowrank(name, entry, stored_as, streams) for name, entry in delta.lowrank.items()}
    dense = {name: _write_whole(f"dense/{name}", t, codec, streams) for name, t in delta.dense.items()}
    head = {name: _write_whole(f"head/{name}", t, codec, streams) for name, t in delta.head.items()}
    projections = {n: _write_whole(f"projections/{n}", t, codec, streams) for n, t in delta.projections.items()}
    files = {name: _write_file(name, data, codec, streams) for name, data in delta.files.items()}
    budget, tensors = delta.selection.budget, delta.selection.tensors
    described = m.Manifest(
        format=m.FORMAT_VERSION,
        creator=f"ken-serve {__version__}",
        base=m.Base(name=delta.base_name, fingerprint=delta.base_fingerprint),
        architecture=delta.architecture,
        kind=delta.kind,
        method=delta.selection.method,
        budget=m.Budget(**asdict(budget)),
        seed=delta.selection.seed,
        tensors=None if tensors == EVERYTHING else m.Tensors(**asdict(tensors)),
        codec=codec,
        calibration=calibration,
        adapter=delta.adapter,
        fitted=delta.fitted,
        distilled=delta.distilled,
        merged=delta.merged,
        candidates=delta.candidates,
        backbone=delta.backbone_parameters,
        config=dict(delta.config),
        embedding=delta.embedding,
        generation=None if delta.generation is None else dict(delta.generation),
        sparse=sparse,
        lowrank=lowrank,
        dense=dense,
        head=head,
        projections=projections,
        files=files,  # type: ignore[arg-type]  # keys are checked by the model
    )
    text = json.dumps(described.plain(), sort_keys=True, separators=(",", ":"))
    with new_file(path) as partial:
        save_file(streams, partial, {"ken": text})
    return open_file(path)


def load(path: Path | str, base: Checkpoint) -> Delta:
    """Open a delta file, check it and decode it against its base.

    Raises:
        DeltaFormatError, BaseMismatchError, ConfigMismatchError, CheckpointChangedError: as `open_file` and `read`.
    """
    return read(open_file(Path(path)), base, base.identity.digest)


def read(file: DeltaFile, base: Checkpoint, base_fingerprint: str, threads: int | None = None) -> Delta:
    """Decode a delta against its base.

    Args:
        base_fingerprint: the base's fingerprint, which the caller computes once.
        threads: number of threads to decode on; by default as many as torch may use.

    Raises:
        BaseMismatchError: the delta was made against another base.
        ConfigMismatchError: the delta's backbone computes something else than the base's.
        DeltaFormatError: the manifest claims what the base or the head cannot have, or a stream contradicts it.
        CheckpointChangedError: the base's file was written to after it was opened.
    """
    with reading(file.name):
        return _read(file, base, base_fingerprint, threads)


def _read(file: DeltaFile, base: Checkpoint, base_fingerprint: str, threads: int | None) -> Delta:
    """Compare the manifest with the base and with the head's own shapes, then read the streams."""
    described = file.manifest
    selection = _selection(described)
    shell = Delta(
        base_name=described.base.name,
        base_fingerprint=described.base.fingerprint,
        architecture=described.architecture,
        selection=selection,
        candidates=described.candidates,
        backbone_parameters=described.backbone_parameters,
        config=described.config,
        embedding=described.embedding,
        generation=described.generation,
        adapter=described.adapter,
        fitted=described.fitted,
        distilled=described.distilled,
        merged=described.merged,
        sparse={},
        dense={},
        head={},
    )
    check_base(shell, base_fingerprint, base.folder.name)
    ours = base.backbone_tensors
    config = restore(described.config, base.config)
    resized = any(n in ours for n in described.dense)
    check_config(base.config, config, resized=resized)
    vocabulary = check_claims(described, base, config)
    with base.unchanged(), safe_open(file.path, "np") as container:

        def stream(name: str, expected: m.Stream) -> Bytes:
            return _stream(container, name, expected, file.name)

        def encoded(name: str) -> _Encoded:
            entry = described.sparse[name]
            mask = stream(f"sparse/{name}/mask", entry.mask)
            values = stream(f"sparse/{name}/values", entry.values)
            return _Encoded(name, entry, mask, values, ours[name], described.codec)

        with workers(threads) as in_order:
            sparse = dict(zip(described.sparse, in_order(_read_sparse, map(encoded, described.sparse)), strict=True))
        lowrank = {}
        for name, factors in described.lowrank.items():
            a, b = (stream(f"lowrank/{name}/{part}", s) for part, s in (("a", factors.a), ("b", factors.b)))
            lowrank[name] = _read_lowrank(name, factors, a, b, ours[name])
        dense = {n: _read_whole(n, e, stream(f"dense/{n}", e.data)) for n, e in described.dense.items()}
        head = {n: _read_whole(n, e, stream(f"head/{n}", e.data)) for n, e in described.head.items()}
        projections = {
            n: _read_whole(n, e, stream(f"projections/{n}", e.data)) for n, e in described.projections.items()
        }
        files = {str(n): _read_file(n, e, stream(f"files/{n}", e)) for n, e in described.files.items()}
    for carried, content in files.items():
        check_content(carried, content, vocabulary)
    parts = {"sparse": sparse, "lowrank": lowrank, "dense": dense, "head": head, "files": files}
    parts["projections"] = projections
    return Delta(**{**shell.__dict__, **parts})


def warm(dtypes: Collection[torch.dtype]) -> None:
    """Compile the code that decodes values of these dtypes, or load it from numba's cache, before a delta needs it."""
    masks = (np.arange(512) % every == 0 for every in (2, 100))  # one stored as a bitmap, one as gaps
    for mask in masks:
        stream, coding = encode_positions(pack_mask(mask), mask.size, compressed=True)
        packed = decode_positions(stream, mask.size, int(mask.sum()), coding, compressed=True)
        for dtype in dtypes:
            base = take(as_bits(torch.ones(mask.size, dtype=dtype)), packed, int(mask.sum()))
            for codec in CODECS:
                decode_values(encode_values(base + 1, base, dtype, codec), base, dtype, codec)


def _add(name: str, data: Bytes, streams: dict[str, Bytes]) -> m.Stream:
    streams[name] = np.ascontiguousarray(data)
    return m.Stream(bytes=data.size, sha256=hashlib.sha256(streams[name].data).hexdigest())


def _write_sparse(name: str, entry: Sparse, base: Checkpoint, codec: Codec, streams: dict[str, Bytes]) -> m.SparseEntry:
    ours = take(as_bits(base.backbone_tensors[name]), entry.positions, entry.values.size)
    numel = base.backbone_tensors[name].numel()
    mask, coding = encode_positions(entry.positions, numel, compressed=codec != "raw")
    return m.SparseEntry(
        shape=entry.shape,
        dtype=dtype_name(entry.dtype),  # type: ignore[arg-type]  # checked by the model
        selected=entry.selected,
        stored=entry.values.size,
        mask=_add(f"sparse/{name}/mask", mask, streams),
        mask_coding=coding,
        values=_add(f"sparse/{name}/values", encode_values(entry.values, ours, entry.dtype, codec), streams),
    )


def codec_of_factors(delta: Delta, codec: Codec) -> FactorCodec:
    """How factors are stored: an adapter's as they are, those of a decomposition as the values beside them."""
    if delta.selection.method == "svd" and codec in ("int8", "int4"):
        return codec
    return "raw" if codec == "raw" else "zstd"


def _write_lowrank(name: str, entry: LowRank, codec: FactorCodec, streams: dict[str, Bytes]) -> m.LowRankEntry:
    a, b = (_add(f"lowrank/{name}/{part}", _encode_factor(entry, part, codec), streams) for part in ("a", "b"))
    return m.LowRankEntry(
        shape=entry.shape,
        rank=entry.rank,
        scale=entry.scale,
        dtype="float32" if codec in CODE_BITS else dtype_name(entry.a.dtype),  # type: ignore[arg-type]  # checked
        a=a,
        b=b,
        codec=codec,
    )


def _encode_factor(entry: LowRank, part: Literal["a", "b"], codec: FactorCodec) -> Bytes:
    factor = entry.a if part == "a" else entry.b
    if codec not in CODE_BITS:
        return encode_whole(as_bits(factor), codec)
    components = factor if part == "a" else factor.T
    return encode_components(components.float().numpy(), CODE_BITS[codec])


def _write_whole(key: str, tensor: torch.Tensor, codec: Codec, streams: dict[str, Bytes]) -> m.WholeEntry:
    data = encode_whole(as_bits(tensor), codec)
    return m.WholeEntry(
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),  # type: ignore[arg-type]  # checked by the model
        data=_add(key, data, streams),
        codec="raw" if codec == "raw" else "zstd",
    )


def read_masks(file: DeltaFile, names: Iterable[str]) -> Iterator[Bytes]:
    """The packed masks of sparse tensors, one after another, without their values.

    The caller has compared the entries' shapes with the base's: a mask is as large as the manifest claims.

    Raises:
        DeltaFormatError: a stream contradicts the manifest.
    """
    compressed = file.manifest.codec != "raw"
    with reading(file.name), safe_open(file.path, "np") as container:
        for name in names:
            entry = file.manifest.sparse[name]
            stream = _stream(container, f"sparse/{name}/mask", entry.mask, file.name)
            yield decode_positions(stream, prod(entry.shape), entry.stored, entry.mask_coding, compressed=compressed)


def _stream(container: Any, name: str, expected: m.Stream, file: str) -> Bytes:
    data: Bytes = container.get_tensor(name)
    if hashlib.sha256(data.data).hexdigest() != expected.sha256:
        raise DeltaFormatError(f"{file}: stream {name!r} does not have the sha256 it should")
    return data


def _write_file(name: str, data: bytes, codec: Codec, streams: dict[str, Bytes]) -> m.FileEntry:
    plain = np.frombuffer(data, np.uint8)
    packed = plain if codec == "raw" else compress(plain)
    if not packed.size < plain.size <= min(m.MAX_FILE_BYTES, m.MAX_FILE_RATIO * packed.size):
        return m.FileEntry(**_add(f"files/{name}", plain, streams).model_dump())
    return m.FileEntry(**_add(f"files/{name}", packed, streams).model_dump(), plain=plain.size)


@dataclass(frozen=True)
class _Encoded:
    """A sparse entry's streams, and the base's tensor that they are decoded against."""

    name: str
    entry: m.SparseEntry
    mask: Bytes
    values: Bytes
    base: torch.Tensor
    codec: Codec


def _read_sparse(found: _Encoded) -> Sparse:
    entry, dtype, numel = found.entry, found.base.dtype, found.base.numel()
    compressed = found.codec != "raw"
    try:
        packed = decode_positions(found.mask, numel, entry.stored, entry.mask_coding, compressed=compressed)
        decoded = decode_values(found.values, take(as_bits(found.base), packed, entry.stored), dtype, found.codec)
    except DeltaFormatError as error:
        raise DeltaFormatError(f"the delta's {found.name!r}: {error}") from error
    if not is_finite(from_bits(decoded, dtype)):
        raise DeltaFormatError(f"the delta's values of {found.name!r} hold NaN or infinity")
    return Sparse(entry.shape, dtype, entry.selected, packed, decoded)


def _read_lowrank(name: str, entry: m.LowRankEntry, a: Bytes, b: Bytes, base: torch.Tensor) -> LowRank:
    rows, columns = entry.shape
    if entry.codec == "int8" or entry.codec == "int4":
        bits = CODE_BITS[entry.codec]
        left, right = (decode_components(data, entry.rank, n, bits) for data, n in ((a, columns), (b, rows)))
        read = LowRank(torch.from_numpy(left), torch.from_numpy(right).T.contiguous(), entry.scale, bits)
    else:
        read = LowRank(
            _read_tensor(name, (entry.rank, columns), entry.dtype, a, entry.codec),
            _read_tensor(name, (rows, entry.rank), entry.dtype, b, entry.codec),
            entry.scale,
        )
    if overflows(base, read):
        raise DeltaFormatError(f"the delta's shift of {name!r} is too large for {dtype_name(base.dtype)}")
    return read


def _read_whole(name: str, entry: m.WholeEntry, data: Bytes) -> torch.Tensor:
    return _read_tensor(name, entry.shape, entry.dtype, data, entry.codec)


def _read_file(name: str, entry: m.FileEntry, data: Bytes) -> bytes:
    if entry.plain is None:
        return data.tobytes()
    try:
        return decompress(data, entry.plain).tobytes()
    except DeltaFormatError as error:
        raise DeltaFormatError(f"the delta's {name}: {error}") from error


def _read_tensor(name: str, shape: tuple[int, ...], stored: str, data: Bytes, codec: Codec) -> torch.Tensor:
    dtype = _dtype(stored)
    try:
        whole = decode_whole(data, prod(shape) * dtype.itemsize, dtype.itemsize, codec)
    except DeltaFormatError as error:
        raise DeltaFormatError(f"the delta's {name!r}: {error}") from error
    tensor = torch.frombuffer(bytearray(whole), dtype=dtype).reshape(shape)
    if not is_finite(tensor):
        raise DeltaFormatError(f"the delta's tensor {name!r} holds NaN or infinity")
    return tensor


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _selection(described: m.Manifest) -> Selection:
    budget = described.budget
    try:
        return Selection(
            described.method,  # type: ignore[arg-type]  # checked by the constructor
            Budget(**budget.model_dump()),
            described.seed,
            EVERYTHING if described.tensors is None else TensorFilter(**described.tensors.model_dump()),
        )
    except SelectionError as error:
        raise DeltaFormatError(f"the delta's method or budget: {error}") from error
