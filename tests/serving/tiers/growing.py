"""A process that puts a folder of deltas on the device, keeps them all, and says how much it grew meanwhile.

Run by test_memory_growth, as a process of its own so that nothing else allocates beside it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import sys
from concurrent.futures import Future
from pathlib import Path

import psutil
import torch

from ken_core import ResidentModel, open_base
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.device import DeviceTiers
from serving.tiers.files import DeltaFiles

_WARM = 4
"""Deltas attached before the first look: code is loaded and the base's map read by then."""
_NO_LIMIT = 1 << 40


def resident_bytes() -> int:
    """Memory that is this process's alone, with what the allocator keeps for later handed back where it can be."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return psutil.Process().memory_full_info().uss


def main(base: str, folder: Path) -> None:
    torch.set_num_threads(1)
    resident = ResidentModel(open_base(base))
    files = DeltaFiles(folder, _NO_LIMIT, None)
    cache = DeltaCache(files, 0, resident.checkpoint, resident.fingerprint.digest, lambda delta: False)
    tiers = DeviceTiers(resident, cache, Metrics("growing"), _NO_LIMIT, 0, lambda work: Future())
    held = []

    def hold(digests: list[str]) -> None:
        for digest in digests:
            held.append(asyncio.run(tiers.acquire(digest)))
            resident.activate(held[-1].attached)
        resident.revert()

    digests = sorted(path.name for path in folder.iterdir())
    hold(digests[:_WARM])
    bytes_before, packed_before = resident_bytes(), tiers.packed_nbytes
    hold(digests[_WARM:])
    grew, packed = resident_bytes() - bytes_before, tiers.packed_nbytes - packed_before
    print(json.dumps({"grew": grew, "packed": packed, "tasks": len(held), "base_intact": resident.verify() == []}))
    tiers.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
