"""Diffusion priors on disk: diffusers' folder layout, with what it leaves unsaid in prior.json.

diffusers records neither the range of the training images nor their domain; feeding [0, 1] to a
[-1, 1] network doubles the noise without a word, so both are asserted here at load.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import WeightsError
from udc_ray.purifiers.schedule import Schedule

CONFIG, WEIGHTS, SCHEDULER, SIDECAR = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "scheduler_config.json",
    "prior.json",
)
PRIOR_FILES = (CONFIG, WEIGHTS, SIDECAR)
"""The files of a prior that decide its output."""
DEFAULT_PRIOR = Path(__file__).parent.parent / "weights" / "prior"
"""Folder of the prior that is shipped."""
_AVERAGING_KEYS = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)
"""What diffusers' EMAModel leaves in the config of the network that it saves."""


class Sidecar(BaseModel):
    """What has to be known of a prior beside its weights.

    Attributes:
        input_range: values of the training images.
        prediction: what the network predicts.
        schedule: the noise schedule; a diffusers scheduler config is read.
        training_domain: what the prior was trained on, in words.
        sha256: of the weights file; filled in by `save_prior`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_range: tuple[float, float] = Field(examples=[(-1, 1)])
    prediction: Literal["epsilon"]
    schedule: Schedule
    training_domain: str
    sha256: str = ""


class Denoiser:
    """A noise predictor for images in [-1, 1], of any size.

    Args:
        network: a diffusers UNet2DModel; put in evaluation mode, its parameters frozen.
        schedule: its noise schedule.
    """

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network = network.eval().requires_grad_(False)
        self.schedule = schedule
        config: Any = network.config
        self.channels: int = config.in_channels
        self.size_multiple: int = 2 ** (len(config.block_out_channels) - 1)

    def __call__(self, x_t_BCHW: Tensor, t: int) -> Tensor:
        """Predicted noise of B x C x H x W at time `t`; sides are padded to the size multiple inside."""
        height, width = x_t_BCHW.shape[-2:]
        eps_hat: Tensor = self.network(pad_to(x_t_BCHW, self.size_multiple), t, return_dict=False)[0]
        return eps_hat[..., :height, :width]


def pad_to(x_BCHW: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to a multiple; mirrored where the image is large enough, else the edge is repeated."""
    height, width = x_BCHW.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not down and not right:
        return x_BCHW
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(x_BCHW, (0, right, 0, down), mode=mode)


def read_sidecar(folder: Path) -> Sidecar:
    """Read and check prior.json and the files that belong to it, without loading the network."""
    for name in PRIOR_FILES:
        if not (folder / name).is_file():
            raise _missing(folder, name)
    sidecar = _parse_sidecar(folder)
    if sidecar.input_range != (-1.0, 1.0):
        raise WeightsError(
            f"{folder / SIDECAR}: input_range is {list(sidecar.input_range)}",
            "the prior was trained on images of another range",
            "use a prior for [-1, 1]; only those are supported",
        )
    if (folder / SCHEDULER).is_file():
        _check_scheduler(folder, sidecar.schedule)
    return sidecar


def load_denoiser(folder: Path, device: str) -> Denoiser:
    """Load a prior: strict keys, checked hash, evaluation mode, frozen; nothing is downloaded.

    Args:
        folder: config.json, diffusion_pytorch_model.safetensors and prior.json.
        device: ``cpu`` or ``cuda``.
    """
    sidecar = read_sidecar(folder)
    digest = _sha256(folder / WEIGHTS)
    if sidecar.sha256 != digest:
        raise WeightsError(
            f"{folder / WEIGHTS} is not the file that {SIDECAR} describes",
            "a truncated copy, or weights and sidecar of different priors",
            f"copy the whole folder again; the file's sha256 is {digest}",
        )
    network = _build(folder, _read_json(folder / CONFIG))
    _load_weights(network, folder / WEIGHTS)
    return Denoiser(network.to(device), sidecar.schedule)


def save_prior(folder: Path, model: nn.Module, sidecar: Sidecar) -> Sidecar:
    """Write a prior in diffusers' layout; returns the sidecar with the hash of the weights.

    Args:
        folder: made if need be; prior.json is written last, so that a folder with one is complete.
        model: a diffusers UNet2DModel.
        sidecar: range, prediction, schedule and domain of the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIDECAR).unlink(missing_ok=True)
    # channels-last training leaves strides that safetensors refuses
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone, which breaks an installation
    described: Any = model
    (folder / CONFIG).write_text(described.to_json_string())
    (folder / SCHEDULER).write_text(json.dumps(sidecar.schedule.scheduler_config(), indent=2) + "\n")
    complete = sidecar.model_copy(update={"sha256": _sha256(folder / WEIGHTS)})
    (folder / SIDECAR).write_text(complete.model_dump_json(indent=2) + "\n")
    return complete


def _missing(folder: Path, name: str) -> WeightsError:
    if folder == DEFAULT_PRIOR:
        return WeightsError(
            f"the shipped prior is incomplete: {folder / name} is missing",
            "a broken installation",
            "install udc-ray again, or give weights: FOLDER",
        )
    change = f"a prior is a folder with {', '.join(PRIOR_FILES)}"
    if name == SIDECAR and folder.is_dir():
        change = (
            f"write {SIDECAR} with input_range, prediction, schedule, training_domain and sha256 of {WEIGHTS}; "
            "diffusers does not record them"
        )
    return WeightsError(f"{folder / name} is missing", "not the folder of a prior", change)


def _parse_sidecar(folder: Path) -> Sidecar:
    try:
        return Sidecar.model_validate(_read_json(folder / SIDECAR))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsError(
            f"{folder / SIDECAR}: {where}: {first['msg']}",
            f"given: {first['input']!r}",
            "only priors that predict epsilon under a linear, scaled_linear or squaredcos_cap_v2 schedule can be used",
        ) from error


def _check_scheduler(folder: Path, schedule: Schedule) -> None:
    """Refuse a scheduler config that says something else than the sidecar."""
    try:
        beside = Schedule.model_validate(_read_json(folder / SCHEDULER))
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{folder / SCHEDULER}: {first['msg']}", f"given: {first['input']!r}") from error
    if beside != schedule:
        raise WeightsError(
            f"{SCHEDULER} and {SIDECAR} in {folder} name different schedules",
            "files of two priors in one folder",
            "keep the schedule that the prior was trained with in both",
        )


def _build(folder: Path, config: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers announces optional packages that nobody here needs
        from diffusers import UNet2DModel
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise WeightsError(f"{folder / CONFIG} describes a {config['_class_name']}", change="only UNet2DModel is read")
    known = inspect.signature(UNet2DModel.__init__).parameters
    for key in config:
        if key not in known and not key.startswith("_") and key not in _AVERAGING_KEYS:
            raise WeightsError(f"{folder / CONFIG}: UNet2DModel has no setting {key!r}", "a config of another network")
    try:
        with torch.random.fork_rng(devices=[]):  # the weights made here are replaced; nobody's generator moves
            network: nn.Module = UNet2DModel.from_config({key: config[key] for key in config if key in known})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG} describes no network: {error}", "an edited config") from error
    described: Any = network.config
    if described.in_channels != described.out_channels:
        raise WeightsError(
            f"{folder / CONFIG}: {described.in_channels} channels in, {described.out_channels} out",
            "a network that also predicts the variance",
            "use a prior that predicts epsilon only",
        )
    return network


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "a truncated file, or not safetensors") from error
    wanted = network.state_dict()
    for key in [*wanted, *given]:
        if key not in given or key not in wanted or given[key].shape != wanted[key].shape:
            found = f"{key} {tuple(given[key].shape)}" if key in given else f"no {key}"
            needed = f"{key} {tuple(wanted[key].shape)}" if key in wanted else f"no {key}"
            raise WeightsError(f"{path} holds {found}, {CONFIG} asks for {needed}", "weights of another network")
        if not torch.isfinite(given[key]).all():
            raise WeightsError(f"{path}: {key} is not finite", "a training that diverged")
    # copied, not assigned: the file's tensors lie unaligned in memory, which changes the last bits of convolutions
    network.load_state_dict(given)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "a truncated file, or not JSON") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object", "another file of the same name")
    return values


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
