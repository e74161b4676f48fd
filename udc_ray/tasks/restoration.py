"""Restoration: an image is compared with an image, in dB."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.objectives import Objective, objectives_of
from udc_ray.data.base import Sample
from udc_ray.errors import DataError
from udc_ray.metrics.perceptual import loaded
from udc_ray.metrics.protocols import Doubles, Protocol
from udc_ray.models.base import Descriptor, TaskName
from udc_ray.probe import Network
from udc_ray.spec import RunSpec, Success
from udc_ray.tasks.base import Fused, Goal, Reading, Scores, Yardstick


class Restoration:
    """See `udc_ray.tasks.base.Task`."""

    name: TaskName = "restoration"
    objectives: ClassVar[tuple[str, ...]] = objectives_of("restoration")
    stop: Literal["never", "success"] = "never"
    quality: Literal["psnr_adv", "score_adv"] = "psnr_adv"

    def wrong_output(self, output: Tensor, x_BCHW: Tensor, descriptor: Descriptor) -> str:
        if output.shape == x_BCHW.shape:
            return ""
        return f"returns {tuple(output.shape)} for an image of {tuple(x_BCHW.shape)}"

    def check_sample(self, sample: Sample, descriptor: Descriptor) -> None:
        if sample.truth is not None and sample.truth.ndim == 0:
            raise DataError(
                f"image {sample.image_id} has a class as its truth, and {descriptor.name} restores images",
                "labelled images are for classifiers",
                "use --model cifar-resnet20 or a classifier of your own, or images to restore",
            )

    def check_shape(self, metrics: Protocol, shape: tuple[int, int, int]) -> None:
        metrics.check(*shape)

    def clean_reference(self, outputs: Sequence[Tensor]) -> Tensor:
        """The mean over the draws, clamped."""
        return torch.stack(list(outputs)).mean(dim=0).clamp(0, 1)

    def goal(
        self,
        objective: Objective,
        outputs: Sequence[Tensor],
        reference: Tensor,
        metrics: Protocol,
        wanted: Success,
    ) -> Goal:
        """The mean squared error of the PSNR that the spec calls harmed."""
        score = torch.stack([objective.score(o[None], reference[None]) for o in outputs]).mean().item()
        level = wanted.psnr_below
        if level is None:
            psnr = [metrics.psnr(o[None], reference[None])[0] for o in outputs]
            level = sum(psnr) / len(psnr) - wanted.drop_db
        return Goal(score, 10 ** (-level / 10))

    def read(self, output: Tensor, reference: Tensor, yardstick: Yardstick) -> Reading:
        psnr = yardstick.protocol.psnr(output[None], reference[None])[0]
        ssim = yardstick.protocol.ssim(output[None], reference[None])[0]
        return Reading(psnr=psnr, ssim=ssim, lpips=_lpips(output, reference, yardstick))

    def fuse(self, outputs: Sequence[Tensor], reference: Tensor, metrics: Protocol) -> Fused:
        """Of the images as they would be stored, so that the error of the mean is at most the mean error."""
        shown = torch.stack([output.double().clamp(0, 1) for output in outputs])
        ordered, middle = shown.sort(dim=0).values, len(outputs) // 2
        # of an even number the two middle ones count alike
        median_CHW = (ordered[-middle - 1] + ordered[middle]) / 2
        mean, median = (metrics.psnr(image, reference)[0] for image in (shown.mean(dim=0), median_CHW))
        return Fused(mean=mean, median=median)

    def noise(self, output: Tensor, reference: Tensor, metrics: Protocol) -> float:
        return metrics.psnr(output[None], reference[None])[0]

    def input_quality(self, sample: Sample, metrics: Protocol) -> float | None:
        if sample.truth is None:
            return None
        return metrics.psnr(sample.degraded[None], sample.truth[None])[0]

    def columns(self, scores: Scores, has_truth: bool) -> dict[str, Any]:
        """Without a truth, the clean quality is not known: outputs are compared with the clean output."""
        clean, adversarial = scores.clean, scores.adversarial
        return {
            "psnr_degraded": scores.degraded,
            "psnr_clean": clean.psnr if has_truth else None,
            "psnr_noise": scores.noise,
            "psnr_adv": adversarial.psnr,
            "psnr_mean_output_clean": clean.fused.mean if has_truth else None,
            "psnr_mean_output_adv": adversarial.fused.mean,
            "psnr_median_output_clean": clean.fused.median if has_truth else None,
            "psnr_median_output_adv": adversarial.fused.median,
            "ssim_clean": clean.ssim if has_truth else None,
            "ssim_adv": adversarial.ssim,
            "lpips_clean": clean.lpips if has_truth else None,
            "lpips_adv": adversarial.lpips,
        }

    def success(self, scores: Scores, has_truth: bool, wanted: Success) -> bool | None:
        """A PSNR below the level of the spec, or so many dB below the clean quality."""
        clean, adversarial = scores.clean.psnr, scores.adversarial.psnr
        if adversarial is None:
            return None
        if wanted.psnr_below is not None:
            return adversarial <= wanted.psnr_below
        if not has_truth or clean is None:
            return None
        return clean - adversarial >= wanted.drop_db

    def measured_by(self, spec: RunSpec) -> dict[str, Any]:
        return {"protocol": spec.protocol, "perceptual": spec.perceptual.name}

    def networks(self, objectives: Sequence[Objective]) -> list[Network]:
        """The losses: objectives with a network of their own are probed too."""
        return [partial(_damage, objective) for objective in objectives]


def _lpips(output_CHW: Tensor, reference_CHW: Tensor, yardstick: Yardstick) -> float | None:
    """Perceptual distance of what the protocol compares; None where it is not defined.

    One image at a time, so that its bits cannot depend on companions.
    """
    shown_CHW, real_CHW = yardstick.protocol.shown(output_CHW, reference_CHW)[0]
    channels, height, width = shown_CHW.shape
    perceptual, device = yardstick.perceptual, yardstick.device
    if perceptual is None or perceptual.why_not(channels, height, width) is not None:
        return None
    distance = loaded(perceptual, device, torch.float32)
    with torch.no_grad():
        return float(distance(_single(shown_CHW).to(device), _single(real_CHW).to(device))[0])


def _single(image_CHW: Doubles) -> Tensor:
    """A batch of one, as the perceptual distance takes it."""
    return torch.from_numpy(image_CHW.astype(np.float32))[None]


def _damage(objective: Objective, x_BCHW: Tensor) -> Tensor:
    return objective.loss(x_BCHW, x_BCHW.detach().flip(-1))[:, None]
