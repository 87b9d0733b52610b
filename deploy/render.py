"""Write the Ray variables of `serving.launch.ray_variables` into the RayService, between its marker comments.

python deploy/render.py            rewrites the manifest
python deploy/render.py --check    exits 1 if it is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving.launch.ray_variables import for_cluster  # noqa: E402

MANIFEST = ROOT / "deploy/kubernetes/rayservice.yaml"
BLOCK = re.compile(r"^( *)# begin ray_variables.*\n(?:.*\n)*?\1# end ray_variables$", re.MULTILINE)
CONTAINERS = 2


def render(text: str, variables: dict[str, str]) -> str:
    """The manifest with `variables` between the markers of the head's and of the worker's container.

    Raises:
        ValueError: the manifest does not have exactly two pairs of markers.
    """

    def block(found: re.Match[str]) -> str:
        entries = "".join(f"{found[1]}- {{name: {k}, value: {json.dumps(v)}}}\n" for k, v in variables.items())
        return f"{found[1]}# begin ray_variables: written by deploy/render.py\n{entries}{found[1]}# end ray_variables"

    rendered, found = BLOCK.subn(block, text)
    if found != CONTAINERS:
        raise ValueError(f"found {found} pairs of 'begin ray_variables' and 'end ray_variables', expected {CONTAINERS}")
    return rendered


def main(arguments: list[str] | None = None, manifest: Path = MANIFEST) -> int:
    """The exit code: 1 if `--check` finds the manifest out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the manifest is out of date")
    options = parser.parse_args(arguments)
    current = manifest.read_text()
    rendered = render(current, for_cluster())
    if rendered == current:
        return 0
    if options.check:
        source = "serving/launch/ray_variables.py"
        print(f"{manifest.name} differs from {source}; run: python deploy/render.py", file=sys.stderr)
        return 1
    manifest.write_text(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
