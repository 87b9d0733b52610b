"""Mixed batches on bases whose memory the process may only read: ``python write_protected.py BASE TUNED BASE TUNED``.

In a process of its own, since a write ends it. The last thing it does is such a write.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import sys

import torch

from ken_core import ResidentModel, extract, open_base, open_tuned
from ken_core.delta import Delta
from ken_core.entries import LowRank
from ken_core.mixing.model import MixedModel
from ken_core.resident import Attached
from ken_core.selection import Budget, Selection

_PROT_READ = 1


def main(*folders: str) -> None:
    kept = []  # nobody may get memory that is still protected
    for base, tuned in zip(folders[::2], folders[1::2], strict=True):
        kept.append(_run(base, tuned))
        print("ran", flush=True)
    resident, attached = kept[0]
    resident.activate(attached[0])


def _run(base: str, tuned: str) -> tuple[ResidentModel, list[Attached]]:
    whole = extract(open_base(base), open_tuned(tuned), Selection("magnitude", Budget("global", 0.3)))
    resident = ResidentModel(open_base(base))
    mixed = MixedModel(resident)
    attached = [mixed.attach(delta) for delta in (whole, _with_factors(whole), _with_own(whole))]
    before = {dtype: arena.clone() for dtype, arena in resident.arenas.items()}
    for arena in resident.arenas.values():
        _protect(arena)
    ids = torch.arange(8 * 9).view(8, 9) % 80 + 5
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        for rows in ((1, 1, 6), (3, 4, 1)):
            mixed.run(list(zip(attached, rows, strict=True)), batch)
    assert all(torch.equal(arena, before[dtype]) for dtype, arena in resident.arenas.items())
    return resident, attached


def _with_factors(delta: Delta) -> Delta:
    """Its matrices are shifted by factors."""
    matrices = {n: e.shape for n, e in delta.sparse.items() if len(e.shape) == 2}
    factors = {n: LowRank(torch.ones(1, columns), torch.ones(rows, 1), 0.1) for n, (rows, columns) in matrices.items()}
    return dataclasses.replace(
        delta, lowrank=factors, sparse={n: e for n, e in delta.sparse.items() if n not in matrices}
    )


def _with_own(delta: Delta) -> Delta:
    """One of its embeddings is its own altogether."""
    name = next(n for n in delta.sparse if "embed" in n or n == "wte.weight")
    own = torch.randn(delta.sparse[name].shape)
    return dataclasses.replace(delta, dense={name: own}, sparse={n: e for n, e in delta.sparse.items() if n != name})


def _protect(arena: torch.Tensor) -> None:
    """All pages that are the arena's alone."""
    page = mmap.PAGESIZE
    first = -(-arena.data_ptr() // page) * page
    size = (arena.data_ptr() + arena.nbytes) // page * page - first
    assert size > 0, "an arena of less than a page"
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(first), ctypes.c_size_t(size), _PROT_READ):
        raise OSError(ctypes.get_errno(), "mprotect")


if __name__ == "__main__":
    main(*sys.argv[1:])
