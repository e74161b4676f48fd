"""A user's own network as a prior: ``weights: package.module:factory``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from udc_ray.errors import SpecError, UserError, WeightsError
from udc_ray.hashing import module_sha256
from udc_ray.purifiers.denoiser import Denoiser
from udc_ray.purifiers.sidecar import Declared, Sidecar, agree

_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_WANTED = ("channels", "schedule", "input_range", "prediction")
_HOW = (
    "a factory takes no arguments and returns a torch.nn.Module, or a callable, of (x_t, t) with the attributes "
    "channels, schedule (as in a diffusers scheduler config), input_range and prediction"
)


class SuppliedNetwork(nn.Module):
    """A callable of (x_t, t) as a module of images and a whole time.

    Args:
        predict: called with B x C x H x W in its own range and B times (int64), the convention of published
            networks; its answer is a tensor of C channels, or of 2 C with a learned variance behind.
        name: for messages.
    """

    def __init__(self, predict: Any, name: str) -> None:
        super().__init__()
        self.predict = predict  # where it is a module, it moves, freezes and is counted with this one
        self.name = name

    def forward(self, x_t_BCHW: Tensor, t: int) -> Tensor:
        """The network's answer."""
        times_B = torch.full((x_t_BCHW.shape[0],), t, dtype=torch.int64, device=x_t_BCHW.device)
        answer: Tensor = self.predict(x_t_BCHW, times_B)
        return answer


def is_factory(weights: str) -> bool:
    """Whether a text has the form ``package.module:factory``."""
    return _FACTORY.match(weights) is not None and not Path(weights).exists()


def supplied_sidecar(name: str, declared: Declared | None = None) -> Sidecar:
    """What a user's network says of itself, which has to agree with what the spec says.

    Raises:
        SpecError: it cannot be imported.
        WeightsError: the factory fails, or something is not said.
    """
    return _sidecar(name, _make(name), declared)


def load_supplied(name: str, device: str, declared: Declared | None = None) -> Denoiser:
    """Build a user's network and let it answer once.

    Args:
        name: ``package.module:factory``.
        device: ``cpu`` or ``cuda``; a callable that is no module is moved by its own ``to``, if it has one.
        declared: what the spec says of it.
    """
    made = _make(name)
    sidecar = _sidecar(name, made, declared)
    if not isinstance(made, nn.Module) and hasattr(made, "to"):
        made = made.to(device)
    denoiser = Denoiser(
        SuppliedNetwork(made, name).to(device),
        sidecar.schedule,
        prediction=sidecar.prediction,
        input_range=sidecar.input_range,
        channels=made.channels,
        size_multiple=getattr(made, "size_multiple", 1),
    )
    _probe(denoiser, name, device)
    return denoiser


def supplied_hashes(name: str) -> dict[str, str]:
    """What is known of a user's network: sha256 of its module's source text, and of the values where it has any."""
    made = _make(name)
    module = sys.modules[name.partition(":")[0]]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError) as error:  # compiled code has none
        raise WeightsError(
            f"the source text of {module.__name__} cannot be read: {error}",
            "a compiled module, by which runs cannot be told apart",
            "put the factory into a module of Python source",
        ) from error
    hashes = {f"{name}/source": hashlib.sha256(source.encode()).hexdigest()}
    return hashes | ({f"{name}/values": module_sha256(made)} if isinstance(made, nn.Module) else {})


def _sidecar(name: str, made: Any, declared: Declared | None) -> Sidecar:
    missing = [key for key in _WANTED if not hasattr(made, key)]
    if missing:
        raise WeightsError(f"what {name} returned has no {', '.join(missing)}", change=_HOW)
    if not isinstance(made.channels, int) or made.channels < 1:
        raise WeightsError(f"what {name} returned has {made.channels!r} channels", change=_HOW)
    schedule = getattr(made.schedule, "config", made.schedule)  # a diffusers scheduler says itself
    values = {
        "input_range": made.input_range,
        "prediction": made.prediction,
        "schedule": dict(schedule) if isinstance(schedule, Mapping) else schedule,
        "training_domain": getattr(made, "training_domain", None),
    }
    try:
        own = Declared.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(
            f"what {name} returned: {'.'.join(map(str, first['loc'])) or 'the attributes'}: {first['msg']}",
            f"given: {first['input']!r}"[:200],
            _HOW,
        ) from error
    declared = declared or Declared()
    if own.training_domain is None and declared.training_domain is None:
        own = own.model_copy(update={"training_domain": f"not said by {name}"})
    return agree({"the spec": declared, name: own}, name)


def _make(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # console scripts do not look here; last, so that nothing is hidden
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        raise SpecError(
            f"the prior {name!r} cannot be loaded: {type(error).__name__}: {error}",
            "a wrong path or name, or a package that is not installed",
            "give a folder, or package.module:factory, importable from here",
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # values that are drawn are the same on every host
            made = factory()
    except UserError:
        raise
    except Exception as error:  # whatever a user's own code raises is theirs to see, as a message
        raise WeightsError(
            f"the factory {name} failed: {type(error).__name__}: {error}", "an error in the factory", _HOW
        ) from error
    if not callable(made):
        raise WeightsError(f"{name} returned a {type(made).__name__}", change=_HOW)
    return made


def _probe(denoiser: Denoiser, name: str, device: str) -> None:
    edge = 32 + -32 % denoiser.size_multiple
    ramp = torch.linspace(-1, 1, edge, device=device)
    x_BCHW = (ramp[:, None] * ramp[None, :]).expand(2, denoiser.channels, edge, edge).contiguous()
    try:
        with torch.no_grad():
            answer = denoiser.network(x_BCHW, 0)
    except Exception as error:  # whatever a user's own network raises is theirs to see, as a message
        raise WeightsError(
            f"{name} fails on images of {tuple(x_BCHW.shape)}: {type(error).__name__}: {error}",
            "it wants another number of channels, another type, or sides that are a multiple of something",
            f"{_HOW}, and size_multiple where sides matter",
        ) from error
    fits = isinstance(answer, Tensor) and answer.shape in [
        (2, channels, edge, edge) for channels in (denoiser.channels, 2 * denoiser.channels)
    ]
    if not fits or answer.dtype != torch.float32 or not bool(torch.isfinite(answer).all()):
        what = f"{tuple(answer.shape)} of {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
        raise WeightsError(
            f"{name} answers images of {tuple(x_BCHW.shape)} with {what}, or with values that are not finite",
            "it returns something else beside the noise, or the noise of another size",
            f"return one finite float32 tensor; {_HOW}",
        )
