"""`ken finetune`: a classifier or a language model, and how well it does on text that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serving.cli.cut_examples import lost_ends
from serving.terminal import counted, progress, say, warn

if TYPE_CHECKING:
    from ken_core.training import Recipe, Step

E = TypeVar("E")


@dataclass(frozen=True)
class Data:
    """Where the text comes from.

    Attributes:
        train: the file to train on.
        dev: the file to judge on; None: a part of `train` is held out.
        share: of `train` that is held out.
    """

    train: Path
    dev: Path | None
    share: float

    def read(self, read: Callable[[Path], list[E]], seed: int) -> tuple[list[E], list[E]]:
        """Examples to train on and to judge on."""
        from ken_core.held_out import hold_out

        examples = read(self.train)
        return hold_out(examples, self.share, seed) if self.dev is None else (examples, read(self.dev))

    def judged_on(self, examples: Sequence[object]) -> str:
        """What the judgement is about, for people."""
        source = f"held out of {self.train}" if self.dev is None else f"of {self.dev}"
        return f"on {counted(len(examples), 'example')} {source}"


def train_classifier(base: str, data: Data, out: Path, recipe: Recipe) -> None:
    """Train a classifier, and print its accuracy."""
    from ken_core.examples import read_examples
    from ken_core.finetune import finetune

    examples, held_out = data.read(read_examples, recipe.seed)
    with _steps() as show:
        accuracy = finetune(base, examples, out, recipe, show, held_out)
    say(f"wrote {out}, trained on {counted(len(examples), 'example')}")
    if accuracy is None:
        say("its accuracy is not known, since no example was held out; give --dev FILE, or a larger --dev-share")
    else:
        say(f"accuracy {accuracy:.3f} {data.judged_on(held_out)}")


def train_language_model(base: str, data: Data, out: Path, recipe: Recipe) -> None:
    """Train a language model, and print how surprised it is by what it should say, beside its base."""
    from ken_core.finetune import finetune_language_model
    from ken_core.language_examples import read_language_examples

    examples, held_out = data.read(read_language_examples, recipe.seed)
    with _steps() as show:
        found = finetune_language_model(base, examples, out, recipe, show, held_out)
    say(f"wrote {out}, trained on {counted(len(examples), 'example')}, of which {counted(found.tokens, 'token')} count")
    if found.cut:
        warn(lost_ends(found.cut, found.longest, found.at_limit))
    if found.loss is None or found.loss_before is None:
        say("how well it learned is not known, since no example was held out; give --dev FILE, or a larger --dev-share")
    else:
        say(
            f"loss {found.loss:.3f} (perplexity {math.exp(found.loss):.2f}), the base's {found.loss_before:.3f} "
            f"({math.exp(found.loss_before):.2f}), {data.judged_on(held_out)}"
        )


@contextmanager
def _steps() -> Iterator[Callable[[Step], None]]:
    with progress("fine-tuning") as update:
        yield lambda step: update(step.number, step.total, f"loss {step.loss:.3f}")
