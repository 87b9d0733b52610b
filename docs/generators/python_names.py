"""The Python API: an instruction for mkdocstrings for each public name, which reads signature and docstring from the
sources without importing them."""

from __future__ import annotations

import ken_core
import serving.client


def core() -> str:
    """Every public name of `ken_core`."""
    return _instructions("ken_core", ken_core.__all__)


def client() -> str:
    """Every public name of `serving.client`."""
    return _instructions("serving.client", serving.client.__all__)


def _instructions(package: str, names: list[str]) -> str:
    return "\n".join(f"::: {package}.{name}\n" for name in sorted(names, key=str.lower))
