"""The Python API of the algorithm: an instruction for mkdocstrings for each public name, which reads signature and
docstring from the sources without importing them."""

from __future__ import annotations

import ken_core


def core() -> str:
    """Every public name of `ken_core`."""
    return "\n".join(f"::: ken_core.{name}\n" for name in sorted(ken_core.__all__, key=str.lower))
