"""What a delta file holds, as facts for programs and as lines for people."""

from __future__ import annotations

import os
from typing import Any

from serving.cli.output import out, print_json, size, table

_ADAPTERS = {"lora": "LoRA", "shira": "SHiRA"}


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
        "adapter": m.adapter,
        "embedding": None if m.embedding is None else m.embedding.model_dump(),
        "tokenizer": _tokenizer(m),
        "method": m.method,
        "budget": m.budget.model_dump(exclude_none=True),
        "only": None if m.tensors is None else m.tensors.model_dump(),
        "codec": m.codec,
        "candidates": m.candidates,
        "selected": m.selected,
        "stored": m.stored,
        "tensors": sum(map(len, (m.sparse, m.lowrank, m.dense, m.head, m.projections))),
        "lowrank": _lowrank(m),
        "bytes_by_part": _by_part(file),
        "calibration": None if m.calibration is None else m.calibration.model_dump(exclude={"tried"}),
    }


def _tokenizer(m: Any) -> str:
    """Whose tokenizer its texts are told to: ``base``, ``own settings`` over the base's vocabulary, or ``own``."""
    if not m.files:
        return "base"
    return "own" if "tokenizer.json" in m.files else "own settings"


def _lowrank(m: Any) -> dict[str, int] | None:
    """How many tensors are shifted by factors, of which ranks, and how many parameters those factors have."""
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
    """Where the file's bytes go; the parts sum to its size."""
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
    rows += [_whole_row(n, "lowrank", e.parameters, e.codec, e.a.bytes + e.b.bytes) for n, e in m.lowrank.items()]
    for entry, whole in (("dense", m.dense), ("head", m.head), ("projection", m.projections)):
        rows += [_whole_row(n, entry, None, e.codec, e.data.bytes) for n, e in whole.items()]
    return rows


def _whole_row(tensor: str, entry: str, stored: int | None, codec: str, count: int) -> dict[str, Any]:
    """Of a tensor without a mask."""
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
    }
    if found["tokenizer"] != "base":
        lines["tokenizer"] = {"own": "its own", "own settings": "the base's, with settings of its own"}[
            found["tokenizer"]
        ]
    if embedding := found["embedding"]:
        lines |= _embedding_lines(embedding)
    if found["candidates"] or not found["lowrank"]:
        lines["kept"] = (
            f"{found['stored']:,} of {found['candidates']:,} changed parameters ({kept:.1%}); "
            f"{found['selected']:,} selected, the others equal the base"
        )
    if found["adapter"]:
        lines["method"] = f"imported from a {_ADAPTERS[found['adapter']]} adapter of peft"
    if lowrank := found["lowrank"]:
        least, most = lowrank["least_rank"], lowrank["most_rank"]
        ranks = f"rank {least}" if least == most else f"ranks {least} to {most}"
        lines["low rank"] = f"{lowrank['tensors']:,} tensors, {ranks}, {lowrank['parameters']:,} parameters in factors"
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


def _embedding_lines(found: dict[str, Any]) -> dict[str, str]:
    """How token vectors become an embedding, in order, and its prompts."""
    steps = [" and ".join(found["pooling"]) + ("" if found["include_prompt"] else " of all but the prompt")]
    for module in found["modules"]:
        if module == "normalize":
            steps.append("scaled to length 1")
        else:
            residual = ", with a residual" if module["residual"] else ""
            steps.append(f"dense {module['inputs']} to {module['outputs']} ({module['activation']}{residual})")
    if found["dimensions"]:
        steps.append(f"the first {found['dimensions']} numbers")
    texts = [f"at most {found['max_length']} tokens"] if found["max_length"] else []
    texts += ["lower-cased"] if found["lowercase"] else []
    prompts = [
        f"{name!r}: {text!r}{' (by default)' if name == found['default_prompt'] else ''}"
        for name, text in found["prompts"].items()
        if text
    ]
    return {
        "pooling": ", ".join(steps),
        **({"texts": ", ".join(texts)} if texts else {}),
        **({"prompts": ", ".join(prompts)} if prompts else {}),
    }


def show_calibration(found: Any, as_json: bool) -> None:
    """Print what calibration tried and chose."""
    record = found.record
    if as_json:
        tried = [t.model_dump() for t in record.tried]
        print_json({**facts(found.file), "tried": tried, "warnings": list(found.warnings)})
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
