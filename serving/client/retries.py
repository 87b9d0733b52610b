"""Whether a call that failed is sent again, and when. Pure: no clock, no network."""

from __future__ import annotations

from dataclasses import dataclass

from serving.client.errors import ApiError, ClientError, UnreachableError

_TRANSIENT = frozenset({429, 502, 503})
"""502: a proxy lost the server it had passed the call to. 504 is not among them: the call's own time is over."""
_REFUSED = frozenset({429, 503})


@dataclass(frozen=True)
class Retries:
    """When a call is sent again. Times are seconds.

    A call is repeated after 429, 502, 503 and lost connections, within its deadline. One that must not be done
    twice (a rollback, say) only if it certainly was not done at all: nothing was sent, or the server refused it
    and said when to come back.

    Attributes:
        attempts: how often a call is sent at most; 1 is never again.
        first: the pause before the second attempt; each later one is twice as long.
        longest: no pause is longer. Where the server's ``Retry-After`` is, the call fails at once: coming
            earlier than asked would only add to the load.
    """

    attempts: int = 4
    first: float = 0.1
    longest: float = 20.0

    def pause(
        self, error: ClientError, *, repeatable: bool, sent: int, remaining: float, jitter: float
    ) -> float | None:
        """Seconds until a failed call may be sent again, None where it may not.

        Args:
            repeatable: doing the call twice is as good as once.
            sent: how often it was sent.
            remaining: seconds to the call's deadline.
            jitter: a random number from 0 to 1, so that many clients do not come back at the same moment.
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
