"""Docstrings as Markdown: their text, and a list for each of the sections that they have (Args, Raises, ...)."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

from griffe import Docstring, DocstringSection, DocstringSectionKind


def markdown(docstring: str | None) -> str:
    """A docstring in Google's style, as paragraphs and lists."""
    sections = Docstring(cleandoc(docstring or "")).parse("google", warnings=False)
    return "\n\n".join(part for section in sections for part in _parts(section))


def _parts(section: DocstringSection) -> Iterator[str]:
    if section.kind is DocstringSectionKind.text:
        yield section.value
    elif section.kind is DocstringSectionKind.examples:
        yield "\n\n".join(f"```python\n{text}\n```" for _, text in section.value)
    elif section.kind is DocstringSectionKind.admonition:
        yield f"**{section.title}** {section.value.contents}"
    else:
        yield f"**{section.title or str(section.kind.value).capitalize()}**"
        yield "\n".join(_item(one) for one in section.value)


def _item(one: Any) -> str:
    name = getattr(one, "name", "") or getattr(one, "annotation", "")
    text = " ".join(str(one.description).split())
    return f"- `{name}`: {text}" if name else f"- {text}"
