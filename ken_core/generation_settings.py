"""What a checkpoint's generation_config.json says of how its texts are generated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationSettings:
    """The settings that are honoured. A checkpoint that needs another one is refused by name.

    Attributes:
        end_ids: tokens that end a text.
        samples: whether texts are sampled; else the likeliest token is always taken.
        temperature, top_k, top_p, min_p, repetition_penalty: None: not set.
    """

    end_ids: tuple[int, ...] = ()
    samples: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
