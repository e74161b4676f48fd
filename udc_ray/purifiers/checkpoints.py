"""Priors on disk: diffusers' folders in every layout, with prior.json or the spec beside them."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.random import fork_rng

from udc_ray.errors import WeightsError
from udc_ray.models.checkpoints import load_into, read_state_dict
from udc_ray.purifiers.sidecar import Declared, Sidecar, agree, parse, read_json

CONFIG, WEIGHTS, TORCH_WEIGHTS, SCHEDULER, SIDECAR, PIPELINE = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "scheduler_config.json",
    "prior.json",
    "model_index.json",
)
PRIOR_FILES = (CONFIG, WEIGHTS, SIDECAR)
"""The files of a prior as `save_prior` writes it that decide its output."""
DEFAULT_PRIOR = Path(__file__).parent.parent / "weights" / "prior"
"""Folder of the prior that is shipped."""

_COMPONENTS = ("unet_ema", "unet", "")
_AVERAGING_KEYS = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)
"""What diffusers' EMAModel leaves in the config of the network that it saves."""
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the files of a prior lie, as POSIX paths relative to its folder.

    Attributes:
        config: the network's sizes.
        weights: .safetensors where there is one, else .bin.
        sidecar, scheduler, pipeline: what else is there.
    """

    config: str
    weights: str
    sidecar: str | None
    scheduler: str | None
    pipeline: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them; their last parts differ."""
        given = (self.config, self.weights, self.sidecar, self.scheduler, self.pipeline)
        return tuple(name for name in given if name is not None)

    @property
    def deciding(self) -> tuple[str, ...]:
        """The files that decide the output; prior.json says all that the scheduler's config does."""
        return tuple(name for name in (self.config, self.weights, self.sidecar or self.scheduler) if name is not None)


def find_layout(present: Callable[[str], bool]) -> Layout:
    """Find the network in a folder: averaged weights first, then those of a pipeline, then files at the root.

    ``unet_ema`` is preferred to ``unet`` beside it, as in the checkpoints of a training: its averaged weights are what
    diffusers' own training script puts into the ``unet`` of the finished pipeline, and what samplers use. To take
    the raw weights, give the folder ``unet`` itself.

    Args:
        present: whether the folder has a file of a relative POSIX path.
    """
    component = next((c for c in _COMPONENTS if present(_join(c, CONFIG))), "")
    weights = next((w for w in (WEIGHTS, TORCH_WEIGHTS) if present(_join(component, w))), WEIGHTS)

    def first(*names: str) -> str | None:
        return next((name for name in names if present(name)), None)

    return Layout(
        config=_join(component, CONFIG),
        weights=_join(component, weights),
        sidecar=first(SIDECAR, _join(component, SIDECAR)),
        scheduler=first(f"scheduler/{SCHEDULER}", SCHEDULER, _join(component, SCHEDULER)),
        pipeline=first(PIPELINE),
    )


def layout_of(folder: Path) -> Layout:
    """The layout of a local folder; its network's files are there.

    Raises:
        WeightsError: they are not, or the network works in a latent space.
    """
    layout = find_layout(lambda name: (folder / name).is_file())
    for name in (layout.config, layout.weights):
        if not (folder / name).is_file():
            raise _missing(folder, name)
    parts = read_json(folder / layout.pipeline) if layout.pipeline else {}
    coder = next((name for name, what in parts.items() if ("vae" in name or name == "movq") and what), None)
    if coder is not None:
        raise WeightsError(
            f"{folder / PIPELINE} names a {coder}",
            "the network denoises latent codes, not images",
            "use a prior that was trained on pixels",
        )
    return layout


def read_sidecar(folder: Path, declared: Declared | None = None) -> Sidecar:
    """All that is known of the prior in a folder, without loading the network.

    Args:
        folder: any layout that `find_layout` knows.
        declared: what the spec says of it; has to agree with what the folder says.

    Raises:
        WeightsError: files are missing, something is not said, or two say different things.
    """
    layout = layout_of(folder)
    config = read_config(folder / layout.config)
    said = {"the spec": declared or Declared()}
    sha256 = ""
    if layout.sidecar is not None:
        written = parse(Sidecar, folder / layout.sidecar, read_json(folder / layout.sidecar))
        said[SIDECAR], sha256 = written.said, written.sha256
    if layout.scheduler is not None:
        said[SCHEDULER] = _read_scheduler(folder / layout.scheduler, config)
    where = str(folder) if layout.sidecar is not None else f"{folder / SIDECAR} is missing, and {folder}"
    sidecar = agree(said, where)
    if config.get("center_input_sample") and sidecar.input_range != (0.0, 1.0):
        raise WeightsError(
            f"{folder / layout.config} has center_input_sample, which takes images in [0, 1], "
            f"not {list(sidecar.input_range)}",
            change="give input_range [0, 1]",
        )
    return sidecar.model_copy(update={"sha256": sha256})


def load_network(folder: Path, sidecar: Sidecar) -> nn.Module:
    """The UNet2DModel of a folder: strict keys, finite values, checked hash; nothing is downloaded."""
    layout = layout_of(folder)
    path = folder / layout.weights
    digest = _sha256(path)
    if sidecar.sha256 not in ("", digest):
        raise WeightsError(
            f"{path} is not the file that {SIDECAR} describes",
            "a truncated copy, or weights and sidecar of different priors",
            f"copy the whole folder again; the file's sha256 is {digest}",
        )
    network = _build(folder / layout.config)
    # copied, not assigned: the file's tensors lie unaligned in memory, which changes the last bits of convolutions
    load_into(network, _with_new_names(read_state_dict(path)), path)
    return network


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
    scheduler = sidecar.schedule.scheduler_config(sidecar.prediction)
    (folder / SCHEDULER).write_text(json.dumps(scheduler, indent=2) + "\n")
    complete = sidecar.model_copy(update={"sha256": _sha256(folder / WEIGHTS)})
    (folder / SIDECAR).write_text(complete.model_dump_json(indent=2, exclude_none=True) + "\n")
    return complete


def read_config(path: Path) -> dict[str, Any]:
    """The config of a network that can serve as a prior: a UNet2DModel on images and times alone."""
    config = read_json(path)
    wrong = ""
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        wrong = f"describes a {config['_class_name']}; only UNet2DModel is read"
    elif config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        wrong = "describes a network that wants a class beside the image"
    elif config.get("time_embedding_type", "positional") == "fourier":
        wrong = "describes a network whose times are noise levels, not steps of a schedule"
    elif config.get("out_channels", 3) not in (config.get("in_channels", 3), 2 * config.get("in_channels", 3)):
        wrong = f"has {config.get('in_channels', 3)} channels in, {config.get('out_channels', 3)} out"
    if wrong:
        raise WeightsError(
            f"{path} {wrong}",
            "the network of another task",
            "use an unconditional prior of images, or wrap it: weights: package.module:factory",
        )
    return config


def _read_scheduler(path: Path, config: Mapping[str, Any]) -> Declared:
    """What a scheduler's config says; diffusers takes a prediction that is not named for epsilon."""
    values = read_json(path)
    learned = str(values.get("variance_type", "")).startswith("learned")
    if learned and config.get("out_channels", 3) == config.get("in_channels", 3):
        raise WeightsError(
            f"{path} has variance_type {values['variance_type']!r}, but the network predicts no variance",
            "the scheduler of another network",
            "keep the scheduler that belongs to the network",
        )
    said = {"schedule": values, "prediction": values.get("prediction_type", "epsilon")}
    return parse(Declared, path, said)


def _build(path: Path) -> nn.Module:
    config = read_config(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers announces optional packages that nobody here needs
        from diffusers import UNet2DModel
    known = inspect.signature(UNet2DModel.__init__).parameters
    for key in config:
        if key not in known and not key.startswith("_") and key not in _AVERAGING_KEYS:
            raise WeightsError(f"{path}: UNet2DModel has no setting {key!r}", "a config of another network")
    try:
        with fork_rng(devices=[]):  # the weights made here are replaced; nobody's generator moves
            network: nn.Module = UNet2DModel.from_config({key: config[key] for key in config if key in known})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} describes no network: {error}", "an edited config") from error
    return network


def _with_new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention as diffusers names it since 0.15; older checkpoints, such as google/ddpm-*, say query, key, value."""
    return {
        _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_NEW_ATTENTION[found[2]]}.", key): value
        for key, value in state.items()
    }


def _missing(folder: Path, name: str) -> WeightsError:
    if folder == DEFAULT_PRIOR:
        return WeightsError(
            f"the shipped prior lacks {folder / name}",
            "a broken installation",
            "install udc-ray again, or give weights: FOLDER",
        )
    inside = sorted(p.name for p in folder.glob("checkpoint-*") if p.is_dir()) if folder.is_dir() else []
    change = f"a prior is a folder with {CONFIG} and {WEIGHTS} or .bin, at its root or in unet/ or unet_ema/"
    if inside:
        change = f"give one of its checkpoints, such as {folder / inside[-1]}"
    return WeightsError(f"{folder / name} is missing", "not the folder of a prior", change)


def _join(component: str, name: str) -> str:
    return str(PurePosixPath(component, name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
