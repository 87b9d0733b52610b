"""Virtual environments for peers whose pins differ from this project's, made on first use under the data directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.process import PeerError

_TORCH = "torch==2.13.0"
"""Pinned, since with a range the resolver would take a newer version, which brings gigabytes of CUDA."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a peer in it."""

    name: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]
    """Packages whose versions are reported with the results."""

    def python(self, folder: Path, *, install: bool) -> Path:
        """The path of the environment's interpreter.

        Args:
            folder: the folder of all environments.
            install: whether to make the environment if it does not exist.

        Raises:
            PeerError: the environment does not exist and must not be made, or the installation failed.
        """
        place = folder / self.name
        stamp, wanted = place / "installed.txt", "\n".join(self.requirements)
        python = place / "bin" / "python"
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        if not install:
            raise PeerError(f"{self.name} is not installed yet; a run without --quick installs it")
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(place)])
        _run([str(python), "-m", "pip", "install", "--quiet", *self.requirements])
        stamp.write_text(wanted)
        return python

    def versions(self, python: Path) -> str:
        """Names and installed versions of the packages in `shown`."""
        code = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
        return _run([str(python), "-c", code, *self.shown]).strip()


LITSERVE = Environment(
    "litserve", ("litserve==0.2.19", "transformers==5.23.0", _TORCH), ("litserve", "transformers", "torch")
)
INFINITY = Environment(
    "infinity",
    ("infinity-emb[server,torch]==0.0.78", "transformers==4.57.6", _TORCH),
    ("infinity-emb", "transformers", "torch"),
)

MERGEKIT = Environment(
    "mergekit", ("mergekit==0.1.5", "transformers==5.23.0", _TORCH), ("mergekit", "transformers", "torch")
)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"{' '.join(command)} failed:\n{done.stderr[-1500:]}")
    return done.stdout
