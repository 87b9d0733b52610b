"""A bridge with an address for each pod, in the network namespace of this process."""

from __future__ import annotations

import subprocess
from itertools import count
from pathlib import Path

BRIDGE = "pods"
GATEWAY = "10.77.0.1"
NAMES = Path("/run/netns")
_NOBODY = "02:00:00:00:00:fe"
"""A hardware address that no interface has: frames to it are lost without a word, as in a partition."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """Network namespaces with one interface each. They, and the bridge, end with this process's own namespaces."""

    def __init__(self) -> None:
        self._numbers = count(10)
        self._links: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        NAMES.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "netns", str(NAMES)], check=True)  # else names outlive this run
        ip("link", "set", "lo", "up")
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{GATEWAY}/16", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")

    def add(self, name: str) -> str:
        """A namespace of this name. Returns its address, which no pod had before."""
        number = next(self._numbers)
        link, address = f"veth{number}", f"10.77.{number // 250}.{number % 250 + 2}"
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", BRIDGE, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "address", "add", f"{address}/16", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "route", "add", "default", "via", GATEWAY)
        self._links[name], self.addresses[name] = link, address
        return address

    def remove(self, name: str) -> None:
        ip("link", "delete", self._links.pop(name))
        ip("netns", "delete", name)
        del self.addresses[name]

    def cut(self, name: str) -> None:
        """Cut a pod off from everything: what it sends and what it is sent is lost."""
        ip("link", "set", self._links[name], "nomaster")

    def mend(self, name: str) -> None:
        ip("link", "set", self._links[name], "master", BRIDGE)

    def part(self, name: str, other: str) -> None:
        """Lose everything that a pod sends to one other."""
        ip(
            "-n",
            name,
            "neighbour",
            "replace",
            self.addresses[other],
            "lladdr",
            _NOBODY,
            "dev",
            "eth0",
            "nud",
            "permanent",
        )

    def join(self, name: str, other: str) -> None:
        ip("-n", name, "neighbour", "delete", self.addresses[other], "dev", "eth0")
