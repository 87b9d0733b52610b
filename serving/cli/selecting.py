"""What the options of `ken extract` and `ken calibrate` select: method, budget, tensors and codec, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ken_core.codings import CODECS, FACTOR_CODECS, Codec

if TYPE_CHECKING:
    from ken_core import Selection, TensorFilter
    from ken_core.selection import Method

DEFAULT_PART = 45
"""By default, the factors of svd take this part of the base's bytes, before compression."""
_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}


def method_of(named: str | None, keep: float | None, k: int | None) -> str:
    """The method that is named; else `svd`, or `magnitude` if a number of single elements is given."""
    return named or ("svd" if keep is None and k is None else "magnitude")


def bytes_of(
    method: str, codec: str, text: str | None, energy: float | None, scope: str | None, elements: bool
) -> int | None:
    """The bytes of ``--size``; checks the options that go with a size, an energy, and the method `svd`.

    Args:
        elements: whether a number of elements was given, by ``--keep`` or ``--k``.
    """
    if method == "svd":
        _check_svd(codec, scope, elements)
    elif energy is not None:
        raise typer.BadParameter("only svd takes an energy; give --size, --keep or --k", param_hint="--energy")
    if text is None:
        return None
    if energy is not None or elements:
        raise typer.BadParameter("give a size alone, without --keep, --k and --energy", param_hint="--size")
    calibrated_methods([method])
    return parsed_size(text)


def _check_svd(codec: str, scope: str | None, elements: bool) -> None:
    if codec not in FACTOR_CODECS:
        raise typer.BadParameter(f"found {codec!r}; svd takes {', '.join(FACTOR_CODECS)}", param_hint="--codec")
    if scope not in (None, "global"):
        raise typer.BadParameter(
            "svd shares its size out over all tensors; leave --scope out, or give another --method",
            param_hint="--scope",
        )
    if elements:
        raise typer.BadParameter("svd keeps no single elements; give --size or --energy", param_hint="--method")


def parsed_size(text: str) -> int:
    """The bytes that ``--size`` gives, such as 1MB or 500kB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(B|kB|MB|GB)", text)
    if found is None:
        raise typer.BadParameter(
            f"found {text!r}; expected a number and a unit, such as 1MB or 500kB", param_hint="--size"
        )
    return int(float(found[1]) * _UNITS[found[2]])


def check_text(method: str, text: Path | None, *, fit: bool, distil: bool) -> None:
    """Check that ``--text`` goes with ``--fit`` or ``--distil``, and these with the method."""
    if fit and method == "svd":
        raise typer.BadParameter(
            "svd keeps directions, which need no scales; leave --fit out, or give --method magnitude",
            param_hint="--fit",
        )
    if text is None and distil:
        raise typer.BadParameter(
            "give --text FILE, with texts like those that the task will answer", param_hint="--distil"
        )
    if text is not None and not (fit or distil):
        raise typer.BadParameter("the texts are for --fit or --distil; give one of them", param_hint="--text")


def selection(
    method: str,
    keep: float | None,
    scope: str | None,
    k: int | None,
    seed: int,
    tensors: TensorFilter | None,
    energy: float | None = None,
    nbytes: int | None = None,
) -> Selection:
    """What ``--method``, ``--keep``, ``--scope``, ``--k``, ``--seed`` and ``--energy`` say together.

    Args:
        nbytes: of factors before compression, where nothing else says how much to keep.
    """
    from ken_core import Budget, Selection, SelectionError
    from ken_core.selection import ALLOWED_SCOPES
    from ken_core.tensor_filter import EVERYTHING

    scopes = ALLOWED_SCOPES.get(method, ("global",))
    wide: Literal["global", "row"] = "global" if "global" in scopes and k is None else "row"
    if scope not in (None, "global", "row"):
        raise typer.BadParameter(f"found {scope!r}; choose global or row", param_hint="--scope")
    try:
        told = keep is not None or k is not None or energy is not None
        if method == "svd" and not told:
            budget = Budget(nbytes=nbytes)
        else:
            budget = Budget(scope or wide, keep if told else 0.10, k, energy)  # type: ignore[arg-type]
        return Selection(method, budget, seed, tensors or EVERYTHING)  # type: ignore[arg-type]
    except SelectionError as error:
        raise typer.BadParameter(str(error)) from None


def calibrated_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each of which can make a delta of any size."""
    from ken_core.selection import ALLOWED_SCOPES, DECOMPOSING

    known = [DECOMPOSING, *(name for name in ALLOWED_SCOPES if name != "ken-grid")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"found {name!r}; choose {', '.join(known)}", param_hint="--method")
    return list(names)  # type: ignore[arg-type]  # each is one of the literals


def tensor_filter(only: str | None, include: list[str] | None, exclude: list[str] | None, outside: str) -> TensorFilter:
    """What ``--only``, ``--include``, ``--exclude`` and ``--outside`` say together."""
    from ken_core import PRESETS, SelectionError, TensorFilter

    if only is not None and only not in PRESETS:
        raise typer.BadParameter(f"found {only!r}; choose {', '.join(PRESETS)}", param_hint="--only")
    preset = PRESETS[only or "all"]
    try:
        return TensorFilter(
            include=tuple(include or preset.include),
            exclude=(*preset.exclude, *(exclude or ())),
            outside=outside,  # type: ignore[arg-type]  # the constructor checks it
        )
    except SelectionError as error:
        raise typer.BadParameter(str(error)) from None


def codecs_of(names: Sequence[str]) -> list[Codec]:
    """The codecs of these names."""
    for name in names:
        if name not in CODECS:
            raise typer.BadParameter(f"found {name!r}; choose {', '.join(CODECS)}", param_hint="--codec")
    return list(names)  # type: ignore[arg-type]  # each is one of the literals
