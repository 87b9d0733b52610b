"""The model card of a repository with deltas: metadata for the Hub, and one section for each delta.

A section stands between two comments with the delta's file name. Only what is between them is ever replaced, so a card
may hold other text before and after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.hub.failures import HubError

FILE = "README.md"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LONGEST_CELL = 1000
"""Characters. A delta may have 131,072 labels."""
_PIPELINES = {"sentence-embeddings": "sentence-similarity"}


@dataclass(frozen=True)
class About:
    """What the Hub is told of a delta, to be found by it.

    Attributes:
        base: the base's name on the Hub; None: it has none, or it is unknown.
        relation: how the model comes from its base, by the Hub's names.
        kind: the task kind.
        license: by the Hub's names; None: not told.
    """

    base: str | None
    relation: str
    kind: str
    method: str
    license: str | None = None


def hub_name(base: str) -> str | None:
    """The name of a base, if it has the form of a name on the Hub."""
    return base if _HUB_NAME.fullmatch(base) else None


def section(file: str, repository: str, facts: Mapping[str, str], base: str | None) -> str:
    """A delta's section: what it is, and the commands that serve it.

    Args:
        file: the delta's file name.
        facts: rows of a table: what is told, and its value.
        base: as `About.base`.
    """
    rows = [f"| {what} | {_cell(value)} |" for what, value in facts.items()]
    task = file.removesuffix(".ken")
    return "\n".join(
        [
            f"## {file}",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "Serve it beside other fine-tunes of the same base, from one copy of the base's weights:",
            "",
            "```",
            "pip install ken-serve",
            f"ken pull {repository} {file}",
            f"ken publish {task} {file}",
            f"ken serve --base {base or 'BASE'}",
            "```",
        ]
    )


def card_with(card: str | None, title: str, file: str, section: str, about: About) -> str:
    """A card with a delta's section in it, in place of the section that it had.

    Metadata that the card has already is kept; what is missing is added.

    Args:
        card: the card as it is; None: there is none.
        title: of a new card.

    Raises:
        HubError: the metadata of the card cannot be read.
    """
    from huggingface_hub import ModelCard

    try:
        made = ModelCard(card if card is not None else f"---\n{{}}\n---\n\n# {title}\n")
    except Exception as error:  # YAML's errors, and those of the checks of the metadata
        raise HubError(f"the metadata at the top of {FILE} cannot be read: {error}; mend it on the Hub") from error
    _tell(made.data, about)
    made.text = _replaced(made.text, file, section)
    return str(made)


def _tell(data: Any, about: About) -> None:
    data.library_name = data.library_name or "ken-serve"
    data.pipeline_tag = data.pipeline_tag or _PIPELINES.get(about.kind, about.kind)
    data.license = about.license or data.license
    data.tags = list(dict.fromkeys([*(data.tags or ()), "ken-serve", "delta", about.method]))
    if about.base is not None:
        known = [data.base_model] if isinstance(data.base_model, str) else list(data.base_model or ())
        bases = list(dict.fromkeys([*known, about.base]))
        data.base_model = bases[0] if len(bases) == 1 else bases
        data.base_model_relation = data.get("base_model_relation", about.relation)


def _replaced(text: str, file: str, section: str) -> str:
    begin, end = f"<!-- ken-serve: {file} -->", f"<!-- /ken-serve: {file} -->"
    marked = f"{begin}\n{section}\n{end}"
    old = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    replaced, count = old.subn(lambda _: marked, text, count=1)
    return replaced if count else f"{text.rstrip()}\n\n{marked}\n"


def _cell(value: str) -> str:
    """A text as a cell of a table: in one line, not too long, and with no markup in it."""
    line = " ".join(value.split())
    cut = line if len(line) <= _LONGEST_CELL else f"{line[:_LONGEST_CELL]}…"
    return _SPECIAL.sub(r"\\\1", cut)
