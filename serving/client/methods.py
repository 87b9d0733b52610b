"""Gives a client's methods the names, signatures and docstrings of the calls they send."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def named_after(call: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator that gives a method the name, the docstring and the arguments of `call`."""

    def decorate(method: F) -> F:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [own, *inspect.signature(call).parameters.values()]
        method.__name__, method.__doc__ = call.__name__, call.__doc__
        method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return method

    return decorate
