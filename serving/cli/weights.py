"""Commands on checkpoints and delta files: finetune, extract, import-peft, apply and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.delta_facts import facts, per_tensor
from serving.cli.making import (
    CodecOption,
    DistilOption,
    EnergyOption,
    FitOption,
    KeepOption,
    KOption,
    MethodOption,
    ScopeOption,
    SeedOption,
    SizeOption,
    delta_recipe,
)
from serving.cli.options import (
    BaseOption,
    CastOption,
    ExcludeOption,
    IgnoreConfigOption,
    IncludeOption,
    JsonFlag,
    OnlyOption,
    OutsideOption,
    Overwrite,
)
from serving.cli.outputs import check_output_file, check_output_folder
from serving.cli.panels import DELTAS, FILES
from serving.cli.selecting import check_text
from serving.cli.show_delta import show, show_written
from serving.cli.training import Data, train_classifier, train_language_model
from serving.terminal import say, staged

_DEV_SHARE = 0.1


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (finetune, extract, import_peft, apply):
        app.command(rich_help_panel=DELTAS)(command)
    app.command(rich_help_panel=FILES)(inspect)


def finetune(
    base: BaseOption,
    data: Annotated[
        Path,
        typer.Option(
            help="JSON lines, CSV or TSV with the fields `text` and `label`, and `text_pair` for pairs; for a language "
            "model `text`, or `prompt` and `completion`, or (JSON lines) `messages`"
        ),
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="folder to create for the fine-tuned model")],
    epochs: Annotated[int, typer.Option(min=1, help="passes over the data")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="examples in one optimiser step")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0, help="learning rate after warm-up")] = 1e-4,
    max_length: Annotated[
        int | None,
        typer.Option(min=8, help="most tokens of a text; longer texts are cut; default 64, for a language model 512"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the random numbers")] = 0,
    dev: Annotated[
        Path | None,
        typer.Option(help="text like --data to judge the model on; by default a part of --data is held out"),
    ] = None,
    dev_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="share of --data that is held out and not trained on; default 0.1"),
    ] = None,
) -> None:
    """Fine-tune all weights of a base, and print how well it does on text it has not seen: a classifier where the data
    has labels, else a language model.

    Example: ken finetune --base ./minilm --data trec.jsonl --out ./minilm-trec
    """
    from ken_core.language_examples import is_labelled
    from ken_core.training import Recipe

    if dev is not None and dev_share is not None:
        raise typer.BadParameter("found --dev and --dev-share; give only one of them")
    check_output_folder(out_folder, "--out")
    train, longest = (train_classifier, 64) if is_labelled(data) else (train_language_model, 512)
    recipe = Recipe(epochs, batch_size, learning_rate, max_length=max_length or longest, seed=seed)
    train(base, Data(data, dev, _DEV_SHARE if dev_share is None else dev_share), out_folder, recipe)


def extract(
    base: BaseOption,
    tuned: Annotated[str, typer.Option(help="folder or hub name of the fine-tuned checkpoint")],
    out_file: Annotated[Path, typer.Option("--out", help="delta file to write")],
    method: MethodOption = None,
    keep: KeepOption = None,
    file_size: SizeOption = None,
    energy: EnergyOption = None,
    scope: ScopeOption = None,
    k: KOption = None,
    codec: CodecOption = None,
    fit: FitOption = False,
    distil: DistilOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="for --fit and --distil: texts like those that the task will answer, without labels; JSON lines, CSV "
            "or TSV with the field `text`; for a language model also `prompt` and `completion`, or (JSON lines) "
            "`messages`"
        ),
    ] = None,
    only: OnlyOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    outside: OutsideOption = "reset",
    seed: SeedOption = 0,
    cast: CastOption = False,
    ignore_config: IgnoreConfigOption = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep a small part of a fine-tune and write it as a delta file.

    Example: ken extract --base ./minilm --tuned ./minilm-trec --out trec.ken
    """
    from ken_core import open_base, open_tuned
    from ken_core.task_texts import inputs_of, read_given

    recipe = delta_recipe(
        method=method, keep=keep, file_size=file_size, energy=energy, scope=scope, k=k, codec=codec, fit=fit,
        distil=distil, only=only, include=include, exclude=exclude, outside=outside, seed=seed, cast=cast,
        ignore_config=ignore_config,
    )  # fmt: skip
    check_text(recipe.chosen(0).method, text, fit=fit, distil=distil is not None)
    check_output_file(out_file, "--out", overwrite)
    given = None if text is None else read_given(text)[0]
    with staged() as watch:
        ours, theirs = open_base(base), open_tuned(tuned)
        texts = None if given is None else inputs_of(theirs, given)
        found, file = recipe.make(ours, theirs, out_file, texts, watch)
    show_written(file, found.warnings, as_json)


def import_peft(
    adapter: Annotated[Path, typer.Argument(help="folder of a LoRA or SHiRA adapter, as peft writes it")],
    base: BaseOption,
    out_file: Annotated[Path, typer.Option("--out", help="delta file to write")],
    labels: Annotated[
        str | None, typer.Option(help="label names in the order of the logits, separated by commas")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Transformers class of the fine-tuned model, if the adapter does not name it")
    ] = None,
    cast: CastOption = False,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn a peft adapter into a delta that gives the same answers as peft's merged model.

    Example: ken import-peft ./trec-lora --base ./minilm --out trec.ken --labels ABBR,DESC,ENTY,HUM,LOC,NUM
    """
    from ken_core import deltafile, open_base
    from ken_core import import_peft as read_adapter

    check_output_file(out_file, "--out", overwrite)
    names = None if labels is None else [label.strip() for label in labels.split(",")]
    with staged() as watch:
        ours = open_base(base)
        found = read_adapter(adapter, ours, architecture=architecture, labels=names, cast=cast, progress=watch)
        file = deltafile.write(found, ours, out_file, progress=watch)
    show_written(file, found.warnings, as_json)


def apply(
    base: BaseOption,
    delta: Annotated[Path, typer.Option(help="delta file")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder to create for the complete model")],
) -> None:
    """Write the base with a delta applied as a complete Hugging Face model folder.

    Example: ken apply --base ./minilm --delta trec.ken --out ./minilm-trec-pruned
    """
    from ken_core import apply as write_folder
    from ken_core import deltafile, open_base

    check_output_folder(out_folder, "--out")
    ours = open_base(base)
    write_folder(ours, deltafile.load(delta, ours), out_folder)
    say(f"wrote {out_folder}")


def inspect(
    file: Annotated[Path, typer.Argument(help="delta file")],
    tensors: Annotated[bool, typer.Option("--tensors", help="show one row for each tensor")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a delta file holds. Needs no base.

    Example: ken inspect trec.ken --tensors
    """
    from ken_core import open_file

    opened = open_file(file)
    show(facts(opened), as_json, per_tensor(opened) if tensors else [])
