"""The model card of a repository with deltas: metadata for the Hub, and one section for each delta.

A section stands between two comments with the delta's file name. Of a card's text, only what is between them is ever
replaced. Of its metadata, keys that are missing are added below the others; the block is written anew, without its
comments, only where the value of a key must change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from serving.hub.errors import HubError

FILE = "README.md"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")
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

    Args:
        card: the card as it is; None: there is none.
        title: of a new card.

    Raises:
        HubError: the metadata of the card cannot be read.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = f"# {title}\n" if card is None else card
    found = REGEX_YAML_BLOCK.search(text)
    block, body = (found[2], text[found.end() :]) if found else ("", f"\n{text}")
    return f"---\n{_metadata(block, about)}---\n{_with_section(body, file, section)}"


def _metadata(block: str, about: About) -> str:
    """The lines of a metadata block with what the Hub is to know of a delta."""
    try:
        known = yaml.safe_load(block) or {}
    except yaml.YAMLError as error:
        raise _unreadable(str(error)) from None
    if not isinstance(known, dict):
        raise _unreadable(f"it holds {type(known).__name__}, expected names and values")
    changes = _changes(known, about)
    if not changes:
        return f"{block}\n"
    added = f"{block}\n{_dumped(changes)}" if block else _dumped(changes)
    whole = {**known, **changes}
    return added if changes.keys().isdisjoint(known) and _means(added, whole) else _dumped(whole)


def _changes(known: Mapping[str, Any], about: About) -> dict[str, Any]:
    """The values of metadata that are missing, or have to be others."""
    changes: dict[str, Any] = {}
    bases, tags = _names(known, "base_model"), _names(known, "tags")
    if about.base is not None and about.base not in bases:
        changes["base_model"] = [*bases, about.base] if bases else about.base
    told = {
        "base_model_relation": about.relation if about.base else None,
        "library_name": "ken-serve",
        "license": about.license,
        "pipeline_tag": _PIPELINES.get(about.kind, about.kind),
    }
    changes |= {key: value for key, value in told.items() if value is not None and known.get(key) is None}
    if about.license not in (None, known.get("license")):
        changes["license"] = about.license
    if new := [tag for tag in ("ken-serve", "delta", about.method) if tag not in tags]:
        changes["tags"] = [*tags, *new]
    return changes


def _names(known: Mapping[str, Any], key: str) -> list[str]:
    """The names that a key has: none, one, or a list."""
    value = known.get(key) or []
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _unreadable(f"{key} is {value!r}, expected a name or a list of names")
    return value


def _dumped(metadata: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True))


def _means(block: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a block has this meaning; one that is written in another style than lines of names cannot be extended."""
    try:
        return bool(yaml.safe_load(block) == metadata)
    except yaml.YAMLError:
        return False


def _unreadable(why: str) -> HubError:
    return HubError(f"the metadata at the top of {FILE} cannot be read: {why}; mend it on the Hub")


def _with_section(text: str, file: str, section: str) -> str:
    begin, end = f"<!-- ken-serve: {file} -->", f"<!-- /ken-serve: {file} -->"
    marked = f"{begin}\n{section}\n{end}"
    # between a comment and its end no other section begins: one whose end was lost is not ours any more
    pair = re.compile(rf"{re.escape(begin)}(?:(?!{re.escape(begin)}).)*?{re.escape(end)}", re.DOTALL)
    first, *others = pair.split(text)
    if not others:
        return f"{text.rstrip()}\n\n{marked}\n"
    return f"{first}{marked}{''.join(others)}"


def _cell(value: str) -> str:
    """A text as a cell of a table: in one line, not too long, and with no markup in it."""
    line = " ".join(value.split())
    cut = line if len(line) <= _LONGEST_CELL else f"{line[:_LONGEST_CELL]}…"
    return _SPECIAL.sub(r"\\\1", cut)
