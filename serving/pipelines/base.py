"""What a task kind is: parameters, a forward pass over a batch, and the presentation of one row's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from serving.errors import InvalidInputError

Raw = npt.NDArray[np.float32]


class Parameters(BaseModel):
    """Per-request parameters; a kind adds its own."""

    model_config = ConfigDict(extra="forbid")


M = TypeVar("M", bound=BaseModel)


def check(model: type[M], plain: object) -> M:
    """Raises `InvalidInputError` naming the first place of untrusted JSON that does not fit the model."""
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidInputError(f"{where}: {first['msg']}") from None


class Pipeline(Protocol):
    """One task kind."""

    @property
    def kind(self) -> str:
        """Its name on the wire, as Hugging Face calls it."""

    @property
    def parameters(self) -> type[Parameters]:
        """The model of its request parameters."""

    def forward(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
        """Run a padded batch on the engine's thread; one float32 array a row, on the host."""

    def present(self, raw: Raw, config: PretrainedConfig, pooling: str | None, parameters: Any) -> Any:
        """One row's answer as JSON."""
