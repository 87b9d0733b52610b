"""Writes the sources of the site: the pages of docs/, those that are kept elsewhere in the repository, and
what is generated from the code. `make docs` has a site built of them.

python -m docs.generators FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generators.pages import write

if __name__ == "__main__":
    write(Path(sys.argv[1]))
