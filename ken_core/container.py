"""The delta file's container, a ``.safetensors`` file with the manifest in ``__metadata__["ken"]``, and its opening.

Tensors are byte streams named ``sparse/<tensor>/mask``, ``sparse/<tensor>/values``, ``lowrank/<tensor>/a``,
``lowrank/<tensor>/b``, ``dense/<tensor>``, ``head/<tensor>``, ``projections/<tensor>`` and ``files/<name>``. The file
may be hostile: every number is checked against its size before anything of that size is allocated. Opening needs no
base and no torch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ken_core import manifest as m
from ken_core.errors import DeltaFormatError
from ken_core.foreign import reading
from ken_core.foreign_json import parse

MAX_HEADER_BYTES = 16 << 20
_MOST_VALUES = 1 << 20
"""JSON values in a manifest. A parsed value takes up to 100 bytes, and a tensor has 20 values."""


@dataclass(frozen=True)
class DeltaFile:
    """An opened delta file. Its manifest is checked; its streams are not decoded yet.

    Attributes:
        size: bytes of the whole file.
        digest: sha256 of the whole file, which is the delta's name in the store.
        name: what messages call the file.
    """

    path: Path
    manifest: m.Manifest
    size: int
    digest: str
    name: str = "the delta file"


def open_file(path: Path, digest: str | None = None, name: str | None = None) -> DeltaFile:
    """Open a delta file, and check everything that can be checked without its base.

    Args:
        digest: the file's sha256, if the caller has just computed it.
        name: what messages call the file; by default the last part of its path.

    Raises:
        DeltaFormatError: the file is truncated, altered, too large, or contradicts itself; the message says which.
    """
    name = name or path.name
    size = _check_container(path, name)
    with reading(name):
        text, lengths, dtypes = _read_header(path, name)
    if text is None:
        raise DeltaFormatError(f"{name} is a safetensors file but no delta: it has no 'ken' metadata")
    if dtypes - {"U8"}:
        raise DeltaFormatError(f"{name} holds streams of type {sorted(dtypes)}; expected bytes (U8) only")
    with reading(name):
        described = _parse_manifest(name, text)
        _check_streams(name, described, lengths)
    return DeltaFile(path, described, size, digest or _sha256(path), name)


def _read_header(path: Path, name: str) -> tuple[str | None, dict[str, list[int]], set[str]]:
    """The manifest's text, the shapes of all streams by name, and the set of their dtypes."""
    try:
        with safe_open(path, "np") as container:
            text = (container.metadata() or {}).get("ken")
            lengths = {n: container.get_slice(n).get_shape() for n in container.keys()}  # noqa: SIM118
            return text, lengths, {container.get_slice(n).get_dtype() for n in lengths}
    except SafetensorError as error:
        raise DeltaFormatError(f"{name} is no intact safetensors file: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_container(path: Path, name: str) -> int:
    """Check that the safetensors header is complete and not too large; the size of the file in bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise DeltaFormatError(f"{path} cannot be read: {error.strerror}") from error
    if len(head) < 8:
        raise DeltaFormatError(f"{name} is {size} bytes long; a delta file starts with an 8-byte header length")
    (length,) = struct.unpack("<Q", head)
    if length > MAX_HEADER_BYTES:
        raise DeltaFormatError(
            f"{name} is no delta file: it would begin with a header of {length} bytes, and at most "
            f"{MAX_HEADER_BYTES} are allowed; give a file that `ken extract` wrote"
        )
    if 8 + length > size:
        raise DeltaFormatError(f"{name} is truncated: its header claims {length} bytes, the file has {size}")
    return size


def _parse_manifest(name: str, text: str) -> m.Manifest:
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise DeltaFormatError(f"{name}: the manifest holds more than {_MOST_VALUES} values")
    try:
        plain = parse(text)
    except (ValueError, RecursionError) as error:
        raise DeltaFormatError(f"{name}: the manifest cannot be read as JSON: {error}") from error
    found = plain.get("format") if isinstance(plain, dict) else None
    if found not in m.READABLE_VERSIONS:
        readable = " or ".join(str(v) for v in m.READABLE_VERSIONS)
        raise DeltaFormatError(f"{name} has format version {found!r}; this reader knows {readable}")
    try:
        return m.Manifest.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeltaFormatError(f"{name}: the manifest's {where or 'JSON'}: {first['msg']}") from error


def _expected_streams(described: m.Manifest) -> dict[str, m.Stream]:
    expected: dict[str, m.Stream] = {}
    for name, entry in described.sparse.items():
        expected[f"sparse/{name}/mask"] = entry.mask
        expected[f"sparse/{name}/values"] = entry.values
    for name, factors in described.lowrank.items():
        expected |= {f"lowrank/{name}/a": factors.a, f"lowrank/{name}/b": factors.b}
    for part, entries in described.whole.items():
        expected |= {f"{part}/{name}": whole.data for name, whole in entries.items()}
    return expected | {f"files/{name}": stream for name, stream in described.files.items()}


def _check_streams(file: str, described: m.Manifest, lengths: Mapping[str, list[int]]) -> None:
    expected = _expected_streams(described)
    if odd := sorted(set(expected) ^ set(lengths)):
        raise DeltaFormatError(f"{file}: manifest and container disagree about stream {odd[0]!r}")
    for name, stream in expected.items():
        if lengths[name] != [stream.bytes]:
            raise DeltaFormatError(f"{file}: stream {name!r} has shape {lengths[name]}, expected [{stream.bytes}]")
    for name, nbytes in _raw_bytes(described).items():
        if nbytes != expected[name].bytes:
            raise DeltaFormatError(
                f"{file}: {name!r} needs {nbytes} bytes by its shape, the file holds {expected[name].bytes}"
            )


def _raw_bytes(described: m.Manifest) -> dict[str, int]:
    """The bytes that the streams of uncompressed tensors must have by their shapes."""
    whole = described.whole.items()
    needed = {f"{part}/{n}": e.nbytes for part, entries in whole for n, e in entries.items() if e.codec == "raw"}
    for name, entry in described.lowrank.items():
        if entry.codec == "raw":
            needed |= {f"lowrank/{name}/{factor}": nbytes for factor, nbytes in entry.nbytes.items()}
    return needed
