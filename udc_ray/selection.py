"""The choice of noise levels before a run (ANLS): a stage of its own, on images that the run does not evaluate.

For every defence with ``selector: anls``: trial images are attacked without the purifier, purified at every candidate
level, and compared with clean images in the features of the restorer. The nearest level is frozen for the run. Beside
it stands how well the candidates did, against that attack and against one that goes through the purifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from udc_ray import memory
from udc_ray.clean_side import CleanSide, find_clean, read_clean
from udc_ray.data.base import Dataset
from udc_ray.data.folder import open_degraded
from udc_ray.data.tree import is_folder
from udc_ray.errors import DataError, DeviceMemoryError, SpecError
from udc_ray.features import Layer, features_of, find_layer
from udc_ray.location import RemoteFolder
from udc_ray.models.base import Restorer
from udc_ray.plan import Plan
from udc_ray.probe import Resolved
from udc_ray.purifiers.ranking import FID_ROWS, Metric, distance, rank, require_rows
from udc_ray.purifiers.schedule import Schedule
from udc_ray.purifiers.selectors import ANLS
from udc_ray.purifiers.victim import Victim
from udc_ray.setup import HostSetup
from udc_ray.trial_bench import Trial, TrialBench
from udc_ray.trials import squares, trial_samples

if TYPE_CHECKING:
    from udc_ray.host import Host

CLEAN_SQUARES = 2048
"""Squares of a folder of clean images at most."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One level that was tried.

    Attributes:
        t: its time.
        sigma: its noise, in /255 units of the image.
        distance, ci_low, ci_high, share: see `udc_ray.purifiers.ranking.Ranked`.
        blind: mean quality of the restored trial images, attacked without the purifier: PSNR in dB, or the score.
        adaptive: of the few that were attacked through the purifier at this level; None where none was.
    """

    t: int
    sigma: float
    distance: float
    ci_low: float
    ci_high: float
    share: float
    blind: float
    adaptive: float | None


class Unpurified(NamedTuple):
    """Trial images as the restorer meets them without a purifier."""

    distance: float
    quality: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the level of one defence was chosen.

    Attributes:
        defence: index into `Plan.defences`.
        label: of the defence, for people.
        metric: ``fid`` or ``kid``.
        layer: module whose output was averaged.
        width: features an image.
        clean: clean images.
        display: display that they are confined to, or None.
        trials: trial images.
        edge: their edge in px.
        attack: identity of the trial attack.
        exposed: how many of them were attacked through the purifier.
        grad_mode: the gradient of that attack.
        chosen: index of the level that was taken.
        agreement: share of the resamples that take it.
        worst: index of the level with the lowest adaptive quality; the lowest blind one where that is not known.
        untouched, attacked: distance and quality of the trial images without any purification, before and after
            the trial attack: between these two the candidates are to be read.
        candidates: one a level.
    """

    defence: int
    label: str
    metric: Metric
    layer: str
    width: int
    clean: int
    display: str | None
    trials: int
    edge: int
    attack: str
    exposed: int
    grad_mode: str
    chosen: int
    agreement: float
    worst: int
    untouched: Unpurified
    attacked: Unpurified
    candidates: tuple[Candidate, ...]

    @property
    def t(self) -> int:
        """The level that was taken."""
        return self.candidates[self.chosen].t

    def to_json(self) -> dict[str, Any]:
        """Plain values, for selection.json."""
        bare = {"untouched": self.untouched._asdict(), "attacked": self.attacked._asdict()}
        return {**asdict(self), **bare, "candidates": [asdict(candidate) for candidate in self.candidates]}

    def note(self) -> str:
        """One line for people."""
        taken, worst = self.candidates[self.chosen], self.candidates[self.worst]
        text = (
            f"{self.label}: level t = {taken.t} (sigma {taken.sigma:.1f}/255) of {len(self.candidates)} candidates by "
            f"{self.metric}, the same in {100 * self.agreement:.0f} % of the resamples; worst candidate t = {worst.t}"
        )
        if taken.distance < self.attacked.distance:
            return text
        return f"{text}; no level brings purified images nearer to clean ones than the attacked images are already"


def pending(plan: Plan) -> dict[int, ANLS]:
    """The defences whose level is to be chosen before the run, by index."""
    found = {d: getattr(defence.purifier, "selector", None) for d, defence in enumerate(plan.defences)}
    return {d: selector for d, selector in found.items() if isinstance(selector, ANLS)}


def check_selection(setup: HostSetup, restorer: Restorer) -> None:
    """Refuse a choice of levels that cannot be made, before anything is done.

    Raises:
        UserError: no features, no clean images, or too few images on either side.
    """
    for selector in pending(setup.plan).values():
        layer = find_layer(restorer, selector.layer)
        trials = trial_samples(setup.spec, setup.dataset, selector.trials, selector.edge)
        clean = _clean(selector, setup.dataset, restorer, layer)
        count = len(clean.features) if isinstance(clean, CleanSide) else len(clean)
        require_rows(selector.metric, count, len(trials), layer.width)


def select_levels(host: Host, resolved: Resolved) -> Resolved:
    """Choose the level of every defence that wants it, on this host; keyed, so that any host chooses alike.

    Args:
        host: has the models; it adopts `resolved`.
        resolved: what the probes settled.

    Raises:
        UserError: no choice can be made.
    """
    wanted = pending(host.setup.plan)
    if not wanted:
        return resolved
    host.configure(resolved)
    attacked: dict[tuple[int, int, str], list[Trial]] = {}
    choices = []
    for defence, selector in wanted.items():
        largest = torch.zeros(host.slots, host.restorer.descriptor.channels, selector.edge, selector.edge)
        try:
            with (
                host.meter.work("the choice of a noise level"),
                memory.explained(partial(host.trial, largest), host.slots, "the choice of a noise level"),
            ):
                choices.append(_choose(host, defence, selector, attacked))
        except DeviceMemoryError as error:
            raise SpecError(str(error), "trial images, model or micro_batch are too large for the device") from error
    return replace(
        resolved,
        levels={str(choice.defence): choice.t for choice in choices},
        layers={str(choice.defence): choice.layer for choice in choices},
        selections=tuple(choice.to_json() for choice in choices),
        notes=(*resolved.notes, *(choice.note() for choice in choices)),
    )


def _choose(host: Host, defence: int, selector: ANLS, attacked: dict[tuple[int, int, str], list[Trial]]) -> Choice:
    setup, bench, victim = host.setup, TrialBench(host), host.victim(defence)
    layer = find_layer(host.restorer, selector.layer, host.device)
    side = _features(host, selector, layer)
    trials = _attacked(bench, selector, attacked)
    schedule: Schedule = getattr(victim.prepared, "denoiser", victim.prepared).schedule
    times = selector.times(schedule)
    victims = [_at(victim, t) for t in times]
    looks = [bench.look(trials, one, layer) for one in victims]
    untouched = [replace(trial, attacked=trial.sample.degraded) for trial in trials]
    before, after = (_unpurified(bench, selector, layer, side, some) for some in (untouched, trials))
    ranking = rank(selector.metric, side.features, [rows for rows, _ in looks], bench.seed, selector.draws)
    adaptive = [_adaptive(bench, selector, trials[: selector.exposed], one) for one in victims]
    candidates = tuple(
        Candidate(t=t, sigma=schedule.sigma(t), blind=blind, adaptive=exposed, **asdict(row))
        for t, row, (_, blind), exposed in zip(times, ranking.rows, looks, adaptive, strict=True)
    )
    return Choice(
        defence=defence,
        label=next(cell.defence_label for cell in setup.plan.cells if cell.defence == defence),
        metric=selector.metric,
        layer=layer.name,
        width=layer.width,
        clean=len(side.features),
        display=side.displays[0] if len(set(side.displays)) == 1 else None,
        trials=len(trials),
        edge=selector.edge,
        attack=selector.attack.identity(),
        exposed=min(selector.exposed, len(trials)),
        grad_mode=victims[0].grad_mode,
        chosen=ranking.chosen,
        agreement=ranking.agreement,
        worst=min(range(len(times)), key=lambda n: (candidates[n].adaptive or 0.0, candidates[n].blind)),
        untouched=before,
        attacked=after,
        candidates=candidates,
    )


def _unpurified(bench: TrialBench, selector: ANLS, layer: Layer, side: CleanSide, trials: list[Trial]) -> Unpurified:
    rows, quality = bench.look(trials, Victim(restorer=bench.host.restorer), layer)
    return Unpurified(distance=distance(selector.metric, side.features, rows), quality=quality)


def _at(victim: Victim, t: int) -> Victim:
    """The victim at one level, as the trial attack goes through it: with the exact gradient where there is one."""
    purifier: Any = victim.purifier
    return replace(victim, purifier=purifier.with_level(t), grad_mode="full" if purifier.offers("full") else "bpda")


def _attacked(bench: TrialBench, selector: ANLS, known: dict[tuple[int, int, str], list[Trial]]) -> list[Trial]:
    """The attacked trial images; defences that ask for the same ones share them."""
    key = (selector.trials, selector.edge, selector.attack.identity())
    if key not in known:
        setup = bench.host.setup
        samples = trial_samples(setup.spec, setup.dataset, selector.trials, selector.edge)
        undefended = Victim(restorer=bench.host.restorer)
        known[key] = bench.attack(bench.trials(samples), selector.attack, undefended)
    return known[key]


def _adaptive(bench: TrialBench, selector: ANLS, trials: list[Trial], victim: Victim) -> float | None:
    return bench.quality(bench.attack(trials, selector.attack, victim), victim) if trials else None


def _features(host: Host, selector: ANLS, layer: Layer) -> CleanSide:
    found = _clean(selector, host.setup.dataset, host.restorer, layer)
    if isinstance(found, CleanSide):
        return found
    return CleanSide(features=features_of(host.restorer, layer, found, host.slots, host.device))


def _clean(selector: ANLS, dataset: Dataset, restorer: Restorer, layer: Layer) -> CleanSide | Sequence[Tensor]:
    """Features of clean images; or the images, where a folder of them was given."""
    found = find_clean(selector.clean)
    if not (isinstance(found, RemoteFolder) or is_folder(found)):
        display = getattr(getattr(dataset, "display", None), "name", None)
        return read_clean(found, restorer, layer).behind(display, FID_ROWS * layer.width)
    folder = open_degraded(found, restorer.descriptor.channels)
    if folder.domain != dataset.domain:
        raise DataError(
            f"the clean images in {found} are in the domain {folder.domain}, those of the run in {dataset.domain}",
            "8-bit pictures on one side, linear or raw data on the other",
            "give clean images of the same kind",
        )
    images: list[Tensor] = []
    for image_id in folder.image_ids:
        images += squares(folder.load(image_id).degraded, selector.edge)
        if len(images) >= CLEAN_SQUARES:
            break
    return images[:CLEAN_SQUARES]
