"""From the model entry of a spec to a model that has answered once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udc_ray.errors import SpecError, UserError, WeightsError, did_you_mean
from udc_ray.location import is_uri, local, place
from udc_ray.metered.endpoint import is_target, read_endpoint
from udc_ray.metered.model import Unasked
from udc_ray.models import zoo
from udc_ray.models.base import Descriptor, ModuleRestorer, Restorer
from udc_ray.models.checkpoints import SUFFIXES
from udc_ray.spec import Entry
from udc_ray.tasks import get_task


def load(name_or_spec: str | Mapping[str, Any], weights: str | Path | None = None, **params: Any) -> Restorer:
    """Load a restorer that works in the canonical domain.

    Args:
        name_or_spec: a name (``discnet``), a weights file, ``package.module:factory``, or a mapping as in a spec.
        weights: its weights file.
        params: further parameters of the model.

    Raises:
        SpecError: an unknown model or parameter.
        WeightsError: weights or a model that cannot be used.
    """
    given = {"name": name_or_spec} if isinstance(name_or_spec, str) else dict(name_or_spec)
    extra = {} if weights is None else {"weights": str(weights)}
    name = str(given.pop("name", "default"))
    return load_restorer(Entry(name=name, params={**given, **extra, **params}))


def load_restorer(entry: Entry, device: str = "cpu") -> Restorer:
    """Load a restorer and probe it once.

    Args:
        entry: a name of the zoo (``default``, ``nafnet``, ``discnet``), the path or URI of weights that
            are recognised by their keys, ``package.module:factory``, or the URL of a metered target, which is not
            asked; its parameters, ``weights`` among them.
        device: where it goes.

    Raises:
        SpecError: an unknown model or parameter.
        WeightsError: weights or a model that cannot be used.
    """
    name = entry.name
    if is_target(name):
        return Unasked(read_endpoint(entry))
    if name in zoo.MODELS:
        model: zoo.ZooModel = zoo.MODELS.get(name).build("model", entry.params)
        restorer: Restorer = model.load()
    elif is_uri(name) or Path(name).suffix.lower() in SUFFIXES or Path(name).is_file():
        if entry.params:
            raise SpecError(
                f"a model given as a weights file takes no parameters: {', '.join(entry.params)}",
                change="its sizes are read from the file; otherwise use the model's name with weights: PATH",
            )
        restorer = zoo.load_file(place(name, WeightsError))
    elif ":" in name:
        restorer = _call_factory(name, entry.params)
    else:
        known = did_you_mean(name, zoo.MODELS)
        raise SpecError(f"unknown model {name!r}", change=f"{known}; or a weights file, or package.module:factory")
    restorer = restorer.to(device)
    probe(restorer, device)
    return restorer


def _call_factory(name: str, params: dict[str, Any]) -> Restorer:
    """Call the user's ``package.module:factory(**params)``."""
    factory = _import(name)
    weights = params.get("weights")
    file = place(str(weights), WeightsError) if weights is not None else None
    if isinstance(file, Path) and not file.is_file():
        raise WeightsError(f"there is no weights file {file}", "a wrong path", "check --weights")
    if file is not None and is_uri(str(weights)):
        params = {**params, "weights": str(local(file, WeightsError))}  # a factory opens files
    try:
        made = factory(**params)
    except UserError:
        raise
    except Exception as error:  # whatever a user's own code raises is theirs to see, as a message
        raise WeightsError(
            f"the model factory {name} failed: {type(error).__name__}: {error}",
            "an error in the factory, or parameters that it does not take",
            f"it is called as factory({', '.join(f'{k}=...' for k in params)})",
        ) from error
    if isinstance(made, nn.Module):
        return ModuleRestorer(made, zoo.describe(made, name.rpartition(":")[2], file, source=name))
    if not callable(made) or not hasattr(made, "descriptor") or not hasattr(made, "to"):
        raise WeightsError(
            f"{name} returned a {type(made).__name__}", change="a factory returns a torch.nn.Module or a Restorer"
        )
    restorer: Restorer = made
    return restorer


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # console scripts do not look here; last, so that nothing is hidden
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        raise SpecError(
            f"model {name!r} cannot be loaded: {type(error).__name__}: {error}",
            "a wrong path or name, or a package that is not installed",
            "give package.module:factory, importable from here",
        ) from error
    if not callable(factory):
        raise SpecError(f"model {name!r} is a {type(factory).__name__}", change="name a function or a class")
    return factory


def probe(restorer: Restorer, device: str = "cpu", edge: int = 64) -> None:
    """Restore or classify one small ramp and check shape, type and finiteness of the result.

    Raises:
        WeightsError: with what the model did instead.
    """
    ramp = torch.linspace(0, 1, edge, device=device)
    x_BCHW = (ramp[:, None] * ramp[None, :]).expand(1, restorer.descriptor.channels, edge, edge).contiguous()
    model = restorer.descriptor.name
    try:
        with torch.no_grad():
            output = restorer(x_BCHW)
    except Exception as error:  # whatever a user's own model raises is theirs to see, as a message
        first = str(error).splitlines()[0] if str(error) else ""
        raise WeightsError(
            f"the model {model} fails on an image of {tuple(x_BCHW.shape)}: {type(error).__name__}: {first}",
            "it wants another number of channels, another type than float32, a second input or a multiple of some size",
            "wrap it in a Restorer that pads, converts and adds what it needs",
        ) from error
    _judge(output, x_BCHW, restorer.descriptor)


def _judge(output: object, x_BCHW: Tensor, descriptor: Descriptor) -> None:
    wrong = ""
    if not isinstance(output, Tensor):
        wrong = f"returns a {type(output).__name__}, not a tensor"
    elif shape := get_task(descriptor.task).wrong_output(output, x_BCHW, descriptor):
        wrong = shape
    elif output.dtype != torch.float32:
        wrong = f"returns {output.dtype}, not torch.float32"
    elif not bool(torch.isfinite(output).all()):
        wrong = "returns values that are NaN or infinite"
    if wrong:
        raise WeightsError(
            f"the model {descriptor.name} {wrong}",
            "a restorer returns one float32 image of the size of its input, a classifier (a module that has the "
            "attribute classes, their number) float32 logits, B x classes",
            "select, resize or convert the output in a wrapper around the model",
        )
