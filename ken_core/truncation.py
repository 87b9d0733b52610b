"""Method `svd`: each matrix's shift cut off after its largest singular components, all matrices by one threshold.

What fine-tuning adds to a matrix has nearly all its energy in few directions, so two thin factors keep it in a small
part of the bytes. An embedding may keep whole rows instead, since fine-tuning moves only the rows of tokens it has
seen. What is no matrix is kept whole: vectors are a thousandth of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch

from ken_core.blocks import rows_of
from ken_core.codings import CODE_BITS, Codec
from ken_core.entries import LowRank, Sparse, kept
from ken_core.progress import Progress, Stage
from ken_core.rank_budget import Choice, Form, Offer, with_energy, within_bytes
from ken_core.selection import Budget, Pair
from ken_core.singular import Spectrum, factors, spectrum

Entry = Sparse | LowRank

_FACTOR_BITS = 16
"""Of each number of a factor, unless a lossy codec stores it in fewer."""
_SCALE_BYTES = 2 * 4
"""Of the sizes that belong to one component's two columns."""


class Decomposition:
    """The spectra of all matrices that fine-tuning changed, from which budgets of any size are cut.

    Args:
        names: tensors that share a budget.
        embeddings: those of them that have a row for each token or place.
        pair: returns (base, tuned) for a name; it is called several times.
        progress: told which tensor is being decomposed.
    """

    def __init__(
        self, names: Collection[str], embeddings: Collection[str], pair: Callable[[str], Pair], progress: Progress
    ) -> None:
        self._pair = pair
        self._names = sorted(names)
        self._embeddings = embeddings
        self._spectra: dict[str, Spectrum] = {}
        matrices = [name for name in self._names if pair(name)[0].ndim == 2]
        for done, name in enumerate(matrices):
            progress(Stage("decomposing", name, done, len(matrices)))
            self._spectra[name] = spectrum(pair(name))

    def entries(self, budget: Budget, codec: Codec) -> Iterator[tuple[str, Entry]]:
        """The entries of all tensors that keep anything.

        Args:
            budget: bytes of all factors and rows, or a share of the energy of all matrices.
            codec: how the delta will be written. Bytes depend on it.
        """
        chosen = self._chosen(budget, codec)
        for name in self._names:
            ours, theirs = self._pair(name)
            if name not in chosen:
                yield name, kept(ours, theirs, np.ones(ours.numel(), np.bool_))
            elif chosen[name].count:
                yield name, _entry((ours, theirs), self._spectra[name], chosen[name], codec)

    def _chosen(self, budget: Budget, codec: Codec) -> dict[str, Choice]:
        offers = {
            name: _offers(found, self._pair(name)[0].shape, name in self._embeddings, codec)
            for name, found in self._spectra.items()
        }
        if not offers:
            return {}
        if budget.nbytes is not None:
            return within_bytes(offers, budget.nbytes)
        assert budget.energy is not None
        return with_energy(offers, budget.energy * sum(found.energy for found in self._spectra.values()))


def _offers(found: Spectrum, shape: tuple[int, ...], is_embedding: bool, codec: Codec) -> dict[Form, Offer]:
    bits = CODE_BITS.get(codec, _FACTOR_BITS)
    offers: dict[Form, Offer] = {"factors": Offer(found.values**2, sum(shape) * bits / 8 + _SCALE_BYTES)}
    if is_embedding and shape[0] >= shape[1]:
        offers["rows"] = Offer(np.sort(found.energies)[::-1], shape[1] * bits / 8)
    return offers


def _entry(pair: Pair, found: Spectrum, choice: Choice, codec: Codec) -> Entry:
    if choice.form == "factors":
        a, b = factors(pair, found, choice.count)
        dtype = torch.float32 if codec in CODE_BITS else torch.float16
        return LowRank(a.to(dtype), b.to(dtype), scale=1.0)
    largest = np.argsort(-found.energies, kind="stable")[: choice.count]
    mask = np.zeros(rows_of(pair[0]).shape, np.bool_)
    mask[largest] = True
    return kept(*pair, mask.reshape(-1))
