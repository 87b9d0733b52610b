"""A delta's description of its embeddings: pooling, projections, scaling, as sentence-transformers has them.

`ken_core.embedder` computes what is described here. Describing needs no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "last"]
Activation = Literal[
    "Identity", "Tanh", "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid",
    "LogSigmoid", "Hardsigmoid", "Hardswish", "Hardtanh", "Softplus", "Softsign", "Tanhshrink",
]  # fmt: skip
"""The activations of torch.nn that work on each number alone and take no argument."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_LONGEST_PROMPT = 4096
PromptText = Annotated[str, StringConstraints(max_length=_LONGEST_PROMPT)]
PromptName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Width = Annotated[int, Field(gt=0, le=1 << 20)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dense(_Strict):
    """A linear layer with an activation; its weights are the delta's `projections`."""

    inputs: Width
    outputs: Width
    bias: bool
    activation: Activation
    residual: bool = False
    """Whether the input is added to the output; where their widths differ, a further matrix projects the input."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the layer's weights, by the names that sentence-transformers gives them."""
        matrix = (self.outputs, self.inputs)
        return {
            "linear.weight": matrix,
            **({"linear.bias": (self.outputs,)} if self.bias else {}),
            **({"residual.weight": matrix} if self.residual and self.inputs != self.outputs else {}),
        }


class Embedding(_Strict):
    """How a task's embeddings are computed from token vectors."""

    pooling: Annotated[tuple[Pooling, ...], Field(min_length=1, max_length=8)]
    """Where there are several, their vectors are concatenated in this order."""
    include_prompt: bool = True
    """Whether the tokens of a prompt are pooled too."""
    modules: Annotated[tuple[Dense | Literal["normalize"], ...], Field(max_length=8)] = ()
    """The steps after pooling, in order."""
    dimensions: Width | None = None
    """How many numbers of the result are kept, from its start; None: all of them."""
    max_length: Annotated[int, Field(gt=0, le=1 << 20)] | None = None
    """The most tokens of a text, in place of the tokenizer's own limit."""
    lowercase: bool = False
    """Whether texts are lower-cased before the tokenizer sees them."""
    prompts: Annotated[dict[PromptName, PromptText], Field(max_length=64)] = {}
    default_prompt: PromptName | None = None
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] | None = None
    """How the embeddings are meant to be compared; clients do that, this package does not."""

    @model_validator(mode="after")
    def _fits_together(self) -> Embedding:
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise ValueError(f"the default prompt {self.default_prompt!r} is not among the prompts")
        width = None
        for dense in self.dense.values():
            if width not in (None, dense.inputs):
                raise ValueError(f"a projection takes {dense.inputs} numbers, the one before it gives {width}")
            width = dense.outputs
        return self

    @property
    def dense(self) -> dict[int, Dense]:
        """The projections among the modules, by their place in `modules`."""
        return {i: module for i, module in enumerate(self.modules) if isinstance(module, Dense)}

    @property
    def takes(self) -> int | None:
        """The width of the vectors that the first projection takes; None where there is no projection."""
        return next((dense.inputs for dense in self.dense.values()), None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all projections' tensors by name; ``1.linear.weight`` belongs to the module at place 1."""
        return {f"{i}.{name}": shape for i, dense in self.dense.items() for name, shape in dense.shapes.items()}

    @property
    def normalizes(self) -> bool:
        """Whether the embeddings have length 1 before they are cut to `dimensions`."""
        return bool(self.modules) and self.modules[-1] == "normalize"


PLAIN = Embedding(pooling=("mean",))
"""The embedding that sentence-transformers computes for a folder that does not describe one."""
