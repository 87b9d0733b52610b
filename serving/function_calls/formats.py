"""How families of models write calls, known by their chat templates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """How a call is written: an object with the function's name and its arguments, between two texts.

    Attributes:
        name: of the family.
        arguments: the key of the arguments.
        opens, closes: the texts around a call. A text without them is a call as a whole.
        several: whether a text may have several calls.
        offered: whether calls are found where the model may as well answer with text.
    """

    name: str
    arguments: str = "arguments"
    opens: str = ""
    closes: str = ""
    several: bool = True
    offered: bool = True


HERMES = Format("hermes", opens="<tool_call>", closes="</tool_call>")
"""Hermes 2 and 3, Qwen 2.5 and 3, SmolLM2 and 3, Granite 4."""
LLAMA = Format("llama", arguments="parameters", several=False)
"""Llama 3.1, 3.2 and 3.3: the text is one call and nothing else."""
PLAIN = Format("plain", offered=False)
"""Of models whose own way is not known, and which are made to call."""

_LLAMAS = '{"name": function name, "parameters": '
_OTHERS = ("<function=", "<arg_key>", "[TOOL_CALLS]", "<|tool_call|>", "<｜tool▁call", "functools")
"""Marks of families whose calls are written otherwise: Qwen 3 Coder, GLM, Mistral, Granite 3 and Phi 4, DeepSeek."""


def format_of(template: str) -> Format:
    """The format that a chat template teaches; `PLAIN` where it is not known."""
    if any(mark in template for mark in _OTHERS):
        return PLAIN
    if HERMES.opens in template:
        return HERMES
    if _LLAMAS in template:
        return LLAMA
    return PLAIN
