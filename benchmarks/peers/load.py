"""The load that clients send, their replies, and figures of them.

This module imports nothing heavy, since the clients' process imports it too.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

Draw = Literal["uniform", "Zipf"]


@dataclass(frozen=True)
class Request:
    """One request as bytes, the port it goes to, and the indices of the tasks and the text it asks about."""

    tasks: tuple[int, ...]
    text: int
    port: int
    data: bytes


@dataclass(frozen=True)
class Load:
    """Requests in the order they are sent.

    Args:
        order: indices into `requests`; every client takes the next indices from it.
        lead: seconds at the start that do not count.
        seconds: how long to send after the lead, repeating `order`; None sends `order` once.
    """

    requests: Sequence[Request]
    order: Sequence[int]
    clients: int
    lead: float
    seconds: float | None
    at_once: int = 1
    """How many requests a client sends at once, on as many connections; it then waits for all their answers."""


@dataclass(frozen=True)
class Reply:
    """One answer. `status` is 0 if none came; `sent` is in seconds since the end of the lead."""

    request: int
    status: int
    sent: float
    seconds: float
    body: bytes


@dataclass(frozen=True)
class Replies:
    """All answers, and the processor seconds that the clients' process took in `wall` seconds.

    Requests that were sent at once have their answers one behind the other.
    """

    replies: list[Reply]
    processor: float
    wall: float


LOAD, REPLIES = TypeAdapter(Load), TypeAdapter(Replies)
"""Loads and replies pass between the two processes as JSON, with bytes as UTF-8 text."""


@dataclass(frozen=True)
class Figures:
    """Requests answered a second, latencies in seconds, and the share of one core that the clients took."""

    rate: float
    p50: float
    p99: float
    clients_share: float


def draw(tasks: Sequence[int], texts: Sequence[int], how: Draw, count: int, seed: int) -> list[tuple[int, int]]:
    """Random pairs (task, text). Texts are drawn uniformly; tasks too, or by 1 / rank in the order of `tasks`."""
    dice = random.Random(seed)
    weights = [1.0 if how == "uniform" else 1.0 / rank for rank in range(1, len(tasks) + 1)]
    return [(task, dice.choice(texts)) for task in dice.choices(tasks, weights, k=count)]


def post(port: int, path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of an HTTP/1.1 POST request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def send(load: Load) -> Replies:
    """Send a load from clients in a process of their own, and wait for all replies."""
    command = [sys.executable, "-m", "benchmarks.peers.clients"]
    with tempfile.TemporaryFile() as replies:  # megabytes that uvloop's process writes into a pipe may be cut off
        subprocess.run(command, input=LOAD.dump_json(load), stdout=replies, check=True)
        replies.seek(0)
        return REPLIES.validate_json(replies.read())


def figures(answered: Replies, seconds: float | None) -> Figures:
    """Figures of one run: the rate of answers within its time, and latencies of all requests in flight in that time."""
    counted = [r for r in answered.replies if r.sent + r.seconds >= 0]
    end = seconds if seconds is not None else max(r.sent + r.seconds for r in counted)
    in_time = sum(1 for r in answered.replies if 0 <= r.sent + r.seconds <= end)
    latencies = sorted(r.seconds for r in counted)
    share = answered.processor / answered.wall
    return Figures(in_time / end, _quantile(latencies, 0.5), _quantile(latencies, 0.99), share)


def seconds_at_once(answered: Replies, at_once: int) -> list[float]:
    """Of requests that were sent at once after the lead: from the first one's sending to the last one's answer."""
    replies = answered.replies
    together = [replies[i : i + at_once] for i in range(0, len(replies), at_once)]
    spans = [(min(r.sent for r in some), max(r.sent + r.seconds for r in some)) for some in together]
    return [end - begin for begin, end in spans if begin >= 0]


def median(runs: Sequence[Figures]) -> Figures:
    """The median of each figure over repetitions."""
    columns = zip(*((r.rate, r.p50, r.p99, r.clients_share) for r in runs), strict=True)
    return Figures(*(statistics.median(column) for column in columns))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
