"""Purifiers whose chain is pulled by a guide: GDMP, AGDM and the twice one-step plan.

A guide's pull is a gradient, so an exact attack goes through it at second order (grad mode ``full``);
``full-no-guide`` takes it for a constant, and its numbers are marked as incomplete.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from udc_ray.purifiers import guide_network
from udc_ray.purifiers.denoiser import Denoiser
from udc_ray.purifiers.diffusion import Diffusion, Guided
from udc_ray.purifiers.guides import FeatureGuide, Form, MSEGuide, Reduction, SSIMGuide
from udc_ray.purifiers.plan import Guide, Round
from udc_ray.purifiers.schedule import Schedule


class GuidedDiffusion(Diffusion):
    """The knobs that all guided purifiers share; subclasses say the guide."""

    grad_modes: ClassVar[frozenset[str]] = Diffusion.grad_modes | {"full-no-guide"}

    scale: float = Field(ge=0)
    """s, what the gradient of the guide's distance is multiplied by; 0 is the chain without guide."""
    form: Form = "mean"
    """Where the pull acts: on the mean of a step, or on the predicted noise (``eps``)."""
    reduction: Reduction = "sum"
    """Of the distance over positions; with the published ``mean`` the pull fades as images grow."""
    steps: int | None = Field(default=5, ge=1)
    """Network calls a round; one for every time when null."""

    def guide(self, prepared: Denoiser | Guided) -> Guide | None:
        """The guide, but where its scale is 0."""
        return self.pull(prepared) if self.scale else None

    def pull(self, prepared: Denoiser | Guided) -> Guide:
        """The guide with its scale."""
        raise NotImplementedError("a guided purifier implements pull")

    def _round(self, schedule: Schedule, eta: float) -> Round:
        times = schedule.timesteps(self.first(schedule), self.steps)
        return Round(timesteps=times, eta=eta, variance=self.variance, clip_x0=self.clip_x0)

    def _calls(self) -> int:
        return (self.steps or self.t or round(3 * self.sigma)) * self.copies


class GDMP(GuidedDiffusion):
    """Guided diffusion for purification (Wang et al. 2022): every step is pulled towards the noised input.

    The paper purifies CIFAR-10 in 4 rounds of all 36 times with an MSE of scale 60000 (a mean over 32 x 32 pixels:
    60 a pixel, the default here), ImageNet in one with SSIM. Fewer rounds and steps are the default, as details
    count in restoration.
    """

    name: ClassVar[str] = "gdmp"

    sigma: float = Field(default=16.4, gt=0)
    scale: float = Field(default=60.0, ge=0)
    distance: Literal["mse", "ssim"] = "mse"
    """What the guide compares: pixels, or SSIM, which needs sides of 11 at least; its scale is 3 unless given, as 30
    costs 4 dB."""
    noised: bool = True
    """Whether the input is noised as the chain is before they are compared."""
    repeats: int = Field(default=2, ge=1)
    """Rounds, each from the result of the one before."""

    @model_validator(mode="before")
    @classmethod
    def _scale_of(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("distance") == "ssim":
            return {"scale": 3.0} | values
        return values

    @property
    def calls(self) -> int:
        """One a step and round."""
        return self._calls() * self.repeats

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """The same ancestral round `repeats` times."""
        return (self._round(schedule, 1.0),) * self.repeats

    def pull(self, prepared: Denoiser | Guided) -> Guide:
        """MSE or SSIM against the purifier's input."""
        kind = MSEGuide if self.distance == "mse" else SSIMGuide
        return kind(scale=self.scale, form=self.form, reduction=self.reduction, noised=self.noised)


class TwiceOneStep(GuidedDiffusion):
    """Two estimates of the clean image with one guided step between them, three calls (Zhang et al. 2024).

    The first estimate is what the guided step pulls towards; the second one starts from there.
    """

    name: ClassVar[str] = "twice-one-step"

    sigma: float = Field(default=19.0, gt=0)
    scale: float = Field(default=60.0, ge=0)
    noised: bool = True
    """Whether the first estimate is noised as the chain is before they are compared."""
    steps: None = None

    @property
    def calls(self) -> int:
        """Three."""
        return 3 * self.copies

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """One estimate; then from the input again, one time down under the guide, and the estimate from there."""
        first = max(1, self.first(schedule))
        shared: dict[str, Any] = {"clip_x0": self.clip_x0, "variance": self.variance, "eta": 1.0}
        return (
            Round(timesteps=(first,), guided=False, **shared),
            Round(timesteps=(first, first - 1), start="input", reference="previous", **shared),
        )

    def pull(self, prepared: Denoiser | Guided) -> Guide:
        """MSE against the first estimate."""
        return MSEGuide(scale=self.scale, form=self.form, reduction=self.reduction, noised=self.noised)


class AGDM(GuidedDiffusion):
    """Adversarially guided diffusion (Lin et al. 2024), its part for restoration.

    The chain is pulled towards images whose features in an adversarially trained network are those of the input.
    The method's second term raises the probability of a class, and restoration has none. Written from the paper's
    description, as its code is not public; the paper's t is 70 of 1000 (sigma 30), with every time walked.
    """

    name: ClassVar[str] = "agdm"

    sigma: float = Field(default=25.0, gt=0)
    scale: float = Field(default=30.0, ge=0)
    form: Form = "eps"
    eta: float = Field(default=1.0, ge=0, le=1)
    """Noise that is added on the way back: 0 none, 1 as much as the ancestral chain."""
    noised: bool = False
    """Whether the input is noised with the step's tape before its features are taken."""
    guide_weights: str | None = None
    """Folder or URI of a guide's network, as `udc-ray train guide` writes it; the shipped one unless given."""

    not_identity: ClassVar[frozenset[str]] = Diffusion.not_identity | {"guide_weights"}

    @property
    def calls(self) -> int:
        """One a step, and about one more for the guide."""
        return 2 * self._calls()

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """One round."""
        return (self._round(schedule, self.eta),)

    def pull(self, prepared: Denoiser | Guided) -> Guide:
        """Features of the prepared network."""
        if not isinstance(prepared, Guided):
            raise TypeError("AGDM is prepared with the network of its guide")
        network: Any = prepared.auxiliary
        return FeatureGuide(
            network=network, scale=self.scale, form=self.form, reduction=self.reduction, noised=self.noised
        )

    def prepare(self, device: str) -> Guided:
        """Load the prior and the guide's network on a device."""
        prior = super().prepare(device)
        assert isinstance(prior, Denoiser), "the base class prepares the prior alone"
        folder = guide_network.guide_folder(self.guide_weights)
        return Guided(prior, guide_network.load_guide(folder, device))

    def weight_files(self) -> dict[str, str]:
        """Files of the prior and of the guide."""
        folder = guide_network.guide_folder(self.guide_weights)
        guide_network.read_card(folder)
        return super().weight_files() | {f"guide/{name}": str(folder / name) for name in guide_network.GUIDE_FILES}
