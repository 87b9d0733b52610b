"""The names of the ways in which a delta file stores values and masks, as manifests write them. They need no torch."""

from __future__ import annotations

from typing import Literal

Codec = Literal["raw", "zstd", "int8", "int4", "sign"]
CODECS: tuple[Codec, ...] = ("raw", "zstd", "int8", "int4", "sign")
"""Ways to store kept values, see `ken_core.codec`."""

Coding = Literal["bitmap", "gaps"]
"""Ways to store masks, see `ken_core.positions`."""
