"""Reading weight files: numbers only, never code, and one clear error for each way they can be wrong."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from udc_ray.errors import WeightsError
from udc_ray.location import Place, local

WRAPPERS = ("params", "params_ema", "state_dict")
"""Keys under which training codes store a state dict, in the order in which they are tried."""

SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".ckpt", ".bin"})


def read_state_dict(path: Place, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a torch file without code.

    ``params``, ``params_ema`` and ``state_dict`` are unwrapped, ``module.`` is stripped.

    Args:
        path: the file.
        wrappers: keys that hold a state dict, the preferred one first.

    Raises:
        WeightsError: a missing, empty, truncated or foreign file, code in it, or values that are not finite.
    """
    here = local(path, WeightsError)
    _require_file(here)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the verdict on a file is the error below, not a warning
            loaded: Any = load_file(here) if path.suffix == ".safetensors" else _torch_load(path)
    except WeightsError:
        raise
    except Exception as error:  # decoders raise all sorts of things on foreign bytes; each is the file's fault
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"cannot read the weights {path}: {reason}",
            "the file is cut off, damaged, or no .safetensors or torch checkpoint",
            "download or save it again",
        ) from error
    state = _unwrap(loaded, path, wrappers)
    _require_finite(state, path)
    return state


def _require_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise WeightsError(f"{path} is a folder, where a weights file is wanted", change="give the file in it")
        if not path.is_file():
            raise WeightsError(f"there is no weights file {path}", "a wrong path", "check --weights")
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty (zero bytes)", "a download that failed", "download it again")
        with path.open("rb"):
            pass
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}", change="check its permissions") from error


def _torch_load(path: Place) -> object:
    try:
        return torch.load(local(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_pickle(path, str(error)):
            raise ValueError("it is no torch checkpoint") from error  # torch's text advises to load it unsafely
        raise WeightsError(
            f"{path} holds code, or may: it is a pickle of Python objects, not only of numbers",
            "a whole model or a training state was saved; loading it would run what it contains",
            "where you trust it, load it in a program of your own and save model.state_dict() as .safetensors",
        ) from error


def _is_pickle(path: Place, refusal: str) -> bool:
    """Whether the file names Python objects (as torch says), or is a bare pickle of protocol 2 or later."""
    if any(word in refusal for word in ("Unsupported global", "Unsupported class", "GLOBAL ")):
        return True
    with local(path).open("rb") as stream:
        return stream.read(1) == b"\x80"


def _unwrap(loaded: object, path: Place, wrappers: Sequence[str]) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[k] for k in wrappers if isinstance(loaded.get(k), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} holds no state dict", "a single tensor or list was saved", "save state_dict()")
    for key, value in loaded.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{path}: entry {key!r} is no tensor but a {type(value).__name__}",
                f"the state dict is stored under a key that is none of {', '.join(WRAPPERS)}",
                "save the state dict alone",
            )
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _require_finite(state: Mapping[str, Tensor], path: Place) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise WeightsError(
                f"{path}: {count} values of {key} are NaN or infinite",
                "a training that diverged, or float16 that overflowed",
                "use an earlier checkpoint",
            )


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Place) -> None:
    """Load a state dict that has to fit exactly; see `require_fit`."""
    require_fit(network, state, path)
    network.load_state_dict(dict(state))


def require_fit(network: nn.Module, state: Mapping[str, Tensor], path: Place) -> None:
    """Check that a state dict has the network's keys and shapes.

    Raises:
        WeightsError: naming the first wrong key: missing, of another shape, or unexpected.
    """
    wrong = first_difference(network, state)
    if wrong is not None:
        raise WeightsError(
            f"{path} are the weights of another network: {wrong}",
            f"they do not fit a {type(network).__name__} of these sizes",
            "give the model that they belong to, or its parameters",
        )


def first_difference(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The first key that a state dict lacks, has in another shape, or has beyond the network's; None if it fits."""
    wanted = network.state_dict()
    return next(
        (
            f"{key} is missing" if key not in state else f"{key} is {_shape(state[key])} instead of {_shape(value)}"
            for key, value in wanted.items()
            if key not in state or state[key].shape != value.shape
        ),
        next((f"{key} is unexpected" for key in state if key not in wanted), None),
    )


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a single value"
