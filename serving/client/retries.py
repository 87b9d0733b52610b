"""Decides whether and when a failed call is sent again. Pure: no clock, no network."""

from __future__ import annotations

from dataclasses import dataclass

from serving.client.errors import ApiError, ClientError, UnreachableError

_TRANSIENT = frozenset({429, 502, 503})
"""502 means that a proxy lost the server it had passed the call to. 504 is not in the set: the deadline has passed."""
_REFUSED = frozenset({429, 503})


@dataclass(frozen=True)
class Retries:
    """When a call is sent again. Times are seconds.

    A call is sent again after 429, 502, 503 and lost connections, within its deadline. A call that must not be done
    twice, such as a rollback, is sent again only if it certainly was not done: nothing was sent, or the server
    refused it and said when to come back.

    Attributes:
        attempts: how often a call is sent at most; with 1 it is never sent again.
        first: the pause before the second attempt; each later pause is twice as long as the one before.
        longest: the longest pause. If the server's ``Retry-After`` asks for a longer one, the call fails at once:
            a retry before that time would only add to the load.
    """

    attempts: int = 4
    first: float = 0.1
    longest: float = 20.0

    def pause(
        self, error: ClientError, *, repeatable: bool, sent: int, remaining: float, jitter: float
    ) -> float | None:
        """Seconds until a failed call is sent again; None if it is not.

        Args:
            repeatable: whether doing the call twice has the same effect as doing it once.
            sent: how often the call was sent.
            remaining: seconds to the call's deadline.
            jitter: a random number from 0 to 1, so that many clients do not retry at the same moment.
        """
        if sent >= self.attempts or not _transient(error) or not (repeatable or _surely_not_done(error)):
            return None
        pause = self._pause(error, sent, jitter)
        return pause if pause is not None and pause < remaining else None

    def _pause(self, error: ClientError, sent: int, jitter: float) -> float | None:
        asked = error.retry_after if isinstance(error, ApiError) else None
        if asked is None:
            return min(self.longest, self.first * 2.0 ** (sent - 1)) * (1 + jitter) / 2
        return asked + self.first * jitter if asked <= self.longest else None


STANDARD = Retries()


def _transient(error: ClientError) -> bool:
    return isinstance(error, UnreachableError) or (isinstance(error, ApiError) and error.status in _TRANSIENT)


def _surely_not_done(error: ClientError) -> bool:
    if isinstance(error, ApiError):
        return error.status in _REFUSED and error.retry_after is not None
    return isinstance(error, UnreachableError) and not error.sent
