"""What a delta file holds, as plain data that can be written as JSON."""

from __future__ import annotations

import os
from typing import Any


def facts(file: Any) -> dict[str, Any]:
    """What the manifest of a `ken_core.DeltaFile` says, and how its bytes are divided. Plain data, fit for JSON."""
    m = file.manifest
    return {
        # a file name may be any bytes, and JSON holds UTF-8 only
        "file": os.fsencode(file.path).decode("utf-8", "replace"),
        "digest": file.digest,
        "bytes": file.size,
        "base": m.base.name,
        "fingerprint": m.base.fingerprint,
        "architecture": m.architecture,
        "kind": m.kind,
        "labels": m.labels,
        "adapter": m.adapter,
        "embedding": None if m.embedding is None else m.embedding.model_dump(),
        "generation": m.generation,
        "tokenizer": _tokenizer(m),
        "method": m.method,
        "budget": m.budget.model_dump(exclude_none=True),
        "only": None if m.tensors is None else m.tensors.model_dump(),
        "codec": m.codec,
        "fitted": m.fitted,
        "distilled": None if m.distilled is None else m.distilled.model_dump(),
        "merged": None if m.merged is None else m.merged.model_dump(),
        "candidates": m.candidates,
        "selected": m.selected,
        "stored": m.stored,
        "tensors": sum(map(len, (m.sparse, m.lowrank, m.dense, m.head, m.projections))),
        "lowrank": _lowrank(m),
        "bytes_by_part": _by_part(file),
        "calibration": None if m.calibration is None else m.calibration.model_dump(exclude={"tried"}),
    }


def _tokenizer(m: Any) -> str:
    """Which tokenizer the task uses: ``base``, ``own settings`` (with the base's vocabulary), or ``own``."""
    if not m.files:
        return "base"
    return "own" if "tokenizer.json" in m.files else "own settings"


def _lowrank(m: Any) -> dict[str, int] | None:
    """The number of low-rank tensors, their ranks, and the number of parameters in their factors."""
    if not m.lowrank:
        return None
    ranks = [e.rank for e in m.lowrank.values()]
    return {
        "tensors": len(ranks),
        "least_rank": min(ranks),
        "most_rank": max(ranks),
        "parameters": sum(e.parameters for e in m.lowrank.values()),
    }


def _by_part(file: Any) -> dict[str, int]:
    """Bytes of each part of the file. They add up to the file's size."""
    m = file.manifest
    parts: dict[str, int] = {}
    for entry in m.sparse.values():
        mask = f"masks, {entry.mask_coding}"
        parts[mask] = parts.get(mask, 0) + entry.mask.bytes
        parts[f"values, {m.codec}"] = parts.get(f"values, {m.codec}", 0) + entry.values.bytes
    for entry in m.lowrank.values():
        key = f"factors, {entry.codec}"
        parts[key] = parts.get(key, 0) + entry.a.bytes + entry.b.bytes
    for name, whole in (("whole tensors", m.dense), ("head", m.head), ("projections", m.projections)):
        for entry in whole.values():
            parts[f"{name}, {entry.codec}"] = parts.get(f"{name}, {entry.codec}", 0) + entry.data.bytes
    if m.files:
        parts["tokenizer"] = sum(stream.bytes for stream in m.files.values())
    return {**parts, "manifest": file.size - sum(parts.values())}


def per_tensor(file: Any) -> list[dict[str, Any]]:
    """One row for each tensor: the kind of its entry, its codecs and its bytes. Plain data, fit for JSON."""
    m = file.manifest
    rows = [
        {
            "tensor": n,
            "entry": "sparse",
            "stored": e.stored,
            "mask": e.mask_coding,
            "mask_bytes": e.mask.bytes,
            "values": m.codec,
            "value_bytes": e.values.bytes,
            "bytes": e.mask.bytes + e.values.bytes,
        }
        for n, e in m.sparse.items()
    ]
    rows += [_whole_row(n, "lowrank", e.parameters, e.codec, e.a.bytes + e.b.bytes) for n, e in m.lowrank.items()]
    for entry, whole in (("dense", m.dense), ("head", m.head), ("projection", m.projections)):
        rows += [_whole_row(n, entry, None, e.codec, e.data.bytes) for n, e in whole.items()]
    return rows


def _whole_row(tensor: str, entry: str, stored: int | None, codec: str, count: int) -> dict[str, Any]:
    """The row of a tensor that has no mask."""
    return {
        "tensor": tensor,
        "entry": entry,
        "stored": stored,
        "mask": None,
        "mask_bytes": 0,
        "values": codec,
        "value_bytes": count,
        "bytes": count,
    }
