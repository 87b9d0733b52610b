"""The state of one call while it is sent: its deadline, its attempts and the pauses between them. The clients send."""

from __future__ import annotations

import random
import time
from typing import Any

import httpx

from serving.client.calls import Call
from serving.client.errors import ClientError, unreachable
from serving.client.retries import Retries

_CONNECT_SECONDS = 10.0


class Sending:
    """Tells a client how to send a call until it is answered or given up.

    Args:
        where: the server's URL, for error messages.
        seconds: until the call is given up, all attempts together; a call with its own deadline ignores it.

    Attributes:
        call: that is sent.
    """

    def __init__(self, call: Call[Any], where: str, seconds: float, retries: Retries) -> None:
        self.call = call
        self._where = where
        self._retries = retries
        self._began = time.monotonic()
        self._seconds = (seconds if call.seconds is None else call.seconds) + call.patience
        self._sent = 0

    def attempt(self) -> dict[str, Any]:
        """Arguments for the `request` method of httpx, for the next attempt."""
        self._sent += 1
        call, remaining = self.call, max(self._remaining(), 0.001)
        headers = {**call.headers, "X-Request-Timeout-Ms": str(max(1, int(remaining * 1000)))}
        if call.content is not None:
            headers["Content-Type"] = call.media_type
        timeout = httpx.Timeout(remaining, connect=min(remaining, _CONNECT_SECONDS))
        sent = {"method": call.method, "url": call.path, "content": call.content}
        return {**sent, "params": call.query, "headers": headers, "timeout": timeout}

    def pause(self, error: ClientError | httpx.RequestError) -> float:
        """Seconds until the next attempt. Raises the error if there is no next attempt."""
        failure = error if isinstance(error, ClientError) else self.lost(error)
        pause = self._retries.pause(
            failure,
            repeatable=self.call.repeatable,
            sent=self._sent,
            remaining=self._remaining(),
            jitter=random.random(),  # noqa: S311 - not for secrets
        )
        if pause is None:
            raise failure from (None if failure is error else error)
        return pause

    def lost(self, error: httpx.RequestError) -> ClientError:
        """The error for a connection that failed."""
        return unreachable(error, self._where, time.monotonic() - self._began)

    def _remaining(self) -> float:
        return self._began + self._seconds - time.monotonic()
