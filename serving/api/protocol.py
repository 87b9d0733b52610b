"""What a protocol is: its routes, the paths that belong to it, and the form of its failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter

from serving.api.document import Failing
from serving.api.failures import Shape
from serving.api.predicting import Predictor
from serving.api.problems import problem, responses
from serving.service import Service


@dataclass(frozen=True)
class Protocol:
    """One protocol. A new one is a file with a `Protocol` in it, named in `application.PROTOCOLS`.

    Attributes:
        router: makes its routes.
        paths: first parts of the paths that belong to it, whether a route has them or not.
        shape: the form of failures under these paths.
        failing: describes failures of that form in the OpenAPI document.
    """

    router: Callable[[Service, Predictor], APIRouter]
    paths: tuple[str, ...] = ()
    shape: Shape = problem
    failing: Failing = responses

    def owns(self, path: str) -> bool:
        """Whether a path belongs to the protocol."""
        return any(path == own or path.startswith(f"{own}/") for own in self.paths)
