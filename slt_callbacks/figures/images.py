"""Matrices as small palette PNGs: forty times faster than a plot, and the same colours at every step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

# Blue, white, red: seen by colour-blind readers, and grey in print at both ends alike (ColorBrewer RdBu, five stops).
_STOPS = ((5, 48, 97), (67, 147, 195), (255, 255, 255), (214, 96, 77), (103, 0, 31))
_LEVELS = 255  # odd, so that 0 has a colour of its own: white
_MISSING = (160, 160, 160)  # the last of the 256 colours, for NaN
# Smaller matrices are enlarged by a whole number, or a browser would blur them into one another.
_SMALLEST_SIDE = 256
_NARROWEST = 4  # a strip of a few columns beside hundreds of rows is widened to this part of its length


def correlation_map(matrix: torch.Tensor, order: torch.Tensor | None = None, limit: float = 1.0) -> Image.Image:
    """A matrix as an image: blue below zero, white at zero, red above, on a scale that never changes.

    Args:
        matrix: ``(rows, columns)`` real numbers; beyond the limits they take the last colour, and NaN is grey.
        order: Row and column order of a square matrix, int64 ``(N,)``; None as it is.
        limit: The value of the darkest red, in the matrix's unit; the darkest blue is minus that.

    Returns:
        A palette image ("P"), one pixel an entry, or a square of pixels where that would be smaller than 256. Entries
        of a strip are longer in its short direction, which is a quarter of the long one or more.

    Raises:
        ValueError: If `matrix` is not two-dimensional or `limit` not positive.

    Example:
        >>> image = correlation_map(torch.tensor([[1.0, 0.0], [-1.0, torch.nan]]))
        >>> image.size, image.mode
        ((256, 256), 'P')
        >>> rgb = image.convert("RGB")
        >>> [rgb.getpixel(place) for place in ((0, 0), (255, 0), (0, 255), (255, 255))]
        [(103, 0, 31), (255, 255, 255), (5, 48, 97), (160, 160, 160)]
    """
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"Expected `matrix` to have rows and columns, but got shape {tuple(matrix.shape)}.")
    if not limit > 0:
        raise ValueError(f"Expected `limit` to be positive, but got {limit!r}.")
    shown = matrix if order is None else matrix[order][:, order]
    values = shown.detach().cpu().double().numpy()
    half = (_LEVELS - 1) / 2
    level = np.rint(np.clip(np.nan_to_num(values) / limit, -1, 1) * half + half).astype(np.uint8)
    level[np.isnan(values)] = _LEVELS
    enlarged = -(-_SMALLEST_SIDE // max(level.shape))
    least = enlarged * max(level.shape) / _NARROWEST
    for axis, length in enumerate(level.shape):
        level = level.repeat(max(enlarged, math.ceil(least / length)), axis=axis)
    image = Image.fromarray(level)  # greyscale; with a palette it becomes "P"
    image.putpalette(_PALETTE)
    return image


def diverging() -> Colormap:
    """The same colours for matplotlib.

    Raises:
        ModuleNotFoundError: If it is not installed.

    Example:
        >>> [round(255 * channel) for channel in diverging()(1.0)[:3]]  # the darkest red
        [103, 0, 31]
    """
    from matplotlib.colors import LinearSegmentedColormap

    found = LinearSegmentedColormap.from_list("blue, white, red", np.array(_STOPS) / 255, N=_LEVELS)
    red, green, blue = (channel / 255 for channel in _MISSING)
    return found.with_extremes(bad=(red, green, blue))


def _palette() -> bytes:
    places = np.linspace(0, 1, len(_STOPS))
    at = np.linspace(0, 1, _LEVELS)
    colours = np.stack([np.interp(at, places, channel) for channel in np.array(_STOPS, dtype=float).T], axis=1)
    return bytes(np.rint(colours).astype(np.uint8).flatten().tolist()) + bytes(_MISSING)


_PALETTE = _palette()
