"""Everything that can be known, and refused, before a run directory exists."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.query import QueryAttack
from udc_ray.attacks.registry import ATTACKS
from udc_ray.checks import ON_REQUEST
from udc_ray.data.base import Dataset
from udc_ray.data.open import open_dataset
from udc_ray.errors import DataError, SpecError, did_you_mean
from udc_ray.fingerprint import cells_key, fingerprint, fingerprint_document
from udc_ray.metered.endpoint import is_target
from udc_ray.metered.model import as_sent, check_target, endpoint_of, with_depth
from udc_ray.metrics.perceptual import get_perceptual
from udc_ray.metrics.protocols import get_protocol
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load_restorer
from udc_ray.plan import Plan, make_plan, read_attack, read_defence
from udc_ray.probe import Resolved
from udc_ray.selection import check_selection
from udc_ray.setup import HostSetup
from udc_ray.spec import Entry, RunSpec
from udc_ray.tasks import Task, get_task
from udc_ray.tasks.base import objective_for

SMALLEST_SIDE = 16
MAX_SHAPES = 4
"""Image shapes that the probes look at, the largest ones."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A validated run.

    Attributes:
        setup: what the hosts need.
        document: what the fingerprint is the hash of.
        shapes: C, H, W of the images, as far as the probes need them.
        restorer: the loaded model, for a host in this process.
        device: ``cpu`` or ``cuda``.
        notes: what will not be measured, and why; one line each.
    """

    setup: HostSetup
    document: dict[str, object]
    shapes: tuple[tuple[int, int, int], ...]
    restorer: Restorer
    device: str
    notes: tuple[str, ...] = ()


def choose_device(wanted: str) -> str:
    """``auto`` takes a GPU where there is one."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise SpecError("run.device is cuda, but no GPU is visible", "no driver, or a CPU build of torch")
    return "cuda" if wanted == "cuda" or (wanted == "auto" and available) else "cpu"


def prepare(spec: RunSpec, device: str | None = None) -> Prepared:
    """Load, check and hash all that a run depends on; nothing is written.

    Args:
        spec: the run.
        device: ``cpu`` or ``cuda`` where the hosts are on other machines; looked up here unless given.

    Raises:
        UserError: something cannot be used.
    """
    device = "cpu" if is_target(spec.model.name) else device or choose_device(spec.run.device)
    get_protocol(spec.protocol)
    get_objective(spec.objective)
    get_perceptual(spec.perceptual)
    _check_names(spec)
    spec, endpoint = with_depth(spec), endpoint_of(spec)
    restorer = load_restorer(spec.model)
    task = get_task(restorer.descriptor.task)
    dataset = open_dataset(spec.data, spec.limit, spec.seed, channels=restorer.descriptor.channels)
    dataset = as_sent(dataset, endpoint)
    spec = _fit_stops(_fit_objective(spec, dataset, task), task)
    shapes = _check_images(dataset, restorer, task)
    hashes = _hashes(spec, dataset, restorer)
    document = fingerprint_document(spec, hashes, device)
    plan = make_plan(spec, cells_key(document), task.name)
    check_target(spec, plan)
    _check_attacks(spec, plan, task)
    _check_judges(spec, plan, shapes, task)
    threads = spec.run.threads
    slots = 4 if spec.run.micro_batch == "auto" else spec.run.micro_batch
    slots = slots if endpoint is None else 1  # a metered target is sent one image a request
    setup = HostSetup(
        spec=spec,
        plan=plan,
        dataset=dataset,
        fingerprint=fingerprint(spec, hashes, device),
        model_name=restorer.descriptor.name,
        resolved=Resolved(micro_batch=slots, threads=threads, device_type=device),
    )
    check_selection(setup, restorer)
    return Prepared(
        setup=setup,
        document=document,
        shapes=shapes[:MAX_SHAPES],
        restorer=restorer,
        device=device,
        notes=_notes(spec, shapes, task),
    )


def _check_names(spec: RunSpec) -> None:
    for name in spec.checks:
        if name not in ON_REQUEST:
            raise SpecError(f"unknown check {name!r} in checks", change=did_you_mean(name, ON_REQUEST))


def _fit_objective(spec: RunSpec, dataset: Dataset, task: Task) -> RunSpec:
    """The objective where the spec does not say one that fits.

    ``mse`` is the spec's default and stands for the task's own. Without a truth, damage is measured against
    the victim's own clean output.
    """
    if spec.objective == RunSpec.model_fields["objective"].default:
        spec = spec.model_copy(update={"objective": task.objectives[0]})
    objective = get_objective(spec.objective)
    if dataset.has_truth or objective.reference == "clean" or f"{spec.objective}-clean" not in task.objectives:
        return spec
    return spec.model_copy(update={"objective": f"{spec.objective}-clean"})


def _fit_stops(spec: RunSpec, task: Task) -> RunSpec:
    """Query attacks that say nothing about it end as the task has it; written out, so that the spec tells."""
    if task.stop == "never":
        return spec
    return spec.model_copy(update={"attacks": tuple(_stopped(entry, task) for entry in spec.attacks)})


def _stopped(entry: Entry, task: Task) -> Entry:
    if not issubclass(ATTACKS.get(entry.name), QueryAttack) or "stop" in entry.params:
        return entry
    return entry.model_copy(update={"params": entry.params | {"stop": task.stop}})


def _check_images(dataset: Dataset, restorer: Restorer, task: Task) -> tuple[tuple[int, int, int], ...]:
    """Read every image once, so that a bad one is known before the run begins."""
    shapes: dict[tuple[int, int, int], None] = {}
    for image_id in dataset.image_ids:
        sample = dataset.load(image_id)
        channels, height, width = sample.degraded.shape
        if channels != restorer.descriptor.channels:
            raise DataError(
                f"image {image_id} has {channels} channels; {restorer.descriptor.name} takes "
                f"{restorer.descriptor.channels}",
                "raw planes and RGB are mixed up",
                "declare the same channels in model and data",
            )
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(f"image {image_id} is {width}x{height}", "too small", f"give at least {SMALLEST_SIDE} px")
        task.check_sample(sample, restorer.descriptor)
        shapes[channels, height, width] = None
    return tuple(sorted(shapes, key=math.prod, reverse=True))


def _hashes(spec: RunSpec, dataset: Dataset, restorer: Restorer) -> dict[str, str]:
    hashes = {f"data:{name}": value for name, value in dataset.file_hashes().items()}
    if restorer.descriptor.sha256 is not None:
        hashes["model"] = restorer.descriptor.sha256
    perceptual = get_perceptual(spec.perceptual)
    for name, value in perceptual.weight_hashes().items() if perceptual is not None else ():
        hashes[f"perceptual:{name}"] = value
    for number, entry in enumerate(spec.defenses):
        purifier = read_defence(entry).purifier
        for name, value in purifier.weight_hashes().items() if purifier is not None else ():
            hashes[f"defense:{number}:{entry.name}:{name}"] = value
    for number, entry in enumerate(spec.attacks):
        for name, value in read_attack(entry).attack.weight_hashes().items():
            hashes[f"attack:{number}:{entry.name}:{name}"] = value
    return hashes


def _check_attacks(spec: RunSpec, plan: Plan, task: Task) -> None:
    """Refuse objectives of another task, and attacks that look for an event when nothing says what the event is."""
    for entry in plan.attacks:
        attack = entry.attack
        objective = objective_for(task, entry.name, attack.objective or spec.objective)
        if task.name != "restoration" or not (attack.minimum_norm or getattr(attack, "stop", "never") != "never"):
            continue
        if not objective.name.startswith("mse"):
            raise SpecError(f"{entry.name} needs an objective from which PSNR follows", change="use mse or mse-clean")
        if objective.reference == "clean" and spec.success.psnr_below is None:
            raise SpecError(
                f"{entry.name} ends when an image is harmed, but nothing says what harmed is",
                "against the model's own clean output there is no PSNR to drop from",
                "give success: {psnr_below: dB}",
            )


def _check_judges(spec: RunSpec, plan: Plan, shapes: tuple[tuple[int, int, int], ...], task: Task) -> None:
    """Refuse images that the task or an objective is not defined for."""
    for shape in shapes:
        task.check_shape(get_protocol(spec.protocol), shape)
        for entry in plan.attacks:
            get_objective(entry.attack.objective or spec.objective).check(*shape)
            entry.attack.check_shape(*shape)


def _notes(spec: RunSpec, shapes: tuple[tuple[int, int, int], ...], task: Task) -> tuple[str, ...]:
    perceptual = get_perceptual(spec.perceptual) if task.measured_by(spec)["perceptual"] is not None else None
    reason = perceptual.why_not(*shapes[0]) if perceptual is not None else None
    return () if reason is None else (f"no perceptual distance {spec.perceptual.name}: {reason}",)
