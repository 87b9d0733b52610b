"""PNG files of at most 256 colours, which take a third of the bytes of true colour."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Colours = npt.NDArray[np.uint8]
"""Red, green and blue along the last axis."""

_FREQUENT = 160


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file with a palette.

    Where there are more than 256 colours, the most frequent ones stay as they are: these are the colours of the data.
    The others, nearly all of them in the soft edges of letters, become the nearest of the 256.
    """
    pixels: Colours = np.asarray(picture.convert("RGB"))
    codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    found, places, counts = np.unique(codes.reshape(-1), return_inverse=True, return_counts=True)
    present = _colours(found)
    palette = present
    if found.size > 256:
        frequent = present[np.argsort(-counts.astype(np.int64), kind="stable")[:_FREQUENT]]
        palette = np.concatenate([frequent, _spread(picture, 256 - _FREQUENT)])
    nearest = np.array(
        [np.abs(palette.astype(np.int16) - one).sum(axis=1).argmin() for one in present.astype(np.int16)]
    )
    indexed = Image.fromarray(nearest[places].reshape(codes.shape).astype(np.uint8), "P")
    indexed.putpalette(palette.tobytes())
    file = io.BytesIO()
    indexed.save(file, "png")
    return file.getvalue()


def _spread(picture: Image.Image, count: int) -> Colours:
    """Colours chosen so that every colour of the picture is near one of them, however few pixels have it."""
    few = picture.convert("RGB").quantize(count, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    chosen: Colours = np.array(few.getpalette(), np.uint8).reshape(-1, 3)[:count]
    return chosen


def _colours(codes: npt.NDArray[np.uint32]) -> Colours:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
