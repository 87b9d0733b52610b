"""What a delta file holds, as facts for programs and as lines for people."""

from __future__ import annotations

import os
from typing import Any

from serving.cli.output import out, print_json, size, table


def facts(file: Any) -> dict[str, Any]:
    """What the manifest says, and where the bytes go; JSON."""
    m = file.manifest
    return {
        "file": os.fsencode(file.path).decode("utf-8", "replace"),  # JSON knows no other names
        "digest": file.digest,
        "bytes": file.size,
        "base": m.base.name,
        "fingerprint": m.base.fingerprint,
        "architecture": m.architecture,
        "kind": m.kind,
        "labels": m.labels,
        "method": m.method,
        "budget": m.budget.model_dump(exclude_none=True),
        "only": None if m.tensors is None else m.tensors.model_dump(),
        "codec": m.codec,
        "candidates": m.candidates,
        "selected": m.selected,
        "stored": m.stored,
        "tensors": len(m.sparse) + len(m.dense) + len(m.head),
        "bytes_by_part": _by_part(file),
        "calibration": None if m.calibration is None else m.calibration.model_dump(exclude={"tried"}),
    }


def _by_part(file: Any) -> dict[str, int]:
    """Where the file's bytes go; the parts sum to its size."""
    m = file.manifest
    parts: dict[str, int] = {}
    for entry in m.sparse.values():
        mask = f"masks, {entry.mask_coding}"
        parts[mask] = parts.get(mask, 0) + entry.mask.bytes
        parts[f"values, {m.codec}"] = parts.get(f"values, {m.codec}", 0) + entry.values.bytes
    for name, whole in (("whole tensors", m.dense), ("head", m.head)):
        for entry in whole.values():
            parts[f"{name}, {entry.codec}"] = parts.get(f"{name}, {entry.codec}", 0) + entry.data.bytes
    if m.files:
        parts["tokenizer"] = sum(stream.bytes for stream in m.files.values())
    return {**parts, "manifest": file.size - sum(parts.values())}


def per_tensor(file: Any) -> list[dict[str, Any]]:
    """One row a tensor: its entry, codecs and bytes; JSON."""
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
    for entry, whole in (("dense", m.dense), ("head", m.head)):
        rows += [
            {
                "tensor": n,
                "entry": entry,
                "stored": None,
                "mask": None,
                "mask_bytes": 0,
                "values": e.codec,
                "value_bytes": e.data.bytes,
                "bytes": e.data.bytes,
            }
            for n, e in whole.items()
        ]
    return rows


def show(found: dict[str, Any], as_json: bool, tensors: list[dict[str, Any]] | None = None) -> None:
    """Print facts, and rows of tensors where given."""
    if as_json:
        print_json({**found, **({"per_tensor": tensors} if tensors else {})})
        return
    kept = found["stored"] / found["candidates"] if found["candidates"] else 0.0
    lines = {
        "digest": found["digest"],
        "bytes": f"{found['bytes']:,} ({size(found['bytes'])})",
        "": "; ".join(f"{part} {size(count)}" for part, count in found["bytes_by_part"].items()),
        "base": f"{found['base']} ({found['fingerprint'][:16]}…)",
        "architecture": found["architecture"],
        "labels": ", ".join(found["labels"]) or "none",
        "method": f"{found['method']}, {', '.join(f'{k} {v}' for k, v in found['budget'].items())}",
        "codec": found["codec"],
        "kept": f"{found['stored']:,} of {found['candidates']:,} changed parameters ({kept:.1%}); "
        f"{found['selected']:,} selected, the others equal the base",
    }
    if only := found["only"]:
        but = f" but {', '.join(only['exclude'])}" if only["exclude"] else ""
        lines["tensors"] = f"{', '.join(only['include'])}{but}; the others {only['outside']}"
    if calibration := found["calibration"]:
        lines["calibrated"] = _calibration_line(calibration)
    for key, value in lines.items():
        out.print(f"{key:>12}  {value}", highlight=False, markup=False)
    if tensors:
        columns = ["tensor", "entry", "stored", "mask", "bytes", "values", "bytes", "all bytes"]
        rows = [
            [
                r["tensor"],
                r["entry"],
                "" if r["stored"] is None else f"{r['stored']:,}",
                r["mask"] or "",
                f"{r['mask_bytes']:,}",
                r["values"],
                f"{r['value_bytes']:,}",
                f"{r['bytes']:,}",
            ]
            for r in tensors
        ]
        out.print(table("", columns, rows))


def show_calibration(found: Any, as_json: bool) -> None:
    """Print what calibration tried and chose."""
    record = found.record
    if as_json:
        print_json({**facts(found.file), "tried": [t.model_dump() for t in record.tried]})
        return
    limit = record.tuned_score - record.tolerance
    rows = [
        [
            t.method,
            t.scope,
            f"{t.fraction:.2%}",
            t.codec,
            f"{t.bytes:,}",
            f"{t.score:.4f}",
            "yes" if t.score >= limit - 1e-12 else "no",
        ]
        for t in sorted(record.tried, key=lambda t: -t.bytes)
    ]
    columns = ["method", "scope", "kept", "codec", "bytes", record.metric, "within"]
    out.print(
        table(f"{len(rows)} deltas tried; the fine-tune's {record.metric} is {record.tuned_score:.4f}", columns, rows)
    )
    show(facts(found.file), as_json=False)


def _calibration_line(found: dict[str, Any]) -> str:
    return (
        f"{found['metric']} {found['score']:.4f} against the fine-tune's {found['tuned_score']:.4f} on "
        f"{found['examples']:,} examples; that it falls by at most {found['tolerance']:g} on all such text holds with "
        f"{found['confidence']:.0%} confidence (chosen on these examples: check on others)"
    )
