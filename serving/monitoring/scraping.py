"""Reads replicas' metrics over HTTP, each at the replica's own port."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from serving.client import Replica
from serving.monitoring.readings import Reading, readings_of

_SECONDS = 5.0
_CONNECT_SECONDS = 1.0
_AT_ONCE = 16
_BY_STAGE, _TOTAL = "ken_request_seconds_", 'stage="total"'


class Scraper:
    """Reads metrics. It sends no API key: replicas' own ports ask for none."""

    def __init__(self) -> None:
        self._http = httpx.Client(timeout=httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS))

    def close(self) -> None:
        self._http.close()

    def read(self, replicas: Sequence[Replica]) -> tuple[dict[str, Reading], dict[str, str]]:
        """The replicas' readings, and why others are missing, by the replicas' names."""
        readings: dict[str, Reading] = {}
        unread: dict[str, str] = {}
        if not replicas:
            return readings, unread
        with ThreadPoolExecutor(min(_AT_ONCE, len(replicas))) as threads:
            for replica, found in zip(replicas, threads.map(self._own_port, replicas), strict=True):
                if isinstance(found, Reading):
                    readings[replica.name] = found
                else:
                    unread[replica.name] = found
        return readings, unread

    def fetched(self, url: str) -> Mapping[str, Reading] | str:
        """The readings at a URL by the replicas that they name; or why there are none."""
        try:
            answer = self._http.get(url)
            answer.raise_for_status()
            return readings_of(_without_stages(answer.text), time.monotonic())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{url} cannot be reached from here ({str(error) or type(error).__name__})"
        except ValueError:
            return f"{url} answers with something else than a replica's metrics"

    def _own_port(self, replica: Replica) -> Reading | str:
        if replica.metrics is None:
            return "it reports no port for them"
        found = self.fetched(f"http://{replica.metrics}/metrics")
        if isinstance(found, str):
            return found
        return found.get(replica.name) or f"{replica.metrics} is another replica's port"


def _without_stages(text: str) -> str:
    """Metrics without the times of requests by stage, of which only the total is read: half of the lines, and parsing
    is slow."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_BY_STAGE) or _TOTAL in line)
