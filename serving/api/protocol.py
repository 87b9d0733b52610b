"""What a protocol is: routes, the paths that are its own, and the shape of its failures."""

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
        paths: how the paths begin whose failures take its shape, those of no route included.
        failing: what the OpenAPI document says of failures in that shape.
    """

    router: Callable[[Service, Predictor], APIRouter]
    paths: tuple[str, ...] = ()
    shape: Shape = problem
    failing: Failing = responses

    def owns(self, path: str) -> bool:
        return any(path == own or path.startswith(f"{own}/") for own in self.paths)
