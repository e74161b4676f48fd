"""How images of other sizes are fitted to a network, and its output cropped back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from udc_ray.errors import DataError

Crop = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """The sizes that a network takes, and what is done with others.

    Attributes:
        multiple: sides are multiples of this.
        published: ``inside`` (the network pads by itself), ``reflect`` (edge pixel not repeated), ``mirror`` (edge
            pixel repeated), both right and bottom; ``square`` (centre of a square of zeros, offsets rounded down); or
            ``none``: its authors define no padding.
    """

    multiple: int
    published: str

    def fits(self, height: int, width: int) -> bool:
        """Whether an image goes in as it is."""
        if self.published == "inside":
            return True
        square = self.published != "square" or height == width
        return square and height % self.multiple == 0 and width % self.multiple == 0

    def fit(self, x_BCHW: Tensor, *, otherwise: str | None = None) -> tuple[Tensor, Crop]:
        """Pad an image in the network's own domain where its size does not fit.

        Args:
            x_BCHW: the image.
            otherwise: padding where the authors define none; refused unless given.

        Returns:
            What goes into the network, and what crops its output back.

        Raises:
            DataError: the size does not fit and no padding is defined, or the image is smaller than its padding.
        """
        height, width = x_BCHW.shape[-2:]
        if self.fits(height, width):
            return x_BCHW, lambda y_BCHW: y_BCHW
        kind = self.published if self.published != "none" else otherwise
        if kind is None:
            raise DataError(
                f"the network takes sides that are multiples of {self.multiple}, not {width}x{height}",
                "its authors define no padding for other sizes",
                f"crop or pad the image to multiples of {self.multiple}",
            )
        if kind == "square":
            return self._square(x_BCHW)
        bottom, right = -height % self.multiple, -width % self.multiple
        if max(bottom, right) >= min(height, width):
            raise DataError(
                f"an image of {width}x{height} is too small to be padded to multiples of {self.multiple}",
                change=f"give at least {self.multiple} px on each side",
            )
        pad = _reflected if kind == "reflect" else _mirrored
        return pad(x_BCHW, bottom, right), lambda y_BCHW: y_BCHW[..., :height, :width]

    def _square(self, x_BCHW: Tensor) -> tuple[Tensor, Crop]:
        height, width = x_BCHW.shape[-2:]
        side = -(-max(height, width) // self.multiple) * self.multiple
        top, left = (side - height) // 2, (side - width) // 2
        padded = F.pad(x_BCHW, (left, side - width - left, top, side - height - top))
        return padded, lambda y_BCHW: y_BCHW[..., top : top + height, left : left + width]


def _reflected(x_BCHW: Tensor, bottom: int, right: int) -> Tensor:
    return F.pad(x_BCHW, (0, right, 0, bottom), mode="reflect")


def _mirrored(x_BCHW: Tensor, bottom: int, right: int) -> Tensor:
    tall = torch.cat([x_BCHW, x_BCHW.flip(-2)[..., :bottom, :]], dim=-2) if bottom else x_BCHW
    return torch.cat([tall, tall.flip(-1)[..., :right]], dim=-1) if right else tall
