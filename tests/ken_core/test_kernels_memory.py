"""Switching makes no second copy of the weights, not even for a moment, as counted in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import numpy as np
import torch
from ken_core.kernels import Segment, exchange_for, pack, switch_for

torch.set_num_threads(1)
CPU, DTYPE, WEIGHTS = torch.device("cpu"), torch.float32, 100_000_000
exchange, switch = exchange_for(CPU, DTYPE), switch_for(CPU, DTYPE)

def delta(byte):
    positions = np.full(WEIGHTS // 8, byte, np.uint8)
    return pack([Segment(0, positions, np.zeros(WEIGHTS // 8, np.uint32))], DTYPE, CPU)

first, second = delta(1), delta(2)
weights = torch.ones(WEIGHTS)  # after the deltas: the peak so far is what is held now

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
exchange(weights, first)
switch(weights, first, second)
exchange(weights, second)
print(weights.nbytes, before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")
def test_an_exchange_and_a_switch_take_no_memory_of_the_weights_size():
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    arena, before, after = map(int, ended.stdout.split())
    assert before > arena
    assert after - before < arena / 40
