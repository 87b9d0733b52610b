"""Commands through a server: a backend that is the server's client."""

from __future__ import annotations

from serving.cli.backend import Listing
from serving.client import Client


class ServerBackend(Client):
    """A `serving.cli.backend.Backend` on a server."""

    def listing(self) -> Listing:
        """The tasks as one replica knows them. A replica does not report the sizes of deltas."""
        tasks = self.tasks()
        return Listing(max((task.revision for task in tasks), default=0), tasks, {})
