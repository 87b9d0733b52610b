"""Looks at a server: its tasks and replicas over HTTP, and each replica's metrics at its own port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from serving.client import ApiError, Client, Replica, Retries
from serving.monitoring.activity import Look
from serving.monitoring.readings import Reading
from serving.monitoring.scraping import Scraper

_SECONDS = 15.0
"""For each question; a server that is lost refuses the connection at once."""


class Watcher:
    """Looks at one server. A ``with`` block closes its connections.

    Args:
        url: of the server.
        api_key: with the scope `predict`.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url.rstrip("/")
        self._client = Client(url, api_key, timeout=_SECONDS, retries=Retries(attempts=1))
        # apart from the client, so that the API key is sent to the server alone
        self._metrics = Scraper()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def look(self, where: Sequence[str] = ()) -> Look:
        """Look at the server now.

        Args:
            where: tasks to ask for the tier of.

        Raises:
            ClientError: the server does not answer, or refuses the key.
        """
        replicas, tasks = self._client.replicas(), [task.name for task in self._client.tasks()]
        readings, unread = self._read(replicas)
        known = [task for task in where if task in tasks]
        return Look(replicas, tasks, readings, unread, {task: tier for task in known if (tier := self._tier(task))})

    def _read(self, replicas: Sequence[Replica]) -> tuple[Mapping[str, Reading], Mapping[str, str]]:
        """The replicas' readings, and why others are missing.

        A replica whose own port cannot be reached may still be the one that answers at the server's URL.
        """
        readings, unread = self._metrics.read(replicas)
        if unread:
            found_there = self._metrics.fetched(f"{self._url}/metrics")
            if not isinstance(found_there, str):
                for name in found_there.keys() & unread.keys():
                    readings[name] = found_there[name]
                    del unread[name]
        return readings, unread

    def _tier(self, task: str) -> str | None:
        """Where the replica that answers holds a task's live version."""
        try:
            found = self._client.task(task)
        except ApiError:  # deleted meanwhile
            return None
        return found.tiers.get(found.aliases.get("live", ""))
