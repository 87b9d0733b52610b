"""The pages of the site: which there are, and the sources from which the site is built."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

from docs.generators import commands, errors, links, metrics, python_client, python_core, settings

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/code_of_conduct.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "deploy/README.md": "howto/deploying.md",
}
"""Pages that are kept elsewhere in the repository, and what they are called on the site."""
GENERATED: dict[str, Callable[[], str]] = {
    "client": python_client.client,
    "commands": commands.commands,
    "core": python_core.core,
    "errors": errors.errors,
    "metrics": metrics.metrics,
    "settings": settings.settings,
}
"""What stands for ``<!-- generated: NAME -->`` in a page."""
_SHOWN = (".md", ".png", ".svg")
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def write(folder: Path) -> None:
    """Write the sources of the site into a folder, in place of what it held."""
    shutil.rmtree(folder, ignore_errors=True)
    files = files_of_site()
    for source, name in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            text = links.for_site((ROOT / source).read_text("utf-8"), source, files, in_repository)
            (folder / name).write_text(_MARK.sub(lambda mark: GENERATED[mark[1]](), text), "utf-8")
        else:
            shutil.copyfile(ROOT / source, folder / name)


def files_of_site() -> dict[str, str]:
    """Paths in the repository of all pages and pictures, and what each is called on the site."""
    docs = ROOT / "docs"
    found = (path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*")) if path.suffix in _SHOWN)
    return {f"docs/{path}": path for path in found} | OUTSIDE


def in_repository(path: str) -> str:
    """The address of a file or folder of the repository that is not on the site.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"a page links to {path}, which is not in the repository; correct the link")
    address = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Homepage"]
    return f"{address}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
