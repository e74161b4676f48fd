"""The denoiser of a purification: any prior as a predictor of the noise in images in [-1, 1]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.purifiers.checkpoints import (
    CONFIG,
    DEFAULT_PRIOR,
    PRIOR_FILES,
    SCHEDULER,
    SIDECAR,
    WEIGHTS,
    load_network,
    read_sidecar,
    save_prior,
)
from udc_ray.purifiers.sampler import Level, eps_of_x0, root
from udc_ray.purifiers.schedule import Prediction, Schedule
from udc_ray.purifiers.sidecar import Declared, Sidecar

__all__ = [
    "CONFIG",
    "DEFAULT_PRIOR",
    "PRIOR_FILES",
    "SCHEDULER",
    "SIDECAR",
    "WEIGHTS",
    "Declared",
    "Denoiser",
    "Sidecar",
    "load_denoiser",
    "pad_to",
    "read_sidecar",
    "save_prior",
    "to_eps",
]


class Denoiser:
    """A noise predictor for images in [-1, 1], of any size, whatever range and parametrisation its network has.

    For a network trained on y = c + h x (x in [-1, 1]; c and h are centre and half width of its range), `schedule`
    holds the signal shares a that the network's shares b mean for x (`Schedule.for_images`), and the network is given

        y_t = sqrt(b) (c + h x_t / sqrt(a)),

    in which the noise is the very n of x_t = sqrt(a) x + sqrt(1 - a) n: no time is interpolated and the predicted
    noise needs no conversion. For [-1, 1] both tables are one, and y_t is x_t to the bit.

    Attributes:
        network: in evaluation mode, its parameters frozen.
        schedule: in terms of images in [-1, 1]; sampling is done with this one.
        trained_schedule: the schedule of the training, in the network's own range.
        channels: of the images.
        size_multiple: sides are padded to it inside.

    Args:
        network: a diffusers UNet2DModel, or a module called with B x C x H x W and the time. It answers with a tensor,
            or with an object that has a ``sample``, of C channels, or of 2 C with a learned variance behind.
        schedule: the schedule of its training, in its own range.
        prediction: what it predicts.
        input_range: lowest and highest value of the images of its training.
        channels, size_multiple: needed unless the network is a UNet2DModel, whose config says them.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        prediction: Prediction = "epsilon",
        input_range: tuple[float, float] = (-1.0, 1.0),
        channels: int | None = None,
        size_multiple: int | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.schedule = schedule.for_images(input_range)
        self.prediction = prediction
        self.input_range = input_range
        self.trained_schedule = schedule
        config: Any = getattr(network, "config", None)
        self.channels: int = config.in_channels if channels is None else channels
        self.size_multiple: int = 2 ** (len(config.block_out_channels) - 1) if size_multiple is None else size_multiple

    def __call__(self, x_t_BCHW: Tensor, t: int) -> Tensor:
        """Predicted noise of B x C x H x W at time `t`; sides are padded to the size multiple inside."""
        height, width = x_t_BCHW.shape[-2:]
        y_t = self._in_range(pad_to(x_t_BCHW, self.size_multiple), t)
        output = self.network(y_t, t)
        answer: Tensor = output if isinstance(output, Tensor) else output.sample
        answer = answer[:, : self.channels]  # what is behind is a learned variance, which samplers here do not use
        eps_hat = to_eps(answer, y_t, float(self.trained_schedule.alpha_bar[t]), self.prediction)
        return eps_hat[..., :height, :width]

    def _in_range(self, x_t: Tensor, t: int) -> Tensor:
        low, high = self.input_range
        if (low, high) == (-1.0, 1.0):
            return x_t
        theirs, ours = (math.sqrt(schedule.alpha_bar[t]) for schedule in (self.trained_schedule, self.schedule))
        return theirs * (low + high) / 2 + theirs / ours * (high - low) / 2 * x_t


def to_eps(answer: Tensor, y_t: Tensor, abar_t: Level, prediction: Prediction) -> Tensor:
    """The noise that a network's answer means, from y_t = sqrt(abar) y + sqrt(1 - abar) eps.

    ``sample`` (y itself): eps = (y_t - sqrt(abar) y) / sqrt(1 - abar). ``v_prediction`` (Salimans and Ho 2022,
    v = sqrt(abar) eps - sqrt(1 - abar) y): eps = sqrt(abar) v + sqrt(1 - abar) y_t.

    Args:
        answer: of the network.
        y_t: what it was given.
        abar_t: signal share of its own schedule.
        prediction: what it predicts.
    """
    if prediction == "epsilon":
        return answer
    if prediction == "sample":
        return eps_of_x0(y_t, answer, abar_t)
    return root(abar_t) * answer + root(1 - abar_t) * y_t


def pad_to(x_BCHW: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to a multiple; mirrored where the image is large enough, else the edge is repeated."""
    height, width = x_BCHW.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not down and not right:
        return x_BCHW
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(x_BCHW, (0, right, 0, down), mode=mode)


def load_denoiser(folder: Path, device: str, declared: Declared | None = None) -> Denoiser:
    """Load a prior: strict keys, checked hash, evaluation mode, frozen; nothing is downloaded.

    Args:
        folder: a diffusers checkpoint in any layout (`checkpoints.find_layout`), with prior.json unless the rest
            is declared.
        device: ``cpu`` or ``cuda``.
        declared: what the spec says of it.
    """
    sidecar = read_sidecar(folder, declared)
    network = load_network(folder, sidecar).to(device)
    return Denoiser(network, sidecar.schedule, prediction=sidecar.prediction, input_range=sidecar.input_range)
