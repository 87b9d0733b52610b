"""How deltas of one base are merged: the method, and what it takes. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ken_core.errors import MergeError

MergeMethod = Literal["linear", "ties", "dare-linear", "dare-ties"]
MERGE_METHODS: tuple[MergeMethod, ...] = get_args(MergeMethod)


@dataclass(frozen=True)
class MergeRecipe:
    """A way to merge shifts from one base.

    - ``linear``: the sum of weighted shifts, task arithmetic (Ilharco et al. 2023, arXiv 2212.04089).
    - ``ties``: each shift keeps its largest elements. At each element the parts elect a sign by the sum of their
      weighted shifts, and only parts of that sign are merged (Yadav et al. 2023, arXiv 2306.01708).
    - ``dare-linear``, ``dare-ties``: each element of a shift is dropped at random, and the others are divided by the
      density, so that the expected shift stays the same (Yu et al. 2023, arXiv 2311.03099). Then as ``linear``, or as
      ``ties`` without its trimming.

    Attributes:
        density: with ``ties``, the share of the backbone's parameters that each shift keeps, its largest ones over all
            tensors; with ``dare-linear`` and ``dare-ties``, the probability that a shifted element is kept.
        normalize: whether merged shifts are divided by the sum of their weights' sizes: of all parts, or where signs
            are elected, of the parts that are merged at that element. None: as in the paper, only where signs are
            elected.
        seed: of the elements that are dropped.

    Raises:
        MergeError: the method is unknown, or the density is out of range or not the method's.
    """

    method: MergeMethod = "linear"
    density: float = 1.0
    normalize: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in MERGE_METHODS:
            raise MergeError(f"unknown method {self.method!r}; choose one of {', '.join(MERGE_METHODS)}")
        if not 0.0 < self.density <= 1.0:
            raise MergeError(f"the density must lie above 0 and be at most 1, found {self.density}")
        if self.method == "linear" and self.density != 1.0:
            raise MergeError(
                f"linear keeps shifts whole, found a density of {self.density}; leave it out, or choose another method"
            )

    @property
    def elects(self) -> bool:
        """Whether parts elect a sign for each element."""
        return self.method.endswith("ties")

    @property
    def trims(self) -> bool:
        """Whether shifts keep their largest elements alone."""
        return self.method == "ties" and self.density < 1.0

    @property
    def drops(self) -> bool:
        """Whether elements are dropped at random."""
        return self.method.startswith("dare") and self.density < 1.0

    @property
    def normalizes(self) -> bool:
        """`normalize`, or the method's own way where that is None."""
        return self.elects if self.normalize is None else self.normalize
