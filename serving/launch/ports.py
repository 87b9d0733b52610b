"""Finds free TCP ports on this machine."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

_random = random.SystemRandom()
"""Two processes whose `random` was seeded alike, as training seeds it, would choose the same ports."""


def can_listen(host: str, port: int) -> OSError | None:
    """The error that prevents listening on an address; None if it is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def free_port() -> int:
    """A TCP port that nothing listens on at present, and that the kernel gives to no other process."""
    return next(free_ports())


def free_ports() -> Iterator[int]:
    """Free ports below the kernel's ephemeral range: the kernel gives them to no other process before they are used."""
    candidates = _random.sample(range(20000, 30000), 1000)
    return (port for port in candidates if can_listen("0.0.0.0", port) is None)  # noqa: S104 - only tried


def free_range(length: int) -> int:
    """The first of `length` + 1 consecutive free ports of the loopback interface."""
    while True:
        first = _random.randrange(10000, 19000, length)
        if all(can_listen("127.0.0.1", port) is None for port in range(first, first + length + 1)):
            return first
