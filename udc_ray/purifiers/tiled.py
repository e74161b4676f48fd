"""A denoiser on overlapping tiles, for images that are larger than a network, or the memory, can take at once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_ray.errors import SpecError
from udc_ray.purifiers.denoiser import Denoiser

Windows = tuple[tuple[int, NDArray[np.float64]], ...]
"""First pixel of every tile along one side, and the weight of each of its pixels."""


class Tiled(Denoiser):
    """A denoiser that sees one tile at a time; itself a denoiser of whole images.

    The noise is predicted on tiles of one size that overlap, and blended with windows that sum to 1 at every pixel.
    Each pass takes the same tile of all images of the batch, so its shape is B x C x tile x tile whatever the image,
    and an image's bits do not depend on its company. An image that is no larger than a tile passes untouched.

    It is a purifier of its own, not an approximation of the whole image that attacks may ignore: networks with
    attention or group normalisation answer otherwise on a tile. Gradients flow through tiles and blending, and an
    attack sees both. For a network that looks no further than `overlap` // 4 px around, the result is that of the whole
    image (where its sides need no padding).

    Args:
        denoiser: predicts the noise of a tile.
        tile: edge of a tile in px, a multiple of the denoiser's.
        overlap: px that neighbouring tiles share at least.
    """

    def __init__(self, denoiser: Denoiser, tile: int, overlap: int) -> None:
        if not 0 <= overlap < tile:
            raise SpecError(
                f"tiles of {tile} px cannot overlap by {overlap} px", change="give an overlap below the tile"
            )
        if tile % denoiser.size_multiple:
            raise SpecError(
                f"the prior takes sides that are multiples of {denoiser.size_multiple} px, not tiles of {tile}",
                change=f"give tile {tile + -tile % denoiser.size_multiple}",
            )
        super().__init__(
            denoiser.network,
            denoiser.trained_schedule,
            prediction=denoiser.prediction,
            input_range=denoiser.input_range,
            channels=denoiser.channels,
            size_multiple=denoiser.size_multiple,
        )
        self.denoiser, self.tile, self.overlap = denoiser, tile, overlap

    def tiles(self, height: int, width: int) -> int:
        """Network calls that one prediction for an image of this size takes."""
        return len(windows(height, self.tile, self.overlap)) * len(windows(width, self.tile, self.overlap))

    def __call__(self, x_t_BCHW: Tensor, t: int) -> Tensor:
        """Predicted noise of B x C x H x W at time `t`."""
        height, width = x_t_BCHW.shape[-2:]
        if height <= self.tile and width <= self.tile:
            return self.denoiser(x_t_BCHW, t)
        eps_hat = torch.zeros_like(x_t_BCHW)
        for top, weight_h in windows(height, self.tile, self.overlap):
            rows = slice(top, top + len(weight_h))
            strip = self._strip(x_t_BCHW[..., rows, :], t)
            eps_hat[..., rows, :] += _like(weight_h, strip)[:, None] * strip
        return eps_hat

    def _strip(self, x_t: Tensor, t: int) -> Tensor:
        """Tiles side by side, blended; strip by strip, so that blending costs an image's area and not its square."""
        strip = torch.zeros_like(x_t)
        for left, weight_w in windows(x_t.shape[-1], self.tile, self.overlap):
            columns = slice(left, left + len(weight_w))
            strip[..., columns] += _like(weight_w, x_t) * self.denoiser(x_t[..., columns].contiguous(), t)
        return strip


@lru_cache(maxsize=64)
def windows(length: int, tile: int, overlap: int) -> Windows:
    """Tiles along one side, spread evenly, with weights that sum to 1 at every pixel.

    Between two neighbours the weight goes over in a raised cosine about the middle of what they share. It is
    `overlap` // 2 px wide, so the outer quarter of the overlap, where a tile knows least of what is around, counts
    nothing. The window of a tile is the difference of two such steps, which makes the sum 1 wherever tiles lie.

    Args:
        length: of the side in px.
        tile: edge of a tile in px; a shorter side is one tile.
        overlap: px that neighbours share at least, less than `tile`.
    """
    if length <= tile:
        return ((0, np.ones(length)),)
    count = -(-(length - overlap) // (tile - overlap))
    starts = [number * (length - tile) // (count - 1) for number in range(count)]
    pixels = np.arange(length) + 0.5
    middles = [(first + tile + second) / 2 for first, second in zip(starts, starts[1:], strict=False)]
    steps = [np.ones(length), *(_step(pixels - middle, overlap // 2) for middle in middles), np.zeros(length)]
    return tuple(
        (start, (steps[number] - steps[number + 1])[start : start + tile]) for number, start in enumerate(starts)
    )


def _step(distance: NDArray[np.floating[Any]], width: int) -> NDArray[np.float64]:
    """From 0 to 1 over `width` px about 0, as a raised cosine."""
    if width == 0:
        return (distance > 0).astype(np.float64)
    share = np.clip(distance / width + 0.5, 0, 1)
    return (1 - np.cos(np.pi * share)) / 2


def _like(weight: NDArray[np.float64], x: Tensor) -> Tensor:
    return torch.from_numpy(weight).to(x.device, x.dtype)
