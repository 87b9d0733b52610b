"""The names of the ways in which a delta file stores values and masks, as manifests write them. They need no torch."""

from __future__ import annotations

from typing import Literal

Codec = Literal["raw", "zstd", "int8", "int4", "sign"]
CODECS: tuple[Codec, ...] = ("raw", "zstd", "int8", "int4", "sign")
"""Ways to store kept values, see `ken_core.codec`."""
CODE_BITS: dict[Codec, int] = {"int8": 8, "int4": 4, "sign": 1}
"""Bits per value of the lossy codecs."""

FactorCodec = Literal["raw", "zstd", "int8", "int4"]
"""Ways to store the factors of a low-rank shift: in a float dtype, or quantised as in `ken_core.factor_codec`."""
FACTOR_CODECS: tuple[FactorCodec, ...] = ("raw", "zstd", "int8", "int4")

Coding = Literal["bitmap", "gaps"]
"""Ways to store masks, see `ken_core.positions`."""
