"""What metrics and traces tell of one question to one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Measured:
    """A question to a task, from its arrival to its answer.

    Attributes:
        task, digest: None where the question did not come so far as to be resolved.
        code: HTTP status; 499 where the client left first.
        broken: the status of the failure that ended an answer whose beginning was sent already; `code` becomes it.
        seconds: from arrival to answer.
        stages: names and seconds of the parts of its way, for an answer that has them; each part begins where the one
            before ended.
    """

    task: str | None = None
    digest: str | None = None
    code: int = 500
    broken: int | None = None
    seconds: float = 0.0
    stages: Sequence[tuple[str, float]] = ()
