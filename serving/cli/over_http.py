"""Commands through a server: its client, as it is."""

from __future__ import annotations

from serving.cli.backend import Listing
from serving.client import Client


class ServerBackend(Client):
    """A `serving.cli.backend.Backend` on a server."""

    def listing(self) -> Listing:
        """Tasks as one replica knows them; it does not tell bytes."""
        tasks = self.tasks()
        return Listing(max((task.revision for task in tasks), default=0), tasks, {})
