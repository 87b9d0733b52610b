"""Commands on checkpoints and delta files: finetune, extract, apply, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from serving.cli.output import JsonFlag, out, print_json, progress, say, size, staged, table

Base = Annotated[str, typer.Option("--base", help="folder or hub name of the pretrained checkpoint")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (finetune, extract, apply, inspect):
        app.command()(command)


def finetune(
    base: Base,
    data: Annotated[Path, typer.Option(help="JSON lines with `text` and `label`")],
    out_folder: Annotated[Path, typer.Option("--out", help="new folder for the fine-tuned model")],
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-4,
    max_length: Annotated[int, typer.Option(min=8, help="tokens; longer texts are cut")] = 64,
    seed: int = 0,
) -> None:
    """Fine-tune all weights of a base for text classification.

    Example: ken finetune --base ./minilm --data trec.jsonl --out ./minilm-trec
    """
    from ken_core.examples import read_examples
    from ken_core.finetune import Recipe, Step
    from ken_core.finetune import finetune as train

    recipe = Recipe(epochs, batch_size, learning_rate, max_length=max_length, seed=seed)
    examples = read_examples(data)
    with progress("fine-tuning") as update:

        def show(step: Step) -> None:
            update(step.number, step.total, f"loss {step.loss:.3f}")

        train(base, examples, out_folder, recipe, show)
    say(f"wrote {out_folder}")


def extract(
    base: Base,
    tuned: Annotated[str, typer.Option(help="folder or hub name of the fine-tuned checkpoint")],
    out_file: Annotated[Path, typer.Option("--out", help="delta file to write")],
    method: Annotated[str, typer.Option(help="magnitude, ken, ken-shift or random")] = "magnitude",
    keep: Annotated[float | None, typer.Option(help="fraction kept, by default 0.10")] = None,
    scope: Annotated[str | None, typer.Option(help="global or row; default: global where the method allows it")] = None,
    k: Annotated[int | None, typer.Option("--k", help="number kept of each row, instead of --keep")] = None,
    codec: Annotated[str, typer.Option(help="zstd or raw")] = "zstd",
    seed: Annotated[int, typer.Option(help="of method random")] = 0,
    cast: Annotated[bool, typer.Option("--cast", help="allow rounding the fine-tune to the base's dtype")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep the selected part of a fine-tune and write it as a delta.

    Example: ken extract --base ./minilm --tuned ./minilm-trec --out trec.ken
    """
    from ken_core import delta, deltafile, open_base, open_tuned

    selection = _selection(method, keep, scope, k, seed)
    if codec not in deltafile.CODECS:
        raise typer.BadParameter(f"found {codec!r}; choose zstd or raw", param_hint="--codec")
    if not out_file.resolve().parent.is_dir():
        raise typer.BadParameter(f"{out_file.resolve().parent} is no folder", param_hint="--out")
    ours, theirs = open_base(base), open_tuned(tuned)
    with staged() as watch:
        found = delta.extract(ours, theirs, selection, cast=cast, progress=watch)
        file = deltafile.write(found, ours, out_file, codec, progress=watch)
    _show(_facts(file), as_json)


def apply(
    base: Base,
    delta: Annotated[Path, typer.Option(help="delta file")],
    out_folder: Annotated[Path, typer.Option("--out", help="new folder for the complete model")],
) -> None:
    """Write the pruned model as a complete Hugging Face folder.

    Example: ken apply --base ./minilm --delta trec.ken --out ./minilm-trec-pruned
    """
    from ken_core import apply as write_folder
    from ken_core import deltafile, open_base
    from ken_core.fingerprint import fingerprint

    ours = open_base(base)
    file = deltafile.open_file(delta)
    write_folder(ours, deltafile.read(file, ours, fingerprint(ours.backbone_tensors).digest), out_folder)
    say(f"wrote {out_folder}")


def inspect(
    file: Annotated[Path, typer.Argument(help="delta file")],
    tensors: Annotated[bool, typer.Option("--tensors", help="one row a tensor")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a delta file holds, without its base.

    Example: ken inspect trec.ken --tensors
    """
    from ken_core import deltafile

    opened = deltafile.open_file(file)
    _show(_facts(opened), as_json, _per_tensor(opened) if tensors else [])


def _selection(method: str, keep: float | None, scope: str | None, k: int | None, seed: int) -> Any:
    from ken_core import Budget, Selection, SelectionError
    from ken_core.selection import ALLOWED_SCOPES

    wide: Literal["global", "row"] = "global" if "global" in ALLOWED_SCOPES.get(method, ()) and k is None else "row"
    if scope not in (None, "global", "row"):
        raise typer.BadParameter(f"found {scope!r}; choose global or row", param_hint="--scope")
    try:
        fraction = keep if keep is not None or k is not None else 0.10
        return Selection(method, Budget(scope or wide, fraction, k), seed)  # type: ignore[arg-type]
    except SelectionError as error:
        raise typer.BadParameter(str(error)) from None


def _facts(file: Any) -> dict[str, Any]:
    m = file.manifest
    return {
        "file": str(file.path),
        "digest": file.digest,
        "bytes": file.size,
        "base": m.base.name,
        "fingerprint": m.base.fingerprint,
        "architecture": m.architecture,
        "kind": m.kind,
        "labels": m.labels,
        "method": m.method,
        "budget": m.budget.model_dump(exclude_none=True),
        "codec": m.codec,
        "candidates": m.candidates,
        "selected": m.selected,
        "stored": m.stored,
        "tensors": len(m.sparse) + len(m.dense) + len(m.head),
    }


def _per_tensor(file: Any) -> list[dict[str, Any]]:
    m = file.manifest
    rows = [
        {"tensor": n, "entry": "sparse", "stored": e.stored, "bytes": e.mask.bytes + e.values.bytes}
        for n, e in m.sparse.items()
    ]
    for entry, whole in (("dense", m.dense), ("head", m.head)):
        rows += [{"tensor": n, "entry": entry, "stored": None, "bytes": e.data.bytes} for n, e in whole.items()]
    return rows


def _show(facts: dict[str, Any], as_json: bool, tensors: list[dict[str, Any]] | None = None) -> None:
    if as_json:
        print_json({**facts, **({"per_tensor": tensors} if tensors else {})})
        return
    kept = facts["stored"] / facts["candidates"] if facts["candidates"] else 0.0
    lines = {
        "digest": facts["digest"],
        "bytes": f"{facts['bytes']:,} ({size(facts['bytes'])})",
        "base": f"{facts['base']} ({facts['fingerprint'][:16]}…)",
        "architecture": facts["architecture"],
        "labels": ", ".join(facts["labels"]) or "none",
        "method": f"{facts['method']}, {', '.join(f'{k} {v}' for k, v in facts['budget'].items())}",
        "codec": facts["codec"],
        "kept": f"{facts['stored']:,} of {facts['candidates']:,} changed parameters ({kept:.1%}); "
        f"{facts['selected']:,} selected, the others equal the base",
    }
    for key, value in lines.items():
        out.print(f"{key:>12}  {value}", highlight=False, markup=False)
    if tensors:
        rows = [
            [r["tensor"], r["entry"], "" if r["stored"] is None else f"{r['stored']:,}", f"{r['bytes']:,}"]
            for r in tensors
        ]
        out.print(table("", ["tensor", "entry", "stored", "bytes"], rows))
