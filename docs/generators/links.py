"""Links between pages. They are written for the repository, where they work as they stand; the site gets the same links
with other targets: to its own page or picture where it has one, and else to the repository."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping

_FENCED = re.compile(r"^(```.*?^```)$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def for_site(text: str, source: str, files: Mapping[str, str], url_of: Callable[[str], str]) -> str:
    """The text of a page with its links as the site needs them. Blocks of code stay as they are.

    Args:
        source: the page's path in the repository.
        files: paths in the repository, and what each is called on the site.
        url_of: the address of a path of the repository that the site does not have.
    """

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if path not in files:
            return url_of(path)
        return posixpath.relpath(files[path], posixpath.dirname(files[source]) or ".")

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(target, part) for part in parts)
