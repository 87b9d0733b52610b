"""The fine-tunes of a language model that pruning is measured on: SmolLM2-135M on real text, trained on first use and
kept.

Definitions are WordNet's, from Debian's package wordnet-base; functions are those of Python's standard library, as it
is installed. Examples to train on, to calibrate on and to judge on are disjoint.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from benchmarks import wordnet
from ken_core.finetune import Recipe, Step, finetune_language_model
from ken_core.language_examples import Completion, LanguageExample

_DEV = 600
_FEWEST_LINES, _MOST_LINES = 2, 14
"""Of a function's body, which is what is learned."""
_MOST_CHARACTERS = 900
_PACKAGES_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "dist-packages"}


@dataclass(frozen=True)
class LanguageTask:
    """Prompts with their completions, in three disjoint parts, and how to train on them."""

    name: str
    train: list[LanguageExample]
    dev: list[LanguageExample]
    test: list[LanguageExample]
    recipe: Recipe

    def fine_tune(self, base: Path, folder: Path) -> Path:
        """The folder of the fine-tune; it is trained unless `folder` holds it already."""
        made_from = hashlib.sha256(f"{base.name} {self.recipe} {self.train}".encode()).hexdigest()[:12]
        out = folder / f"{self.name}-{made_from}"
        if not out.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with Progress(transient=True) as bar:
                row = bar.add_task(f"fine-tuning {self.name}", total=None)

                def show(step: Step) -> None:
                    bar.update(row, completed=step.number, total=step.total)

                finetune_language_model(str(base), self.train, out, self.recipe, show)
        return out


def language_tasks() -> list[LanguageTask]:
    """Functions of Python's standard library, and WordNet's definitions where the dictionary is there."""
    found = [
        _divided("functions", functions, 480, 40, Recipe(epochs=1, batch_size=4, learning_rate=5e-5, max_length=256))
    ]
    if (wordnet.FOLDER / "data.noun").exists():
        recipe = Recipe(epochs=1, batch_size=16, learning_rate=5e-5, max_length=128)
        found.append(_divided("definitions", definitions, 2400, 120, recipe))
    return found


def definitions() -> list[LanguageExample]:
    """A noun or verb, and what WordNet says that it means."""
    return [
        Completion(f"Define the {speech} {word}.\n", meaning)
        for speech in ("noun", "verb")
        for word, meaning in wordnet.meanings(speech)
    ]


def functions() -> list[LanguageExample]:
    """The head and docstring of a function of Python's standard library, and its body."""
    found: list[LanguageExample] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not _PACKAGES_LEFT_OUT.intersection(path.parts):
            source = path.read_text("utf-8", "ignore")
            found += _functions(source)
    return found


def _functions(source: str) -> Iterator[Completion]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        begins, body, ends = node.lineno - 1, node.body[0].end_lineno, node.end_lineno
        assert body is not None
        assert ends is not None
        prompt, completion = "".join(lines[begins:body]), "".join(lines[body:ends])
        if _FEWEST_LINES <= ends - body <= _MOST_LINES and len(prompt) + len(completion) <= _MOST_CHARACTERS:
            yield Completion(prompt, completion)


def _divided(
    name: str, load: Callable[[], list[LanguageExample]], most: int, judging: int, recipe: Recipe
) -> LanguageTask:
    """A task whose parts share no prompt and no completion."""
    distinct: dict[str, Completion] = {}
    for example in load():
        assert isinstance(example, Completion)
        distinct.setdefault(example.completion.strip(), example)
    by_prompt = {e.prompt.strip(): e for e in distinct.values()}
    examples = [by_prompt[prompt] for prompt in sorted(by_prompt)]
    random.Random(0).shuffle(examples)
    test, dev, train = examples[:300], examples[300 : 300 + _DEV], examples[300 + _DEV :]
    return LanguageTask(name, [*train[:most]], [*dev], [*test[:judging]], recipe)
