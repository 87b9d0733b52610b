"""Sockets that a server and everything under it listen on."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

import psutil

from serving.launch.server_process import ServerProcess


@dataclass(frozen=True)
class Listening:
    """One TCP socket of one process."""

    process: str
    ip: str
    port: int

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        ip = ip_address(self.ip)
        mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
        return (mapped or ip).is_loopback


def listening(server: ServerProcess) -> set[Listening]:
    """All TCP sockets, of IPv4 and IPv6, that a server's processes listen on."""
    root = psutil.Process(server.process.pid)
    found = set()
    for process in [root, *root.children(recursive=True)]:
        try:
            name, connections = " ".join(process.cmdline())[:120], process.net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        found |= {Listening(name, *c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def reachable(server: ServerProcess) -> dict[int, str]:
    """Ports that other machines can reach, and the processes that listen there."""
    return {one.port: one.process for one in listening(server) if not one.on_loopback}
