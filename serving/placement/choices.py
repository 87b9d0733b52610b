"""Whom a proxy asks for a task: names of replicas, in order. Imports little, since HAProxy's start waits for it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

BUCKETS = 256
"""Tasks without a place are divided among so many buckets, each of which has a place of its own."""

Choices = tuple[tuple[str, ...], ...]
"""Replicas to ask: a home, and behind it the one that takes over. A task with several homes has several of these."""


def bucket_of(task: str) -> int:
    """The bucket of a task, as HAProxy computes it too: crc32, as in zlib, of its UTF-8 name."""
    return zlib.crc32(task.encode()) % BUCKETS


def bucket_key(bucket: int) -> str:
    """The key of a bucket among the keys of tasks. No task can have this name."""
    return f"@{bucket}"


def of_servers(asked: Mapping[str, Choices], servers: Mapping[str, str]) -> dict[str, Choices]:
    """The same for the servers of a proxy, by its own names. Replicas that it does not know are left out.

    Args:
        servers: the proxy's name of each replica.
    """
    named = {
        key: tuple(filter(None, (tuple(servers[name] for name in one if name in servers) for one in choices)))
        for key, choices in asked.items()
    }
    return {key: choices for key, choices in named.items() if choices}
