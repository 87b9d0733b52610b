"""Closed-loop clients in a process of their own: each sends its next requests when its last ones were answered.

    python -m benchmarks.peers.clients < load.json > replies.json

Requests are bytes made beforehand, and answers are kept as they came, so that the server is measured and not the
clients: this process parses only HTTP's framing, and reports how much processor time it took itself.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httptools
import uvloop

from benchmarks.peers.load import LOAD, REPLIES, Load, Replies, Reply

_GRACE_SECONDS = 60.0
"""How long requests that were sent in time may take to be answered."""
_ONCE_SECONDS = 900.0
"""How long a list of requests that is sent once may take in all."""


class _Connection(asyncio.Protocol):
    """One kept-alive connection with one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        assert self._transport is not None
        if self._lost:
            return 0, b""
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        if not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_result((0, b""))

    @property
    def usable(self) -> bool:
        return not self._lost


@dataclass
class _Run:
    """The state that all clients of a run share."""

    load: Load
    begin: float
    queue: Iterator[int] = field(init=False)
    replies: list[Reply] = field(default_factory=list)

    def __post_init__(self) -> None:
        order = self.load.order
        self.queue = iter(order) if self.load.seconds is None else itertools.cycle(order)

    def next(self) -> list[int]:
        if self.load.seconds is not None and time.perf_counter() >= self.begin + self.load.seconds:
            return []
        return list(itertools.islice(self.queue, self.load.at_once))


Connections = dict[int, _Connection]
"""One for each port."""


async def _client(run: _Run) -> None:
    places: list[Connections] = [{} for _ in range(run.load.at_once)]
    while indices := run.next():
        asked = [_ask(run, index, connections) for index, connections in zip(indices, places, strict=False)]
        # one request alone needs no task of its own, which would cost this process time
        run.replies += [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)


async def _ask(run: _Run, index: int, connections: Connections) -> Reply:
    request = run.load.requests[index]
    connection = connections.get(request.port)
    sent = time.perf_counter()
    status, body = 0, b""
    try:
        if connection is None or not connection.usable:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", request.port)
            connections[request.port] = connection
        status, body = await connection.ask(request.data)
    except OSError:
        await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        run.replies.append(Reply(index, 0, sent - run.begin, time.perf_counter() - sent, b""))
        raise
    return Reply(index, status, sent - run.begin, time.perf_counter() - sent, body)


async def _send(load: Load) -> Replies:
    began = time.perf_counter()
    run = _Run(load, began + load.lead)
    clients = [asyncio.create_task(_client(run)) for _ in range(load.clients)]
    limit = _ONCE_SECONDS if load.seconds is None else load.lead + load.seconds + _GRACE_SECONDS
    _, late = await asyncio.wait(clients, timeout=limit)
    for client in late:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    for client in clients:
        if not client.cancelled() and (error := client.exception()) is not None:
            raise error
    return Replies(run.replies, time.process_time(), time.perf_counter() - began)


if __name__ == "__main__":
    sys.stdout.buffer.write(REPLIES.dump_json(uvloop.run(_send(LOAD.validate_json(sys.stdin.buffer.read())))))
