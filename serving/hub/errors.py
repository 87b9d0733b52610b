"""The error of everything that is asked of the Hub."""

from __future__ import annotations

from ken_core.errors import KenError


class HubError(KenError):
    """The Hub did not do what was asked, or holds something else than expected."""
