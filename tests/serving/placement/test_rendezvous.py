"""The order of replicas for a key: the same everywhere, and stable when replicas come and go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

from serving.placement.rendezvous import Weights, order

REPLICAS = [f"node-{i}" for i in range(10)]
KEYS = [f"task-{i}" for i in range(2000)]


def test_the_order_has_every_replica_once():
    assert sorted(order("trec", REPLICAS)) == sorted(REPLICAS)


def test_the_order_does_not_depend_on_how_the_replicas_were_listed():
    assert order("trec", REPLICAS) == order("trec", set(REPLICAS)) == order("trec", reversed(REPLICAS))


def test_the_order_is_the_same_in_every_process():
    code = "from serving.placement.rendezvous import order; print(order('trec', [f'node-{i}' for i in range(10)]))"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert orders == {str(order("trec", REPLICAS))}


def test_a_lost_replica_leaves_the_order_of_the_others():
    for key in KEYS[:100]:
        whole = order(key, REPLICAS)
        assert order(key, REPLICAS[:-1]) == [name for name in whole if name != REPLICAS[-1]]


def test_keys_spread_evenly_over_replicas_and_over_their_successors():
    firsts = Counter(tuple(order(key, REPLICAS)[:2]) for key in KEYS)
    by_first = Counter(first for first, _ in firsts.elements())
    assert all(140 < by_first[name] < 260 for name in REPLICAS)  # 200 each, within 4 deviations
    assert len(firsts) == 90  # every other replica is the successor of some keys


def test_positions_are_those_of_the_listed_names():
    names = sorted(REPLICAS)
    assert [names[i] for i in Weights(names).order("trec")] == order("trec", REPLICAS)


def test_without_replicas_the_order_is_empty():
    assert order("trec", []) == []
