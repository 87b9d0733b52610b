"""How `ken extract` and `ken add` make deltas: their options, checked once, and a delta file by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.selecting import bytes_of, codecs_of, method_of, selection, tensor_filter

if TYPE_CHECKING:
    from ken_core import Checkpoint, Delta, DeltaFile, Selection, TensorFilter
    from ken_core.codings import Codec
    from ken_core.progress import Progress
    from ken_core.tokenization import Readable

MethodOption = Annotated[
    str | None,
    typer.Option(
        help="svd (the default), which keeps the largest singular components of what fine-tuning added; or how "
        "single parameters are ranked: magnitude (the default with --keep and --k), ken, ken-grid, ken-shift, "
        "random"
    ),
]
KeepOption = Annotated[
    float | None, typer.Option(help="fraction of the parameters to keep, bit for bit unless --codec says otherwise")
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", help="most bytes of the file, such as 1MB or 500kB; default about 1/45 of the base"),
]
EnergyOption = Annotated[
    float | None,
    typer.Option(help="with svd, in place of --size: share of the energy of what fine-tuning added, such as 0.9"),
]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        help="rank over all tensors (global) or within each row (row); default global where the method allows it"
    ),
]
KOption = Annotated[int | None, typer.Option("--k", help="parameters to keep in each row, in place of --keep")]
CodecOption = Annotated[
    str | None,
    typer.Option(
        help="how values are stored: zstd or raw, or lossy as int8, int4 or sign; default zstd, with svd int4"
    ),
]
FitOption = Annotated[
    bool,
    typer.Option(
        "--fit",
        help="scale kept values so that they do best on the texts of --text, or on random tokens without it; takes "
        "seconds",
    ),
]
DistilOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="STEPS",
        help="train the delta's values for so many steps, such as 100, so that answers to the texts of --text come "
        "close to the fine-tune's; takes minutes",
    ),
]
SeedOption = Annotated[int, typer.Option(help="seed of the method random and of --distil")]


@dataclass(frozen=True)
class DeltaRecipe:
    """How deltas are made, whatever the fine-tune.

    Attributes:
        chosen: the selection, given the bytes of factors where nothing else says how much to keep.
        most: bytes of the file; None where the selection says how much to keep.
        distil: steps; None: the values are not trained.
    """

    chosen: Callable[[int], Selection]
    most: int | None
    codec: Codec
    tensors: TensorFilter
    fit: bool
    distil: int | None
    seed: int
    cast: bool
    ignore_config: Sequence[str]

    @property
    def trains(self) -> bool:
        """Whether the delta's values are changed to do well on texts."""
        return self.fit or self.distil is not None

    def make(
        self, base: Checkpoint, tuned: Checkpoint, out: Path, texts: Sequence[Readable] | None, watch: Progress
    ) -> tuple[Delta, DeltaFile]:
        """Write the delta of a fine-tune to `out`.

        Args:
            texts: to fit or to distil on; None: there are none.
        """
        from ken_core import Extraction, deltafile
        from ken_core.distillation import distil as distilled
        from ken_core.file_size import usual_bytes, write_within
        from ken_core.scales import fit_scales

        def refined(delta: Delta) -> Delta:
            scaled = fit_scales(base, tuned, delta, texts, watch) if self.fit else delta
            if self.distil is None:
                return scaled
            return distilled(
                base, tuned, scaled, texts or (), self.distil, codec=self.codec, seed=self.seed, progress=watch
            )

        extraction = Extraction(base, tuned, cast=self.cast, ignore_config=self.ignore_config, progress=watch)
        if self.most is None:
            found = refined(extraction.delta(self.chosen(usual_bytes(base)), self.codec))
            return found, deltafile.write(found, base, out, self.codec, progress=watch)
        return write_within(
            extraction,
            base,
            self.most,
            out,
            self.codec,
            method=self.chosen(0).method,
            tensors=self.tensors,
            refine=refined,
            progress=watch,
        )


def delta_recipe(
    *,
    method: str | None,
    keep: float | None,
    file_size: str | None,
    energy: float | None,
    scope: str | None,
    k: int | None,
    codec: str | None,
    fit: bool,
    distil: int | None,
    only: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    outside: str,
    seed: int,
    cast: bool,
    ignore_config: list[str] | None,
) -> DeltaRecipe:
    """What the options say together; raises `typer.BadParameter` where they contradict each other."""
    tensors = tensor_filter(only, include, exclude, outside)
    named = method_of(method, keep, k)
    (stored,) = codecs_of([codec or ("int4" if named == "svd" else "zstd")])
    most = bytes_of(named, stored, file_size, energy, scope, keep is not None or k is not None)

    def chosen(nbytes: int) -> Selection:
        return selection(named, keep, scope, k, seed, tensors, energy, nbytes)

    chosen(0)  # checks the options before anything is opened
    return DeltaRecipe(chosen, most, stored, tensors, fit, distil, seed, cast, ignore_config or ())
