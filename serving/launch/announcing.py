"""Announces to the person who starts a server what the server does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from serving.config import Settings

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Shows one line to the person at the terminal."""


def as_configured(settings: Settings, say: Say, level: int) -> Say:
    """`say` if logs are for people. If they are JSON, a function that logs each line as a record of `level`."""
    return say if settings.log_format == "human" else partial(_log.log, level)
