"""The functions that a text may call, or must call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Function:
    """A function.

    Attributes:
        parameters: the JSON schema of its arguments, which are an object.
        at: the part of the request that says so.
    """

    name: str
    parameters: Mapping[str, Any]
    at: str


@dataclass(frozen=True)
class Functions:
    """What a request says of calls.

    Attributes:
        some: that may be called, at least one.
        forced: whether the text is a call; else the model decides.
        several: whether one text may have several calls.
        at: the part of the request that asks for calls.
    """

    some: Sequence[Function]
    forced: bool
    several: bool
    at: str = "tools"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(one.name for one in self.some)
