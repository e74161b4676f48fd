"""Attacks: hyper-parameters as a frozen value; the victim comes at the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from udc_ray.attacks.diagnostics import Diagnostics
from udc_ray.attacks.objectives import Objective
from udc_ray.attacks.threat import Depth, Norm, Threat
from udc_ray.batching import Rows, packed
from udc_ray.labels import describe_eps
from udc_ray.params import Amount, Params
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

StopReason = Literal["iterations", "success", "budget", "converged", "error"]
DEFAULT_EPS: dict[str, float] = {"linf": 8 / 255, "l2": 5.0}


class Attack(Params):
    """Base of all attacks.

    Attributes:
        kind: ``control`` asks nothing, ``gradient`` needs gradients, ``query`` needs answers only.
        minimum_norm: looks for the smallest harmful perturbation; has no eps.
    """

    kind: ClassVar[Literal["control", "gradient", "query"]]
    minimum_norm: ClassVar[bool] = False

    norm: Norm = "linf"
    eps: Amount | None = Field(default=None, gt=0)
    """Radius in units of the [0, 1] image; 8/255 for linf and 5.0 for l2 unless given."""
    depth: Depth = "float"
    """Storage depth of the attacked image."""
    restarts: int = Field(default=1, ge=1)
    objective: str | None = None
    """Objective in place of the run's."""

    @model_validator(mode="before")
    @classmethod
    def _fill_eps(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.minimum_norm:
            return values
        norm = values.get("norm", cls.model_fields["norm"].default)
        return {"eps": DEFAULT_EPS.get(norm)} | {k: v for k, v in values.items() if v is not None}

    @model_validator(mode="after")
    def _check_eps(self) -> Attack:
        if self.minimum_norm and self.eps is not None:
            raise ValueError("a minimum-norm attack has no eps")
        if not self.minimum_norm and self.norm == "linf" and self.eps is not None and self.eps > 1:
            raise ValueError("eps is in units of the [0, 1] image: write 8/255, not 8")
        return self

    @property
    def threat(self) -> Threat:
        """Ball, box and storage depth of this attack."""
        return Threat(norm=self.norm, eps=self.eps, depth=self.depth)

    @property
    def bound(self) -> str:
        """What bounds it, for people; nothing for a minimum-norm attack."""
        return "" if self.eps is None else f"{self.norm} {describe_eps(self.eps)}"

    def check_shape(self, channels: int, height: int, width: int) -> None:
        """Refuse images that it is not defined for with a DataError; most take all."""
        return

    @property
    def passes(self) -> int:
        """Roughly how many forward passes an image takes, a gradient counting for three; for planning only."""
        return 1

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of every weights file that the attack brings, by a name that is no path; most bring none."""
        return {}

    @property
    def stream(self) -> str:
        """Name under which the attack's own draws are keyed."""
        return f"attack/{self.identity()}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A micro-batch of images to attack.

    Attributes:
        x_BCHW: untouched inputs in [0, 1].
        tape: keyed noise, stream ``attack/...``, with the image ids and the restart.
        clean_score_B: score of the untouched images (from the harness, not charged).
        goal_B: score from which on an image counts as a success.
    """

    x_BCHW: Tensor
    tape: Tape
    clean_score_B: Tensor
    goal_B: Tensor


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What an attack found, per image.

    Attributes:
        x_adv_BCHW: best attacked images, inside the threat.
        score_B: their score as the attack saw it.
        queries, grad_evals: what was asked of the victim.
        stop_reasons: why each image stopped.
        curves: per image, (queries asked, best score) at every improvement; query attacks only.
        diagnostics: what a gradient attack noticed of each image; empty where it notes nothing.
    """

    x_adv_BCHW: Tensor
    score_B: Tensor
    queries: list[int]
    grad_evals: list[int]
    stop_reasons: list[StopReason]
    curves: list[list[tuple[int, float]]] = field(default_factory=list)
    diagnostics: list[Diagnostics] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """One gradient evaluation: loss and score are B values, the gradient is B x C x H x W."""

    loss_B: Tensor
    score_B: Tensor
    gradient_BCHW: Tensor


Loss = Callable[[Tensor, Tensor], Tensor]


class GradientTarget:
    """What a gradient attack may ask of a victim; the place where its requests are counted.

    A random victim is asked with several draws an image. Images and draws fill micro-batches of one fixed shape
    together, so that no slot stays empty while draws wait, and every row has the same bits wherever it stands.

    Args:
        victim: the model, with its gradient mode.
        objective: loss and score.
        reference_BCHW: truth or clean output.
        tape: the attack's tape.
        eot: draws of a random victim that are averaged in one gradient (Athalye et al. 2018).
        select_draws: draws on the fixed select tape by which iterates of a random victim are compared.
        count: images that are not copies which fill the batch; all unless given.
        frozen: every step meets the draws of step 0, and iterates are compared on them.
    """

    def __init__(
        self,
        victim: Victim,
        objective: Objective,
        reference_BCHW: Tensor,
        tape: Tape,
        *,
        eot: int = 1,
        select_draws: int = 1,
        count: int | None = None,
        frozen: bool = False,
    ) -> None:
        self.victim, self.objective, self.reference_BCHW, self.tape = victim, objective, reference_BCHW, tape
        self.eot = eot if victim.random else 1
        self.frozen = frozen and victim.random
        self.select_draws = (self.eot if self.frozen else select_draws) if victim.random else 1
        self.slots = len(tape.image_ids)
        self.count = self.slots if count is None else count
        self.queries = [0] * self.slots
        self.grad_evals = [0] * self.slots

    def gradient(
        self, x_BCHW: Tensor, step: int, *, loss: Loss | None = None, active_B: Tensor | None = None
    ) -> Gradient:
        """Gradient of the mean loss over the EOT draws; also the score of `x_BCHW`.

        For a deterministic victim the score comes from the same forward pass and costs nothing;
        for a random one it is asked on the select tape and counted as queries.

        Args:
            x_BCHW: images in [0, 1].
            step: step of the attack, for the draws.
            loss: loss of outputs and references, per row, in place of the objective's.
            active_B: images that are still attacked; the others are not charged.
        """
        loss = loss or self.objective.loss
        loss_B = torch.zeros(self.slots, device=x_BCHW.device)
        score_B = torch.zeros(self.slots, dtype=torch.float64, device=x_BCHW.device)
        gradient = torch.zeros_like(x_BCHW)
        for rows in packed(self.count, self.eot, self.slots):
            leaf = x_BCHW[rows.images].detach().clone().requires_grad_(True)
            reference = self.reference_BCHW[rows.images]
            output = self.victim.differentiable(leaf, self._taped(self.tape.at(step=0 if self.frozen else step), rows))
            row_loss = loss(output, reference)
            row_gradient = torch.autograd.grad(row_loss.sum(), leaf)[0]
            row_score = None if self.victim.random else self.objective.score(output.detach(), reference)
            for place in range(rows.count):
                b = rows.images[place]
                gradient[b] += row_gradient[place] / self.eot
                loss_B[b] += row_loss[place].detach() / self.eot
                if row_score is not None:
                    score_B[b] = row_score[place]
        self._count(self.grad_evals, active_B, self.eot)
        if self.victim.random:
            score_B = self.score(x_BCHW, active_B=active_B)
        where = self._where
        return Gradient(loss_B=loss_B[where], score_B=score_B[where], gradient_BCHW=gradient[where])

    def score(self, x_BCHW: Tensor, *, active_B: Tensor | None = None) -> Tensor:
        """Score without gradient, mean over the fixed draws of the select tape; counted as queries.

        With frozen noise these are the draws that the gradient follows.
        """
        select = self.tape.at(step=0) if self.frozen else self.tape.at(stream="select", step=0)
        score_B = torch.zeros(self.slots, dtype=torch.float64, device=x_BCHW.device)
        for rows in packed(self.count, self.select_draws, self.slots):
            output, _ = self.victim.evaluate(x_BCHW[rows.images], self._taped(select, rows))
            row_score = self.objective.score(output, self.reference_BCHW[rows.images])
            for place in range(rows.count):
                score_B[rows.images[place]] += row_score[place] / self.select_draws
        self._count(self.queries, active_B, self.select_draws)
        return score_B[self._where]

    @property
    def _where(self) -> list[int]:
        """The image that stands in each slot; the first one in those that only fill the batch."""
        return [b if b < self.count else 0 for b in range(self.slots)]

    def _taped(self, tape: Tape, rows: Rows) -> Tape:
        ids = tuple(tape.image_ids[b] for b in rows.images)
        return replace(tape, image_ids=ids, rows=tuple((tape.restart, draw) for draw in rows.draws))

    @staticmethod
    def _count(counter: list[int], active_B: Tensor | None, amount: int) -> None:
        for b in range(len(counter)):
            if active_B is None or bool(active_B[b]):
                counter[b] += amount


class GradientAttack(Attack):
    """An attack that follows gradients; white-box units run whole on a host."""

    kind: ClassVar[Literal["control", "gradient", "query"]] = "gradient"

    eot: int = Field(default=1, ge=1)
    """Draws averaged in one gradient of a random victim."""
    select_draws: int = Field(default=1, ge=1)
    """Draws on the select tape by which iterates on a random victim are compared."""
    frozen_noise: bool = False
    """Follow one fixed draw of a random victim from the first step to the last, and compare iterates on it: a control,
    which succeeds where the attack works and only the noise stands in its way."""

    def perturb(self, target: GradientTarget, problem: Problem) -> AttackResult:
        """Attack a micro-batch; images are independent of one another."""
        raise NotImplementedError("a gradient attack implements perturb")


@dataclass
class Best:
    """Keeps the best iterate of every image."""

    x_BCHW: Tensor
    score_B: Tensor

    def offer(self, x_BCHW: Tensor, score_B: Tensor) -> Tensor:
        """Take over the images whose score is higher; returns which were."""
        better_B = score_B > self.score_B
        self.x_BCHW = torch.where(better_B[:, None, None, None], x_BCHW, self.x_BCHW)
        self.score_B = torch.where(better_B, score_B, self.score_B)
        return better_B
