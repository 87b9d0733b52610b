"""Reads replicas' metrics over HTTP, each at the replica's own port."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence

import httpx

from serving.client import Replica
from serving.monitoring.readings import Reading, readings_of

_SECONDS = 2.0
"""That one replica's metrics may take, from the connection to their last byte."""
_MOST_BYTES = 16 << 20
_TEXT = ("text/plain", "application/openmetrics-text")
_AT_ONCE = 16
_BY_STAGE, _TOTAL = "ken_request_seconds_", 'stage="total"'


class Scraper:
    """Reads metrics. It sends no API key: replicas' own ports ask for none.

    An address that a replica once reported may be another program's by now, so what comes from there is bounded in
    bytes and in time.
    """

    def __init__(self) -> None:
        self._tls = ssl.create_default_context()  # of each client, and slow to make

    def read(self, replicas: Sequence[Replica]) -> tuple[dict[str, Reading], dict[str, str]]:
        """The replicas' readings, and why others are missing, by the replicas' names."""
        readings: dict[str, Reading] = {}
        unread: dict[str, str] = {}
        found = self._fetched([f"http://{replica.metrics}/metrics" for replica in replicas if replica.metrics])
        for replica in replicas:
            one = _of(replica, found)
            if isinstance(one, Reading):
                readings[replica.name] = one
            else:
                unread[replica.name] = one
        return readings, unread

    def fetched(self, url: str) -> Mapping[str, Reading] | str:
        """The readings at a URL by the replicas that they name; or why there are none."""
        return self._fetched([url])[url]

    def _fetched(self, urls: Sequence[str]) -> dict[str, Mapping[str, Reading] | str]:
        texts = asyncio.run(self._texts(urls)) if urls else []
        return {url: _read(url, *text) for url, text in zip(urls, texts, strict=True)}

    async def _texts(self, urls: Sequence[str]) -> list[tuple[str | Exception, float]]:
        """For each URL its text, or why there is none, and when that was known."""
        at_once = asyncio.Semaphore(_AT_ONCE)
        patience = httpx.Timeout(_SECONDS, connect=_SECONDS / 2)
        async with httpx.AsyncClient(timeout=patience, verify=self._tls, trust_env=False) as client:

            async def one(url: str) -> tuple[str | Exception, float]:
                async with at_once:
                    try:
                        async with asyncio.timeout(_SECONDS):
                            return await _text(client, url), time.monotonic()
                    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
                        return error, time.monotonic()

            return await asyncio.gather(*map(one, urls))


async def _text(client: httpx.AsyncClient, url: str) -> str:
    """Raises `ValueError` for what cannot be a replica's metrics, and what httpx raises."""
    read = bytearray()
    async with client.stream("GET", url) as answer:
        answer.raise_for_status()
        if not answer.headers.get("content-type", "").startswith(_TEXT):
            raise ValueError("this is another sort of text")
        async for some in answer.aiter_bytes():
            read += some
            if len(read) > _MOST_BYTES:
                raise ValueError("this is too long")
    return read.decode()


def _read(url: str, text: str | Exception, when: float) -> Mapping[str, Reading] | str:
    try:
        if isinstance(text, Exception):
            raise text
        return readings_of(_without_stages(text), when)
    except TimeoutError:
        return f"{url} does not answer within {_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{url} cannot be reached from here ({str(error) or type(error).__name__})"
    except ValueError:
        return f"{url} answers with something else than a replica's metrics"


def _of(replica: Replica, found: Mapping[str, Mapping[str, Reading] | str]) -> Reading | str:
    if not replica.metrics:
        return "it reports no port for them"
    one = found[f"http://{replica.metrics}/metrics"]
    if isinstance(one, str):
        return one
    return one.get(replica.name) or f"{replica.metrics} is another replica's port"


def _without_stages(text: str) -> str:
    """Metrics without the times of requests by stage, of which only the total is read: half of the lines, and parsing
    is slow."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_BY_STAGE) or _TOTAL in line)
