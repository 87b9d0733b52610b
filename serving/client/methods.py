"""Gives a client's methods the names, signatures and docstrings of the calls they send."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def named_after(call: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator that gives a method the name, the docstring and the arguments of `call`, and what it returns."""
    sent = inspect.signature(call)

    def decorate(method: F) -> F:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        returned = inspect.signature(method).return_annotation
        if returned == "T":  # what the call is of: Prediction of Call[Prediction]
            returned = sent.return_annotation.partition("[")[2].removesuffix("]")
        method.__name__, method.__doc__ = call.__name__, call.__doc__
        signature = inspect.Signature([own, *sent.parameters.values()], return_annotation=returned)
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method

    return decorate
