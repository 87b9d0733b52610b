"""Binds a port of Ray Serve to loopback if the whole cluster is on loopback.

Ray Serve opens a port in each replica for calls from other deployments. The port reads pickles from anybody who has the
cluster's token. Serve binds it to all addresses, and no setting of Serve or Ray changes that.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from serving.errors import StartError

_OPENER = "add_port_to_grpc_server"


def keep_to_loopback() -> None:
    """To be called in a replica before Serve opens the port. Does nothing in a cluster of several machines.

    Raises:
        StartError: this version of Ray Serve opens the port in an unknown way.
    """
    import ray
    from ray.serve._private import replica

    if not ip_address(ray.util.get_node_ip_address()).is_loopback:  # type: ignore[no-untyped-call]
        return
    if not hasattr(replica, _OPENER):
        raise StartError(
            "this version of ray opens the port between its deployments in an unknown way, so others could reach it; "
            "install the version of ray that constraints.txt names"
        )
    setattr(replica, _OPENER, _on_loopback(getattr(replica, _OPENER)))


def _on_loopback(opened: Callable[[Any, str], int]) -> Callable[[Any, str], int]:
    def opened_on_loopback(server: Any, address: str) -> int:
        return opened(server, f"127.0.0.1:{address.rpartition(':')[2]}")

    return opened_on_loopback
