"""Steps and starting points inside a ball, image by image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.threat import Norm, Threat, l2_norm
from udc_ray.errors import SpecError
from udc_ray.tape import normal_like, uniform_like


def radius(threat: Threat) -> float:
    """The eps of a threat that has one."""
    if threat.eps is None:
        raise SpecError("this attack needs an eps", "the threat bounds nothing but the box", "give eps, such as 8/255")
    return threat.eps


def unit_l2(direction_BCHW: Tensor) -> Tensor:
    """Scale every image of directions to Euclidean norm 1 over C*H*W; zero stays zero."""
    norm_B = l2_norm(direction_BCHW)
    scale_B = torch.where(norm_B > 0, 1 / norm_B, torch.zeros_like(norm_B))
    return (direction_BCHW.double() * scale_B[:, None, None, None]).to(direction_BCHW.dtype)


def steepest(gradient_BCHW: Tensor, norm: Norm) -> Tensor:
    """Direction of size 1 in which the damage grows fastest: sign for linf, unit gradient for l2.

    Values that are not finite count as zero, and a zero gradient gives a zero step.
    """
    finite = torch.nan_to_num(gradient_BCHW, nan=0.0, posinf=0.0, neginf=0.0)
    return finite.sign() if norm == "linf" else unit_l2(finite)


def random_point(x_BCHW: Tensor, threat: Threat, generators: list[np.random.Generator]) -> Tensor:
    """A uniform point of the ball around `x_BCHW`, clipped to the box; image b from generator b."""
    eps, ball = radius(threat), threat.continuous
    if threat.norm == "linf":
        return ball.project(x_BCHW + eps * uniform_like(generators, x_BCHW), x_BCHW)
    direction = unit_l2(normal_like(generators, x_BCHW))
    share = [g.random() ** (1 / x_BCHW[0].numel()) for g in generators]
    share_B = torch.tensor(share, dtype=x_BCHW.dtype, device=x_BCHW.device)
    return ball.project(x_BCHW + eps * share_B[:, None, None, None] * direction, x_BCHW)
