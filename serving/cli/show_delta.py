"""Prints what a delta file holds: as lines and tables, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from typing import Any

from serving.cli.delta_facts import facts
from serving.cli.promise_line import promise_line
from serving.terminal import counted, fact, out, print_json, size, table, warn

_ADAPTERS = {"lora": "LoRA", "shira": "SHiRA"}


def show_written(file: Any, warnings: Sequence[str], as_json: bool) -> None:
    """Print warnings, and what a `ken_core.DeltaFile` that has just been written holds."""
    for warning in warnings:
        warn(warning)
    show({**facts(file), "warnings": list(warnings)}, as_json)


def show(found: dict[str, Any], as_json: bool, tensors: list[dict[str, Any]] | None = None) -> None:
    """Print what `serving.cli.delta_facts.facts` returned, and `per_tensor`'s rows if there are any."""
    if as_json:
        print_json({**found, **({"per_tensor": tensors} if tensors else {})})
        return
    for key, value in lines_of(found).items():
        fact(key, value)
    if tensors:
        _show_tensors(tensors)


def lines_of(found: dict[str, Any]) -> dict[str, str]:
    """What `serving.cli.delta_facts.facts` returned, as lines for people: what each tells, and its text."""
    kept = found["stored"] / found["candidates"] if found["candidates"] else 0.0
    lines = {
        "digest": found["digest"],
        "bytes": f"{found['bytes']:,} ({size(found['bytes'])})",
        "": "; ".join(f"{part} {size(count)}" for part, count in found["bytes_by_part"].items()),
        "base": f"{found['base']} ({found['fingerprint'][:16]}…)",
        "architecture": found["architecture"],
        "labels": ", ".join(found["labels"]) or "none",
        "method": f"{found['method']}, {', '.join(starmap(_budget_part, found['budget'].items()))}",
        "codec": found["codec"],
    }
    if found["tokenizer"] != "base":
        lines["tokenizer"] = {"own": "its own", "own settings": "the base's, with settings of its own"}[
            found["tokenizer"]
        ]
    if generation := found["generation"]:
        lines["generation"] = ", ".join(f"{key} {value}" for key, value in generation.items())
    if embedding := found["embedding"]:
        lines |= _embedding_lines(embedding)
    if found["candidates"] or not found["lowrank"]:
        lines["kept"] = (
            f"{found['stored']:,} of {found['candidates']:,} changed parameters ({kept:.1%}); "
            f"{found['selected']:,} selected, the others equal the base"
        )
    if found["fitted"] is not None and found["stored"]:
        texts = counted(found["fitted"], "text") if found["fitted"] else "random tokens"
        lines["codec"] += f", after a fit of the kept values to {texts}"
    if distilled := found["distilled"]:
        lines["distilled"] = _distilled_line(distilled)
    if found["adapter"]:
        lines["method"] = f"imported from a {_ADAPTERS[found['adapter']]} adapter of peft"
    if merged := found["merged"]:
        lines |= _merged_lines(merged)
    if lowrank := found["lowrank"]:
        least, most = lowrank["least_rank"], lowrank["most_rank"]
        ranks = f"rank {least}" if least == most else f"ranks {least} to {most}"
        lines["low rank"] = f"{lowrank['tensors']:,} tensors, {ranks}, {lowrank['parameters']:,} parameters in factors"
    if only := found["only"]:
        but = f" but {', '.join(only['exclude'])}" if only["exclude"] else ""
        lines["tensors"] = f"{', '.join(only['include'])}{but}; the others {only['outside']}"
    if calibration := found["calibration"]:
        lines["calibrated"] = promise_line(calibration)
    return lines


def _show_tensors(tensors: list[dict[str, Any]]) -> None:
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


def _merged_lines(found: dict[str, Any]) -> dict[str, str]:
    """How the delta was merged, and from which others."""
    how = f"merged by {found['method']}"
    if found["density"] != 1:
        how += f", density {found['density']:g}"
    if found["method"].startswith("dare"):
        how += f", seed {found['seed']}"
    how += ", weights normalised" if found["normalize"] else ""
    parents = [f"{parent['weight']:g} of {parent['digest'][:16]}…" for parent in found["parents"]]
    parents[found["head"]] += " (its head)"
    return {"method": how, "parents": ", ".join(parents)}


def _embedding_lines(found: dict[str, Any]) -> dict[str, str]:
    """The steps from token vectors to an embedding, in their order; limits on texts; prompts."""
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


def _distilled_line(found: dict[str, Any]) -> str:
    judged = counted(found["held_out"], "other text") if found["held_out"] else "the same texts"
    return (
        f"values trained in {counted(found['steps'], 'step')} on {counted(found['texts'], 'text')}; on {judged}, the "
        f"divergence from the fine-tune's answers fell from {found['before']:.4f} to {found['after']:.4f}"
    )


def _budget_part(name: str, value: Any) -> str:
    return f"{size(value)} of factors before compression" if name == "nbytes" else f"{name} {value}"
