"""Errors of tasks that are answered in this process."""

from __future__ import annotations

from serving.errors import UnsupportedKindError


class GeneratesTextError(UnsupportedKindError):
    """A language model was to answer in this process, where no texts are generated."""
