"""A head without its backbone: a stand-in gives it an output that the shared backbone has computed before.

A head of Transformers calls its backbone inside its own `forward`. With a `StandIn` in the backbone's place that code
runs unchanged, and the backbone runs once for rows of many heads. The stand-in compares what the head asks with what
was computed; a question that the output does not answer is an error, never another answer.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils.generic import ModelOutput

from ken_core.errors import WholeModelNeededError

_log = logging.getLogger(__name__)

Inputs = Mapping[str, torch.Tensor]
"""Of a model, by name: int64 tensors of shape (rows, tokens)."""

_CACHES = ("use_cache",)
"""Arguments that change what a backbone keeps for a later call, and not its output."""
_DOES_IT_ALL = {"OPTModel": "decoder"}
"""Backbones that only call one of their parts, by the name of that part. Heads of theirs call the part itself."""
_MORE_OUTPUT = ("output_hidden_states", "output_attentions", "output_router_logits")
"""Arguments that ask for more output than `last_hidden_state`; false asks for nothing."""


@dataclass(frozen=True)
class _Given:
    inputs: Inputs
    output: ModelOutput


class StandIn(nn.Module):
    """In the place of a head's backbone. Holds nothing of it, and may be called from several threads at once.

    Args:
        backbone: the class it stands for; the names of positional arguments are those of its `forward`.
    """

    def __init__(self, backbone: type[nn.Module]) -> None:
        super().__init__()
        self._names = _arguments(backbone)
        self._part = _DOES_IT_ALL.get(backbone.__name__)
        self._of_thread = threading.local()

    @contextmanager
    def giving(self, output: ModelOutput, inputs: Inputs) -> Iterator[None]:
        """Within it, a call on this thread that asks for the output of exactly these tensors gets `output`."""
        self._of_thread.given = _Given(inputs, output)
        try:
            yield
        finally:
            self._of_thread.given = None

    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput | tuple[Any, ...]:
        """The output that was given.

        Raises:
            WholeModelNeededError: the call asks for something else, or nothing was given on this thread.
        """
        given: _Given | None = getattr(self._of_thread, "given", None)
        if given is None:
            raise WholeModelNeededError("a head called its backbone, of which no output was given on this thread")
        if len(args) > len(self._names):
            raise WholeModelNeededError(f"a head calls its backbone with {len(args)} arguments without names")
        asked = dict(zip(self._names, args, strict=False)) | kwargs
        as_dict = asked.pop("return_dict", True)
        for name, value in asked.items():
            if not (value is None or value is given.inputs.get(name) or self._adds_nothing(name, value)):
                raise WholeModelNeededError(
                    f"a head asks its backbone with {name}={_described(value)}; the output at hand was computed from "
                    f"the batch's {', '.join(given.inputs)} alone"
                )
        for name in given.inputs:
            if asked.get(name) is None:
                raise WholeModelNeededError(
                    f"a head calls its backbone without {name}; the output at hand was computed with it"
                )
        return given.output.to_tuple() if as_dict is False else given.output

    def _adds_nothing(self, name: str, value: Any) -> bool:
        if name in _CACHES or (name in _MORE_OUTPUT and value is False):
            return True
        return isinstance(value, bool | int | float | str) and name in self._names and value == self._names[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == vars(self).get("_part"):
                return self
            raise WholeModelNeededError(f"a head reads {name!r} of its backbone, and not its output alone") from None


def cut(output: ModelOutput, rows: slice, tokens: int) -> ModelOutput:
    """Some rows of a backbone's output, each with its first tokens; views, no copies.

    Tensors of three axes or more have (rows, tokens) first, others (rows,). What is no tensor (caches of keys and
    values) is left out.

    Raises:
        WholeModelNeededError: a tensor has another number of rows or tokens than the first one.
    """
    states = output[0]
    found: dict[str, torch.Tensor] = {}
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            axes = min(2, max(1, value.ndim - 1))
            if value.shape[:axes] != states.shape[:axes]:
                raise WholeModelNeededError(
                    f"the backbone's {name} has shape {list(value.shape)}; expected it to begin with the rows and the "
                    f"tokens of its first output, {list(states.shape)}"
                )
            found[name] = value[rows] if axes == 1 else value[rows, :tokens]
    return type(output)(**found)


def answers_from_output(model: PreTrainedModel, slot: str, backbone: type[nn.Module]) -> bool:
    """Whether a head asks its backbone for nothing but the output for the batch: runs it once, with a stand-in.

    What a head computes from the output may need values or another width, and then fails on the meta device. That says
    nothing: the head's call has been seen by then.

    Args:
        model: on the meta device, where running it costs no memory and little time; a stand-in is left in the slot.
        slot: the name of the backbone in the model.
    """
    stand_in = StandIn(backbone)
    answered: list[bool] = []
    stand_in.register_forward_hook(lambda *_: answered.append(True))
    setattr(model, slot, stand_in)
    with torch.device("meta"):
        inputs = {name: torch.ones((1, 3), dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        width = getattr(model.config.get_text_config(), "hidden_size", 1)
        output = BaseModelOutputWithPoolingAndCrossAttentions(torch.empty((1, 3, width)), torch.empty((1, width)))
    try:
        with torch.no_grad(), stand_in.giving(output, inputs):
            model(**inputs)
    except WholeModelNeededError:
        return False
    except Exception:
        _log.debug("the head of %s was not followed beyond its backbone's output", type(model).__name__, exc_info=True)
    return bool(answered)


def _described(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:100]


def _arguments(backbone: type[nn.Module]) -> dict[str, Any]:
    """Names and defaults of what a backbone's `forward` takes, in order."""
    parameters = list(inspect.signature(backbone.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
