"""Tensor filters: which tensors take part in a selection, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ken_core.errors import SelectionError

Outside = Literal["reset", "keep"]


@dataclass(frozen=True)
class TensorFilter:
    """Tensors whose backbone-relative name matches a glob of `include` and none of `exclude`.

    All other tensors are reset to the base's values or kept in full, as `outside` says.

    Raises:
        SelectionError: `outside` is neither 'reset' nor 'keep', or `include` has no glob.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    outside: Outside = "reset"

    def __post_init__(self) -> None:
        if self.outside not in ("reset", "keep"):
            raise SelectionError(f"tensors outside the filter are either 'reset' or 'keep', found {self.outside!r}")
        if not self.include:
            raise SelectionError("a filter that includes nothing selects nothing; give at least one glob, such as '*'")

    def covers(self, name: str) -> bool:
        return any(fnmatchcase(name, g) for g in self.include) and not any(fnmatchcase(name, g) for g in self.exclude)

    def check(self, names: Iterable[str]) -> None:
        """Raise `SelectionError` if the filter covers none of these tensors, as when a glob is mistyped."""
        known = sorted(names)
        if known and not any(self.covers(n) for n in known):
            raise SelectionError(
                f"no tensor matches include {', '.join(self.include)}"
                + (f" and exclude {', '.join(self.exclude)}" if self.exclude else "")
                + f"; the base's {len(known)} tensors have names like {known[0]!r} and {known[-1]!r}"
            )


EVERYTHING = TensorFilter()

PRESETS: dict[str, TensorFilter] = {
    "all": EVERYTHING,
    "attention": TensorFilter(("*attention*", "*attn*"), ("*norm*", "*Norm*")),
    "no-embeddings": TensorFilter(exclude=("*embed*", "wte.*", "wpe.*")),
}
"""Filters with a name: everything; the authors' "attention layers only", by the names of many architectures; everything
but embeddings."""
