"""Checkpoints through spandrel; its torchvision is stubbed, as none can be imported beside some builds of torch."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from udc_ray.errors import WeightsError
from udc_ray.models.loading import load_restorer
from udc_ray.models.nafnet import NAFNet
from udc_ray.models.spandrel_door import load_with_spandrel
from udc_ray.spec import Entry

STUBBED = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops")


def anything(name: str) -> Any:
    """Whatever is asked of the stub, but what Python asks of every module."""
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *arguments, **keywords: None


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, where it is installed."""
    for name in STUBBED:
        stub = types.ModuleType(name)
        stub.__getattr__ = anything  # type: ignore[method-assign]  # a module may have its own
        monkeypatch.setitem(sys.modules, name, stub)
    before = set(sys.modules)
    yield pytest.importorskip("spandrel", reason="spandrel is not installed")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "spandrel":
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # in the package's own layer norm
def test_a_network_by_spandrel_gives_what_ours_gives(spandrel: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NAFNet(8, (1, 1), 1, (1, 1)).eval()
    path = tmp_path / "net.safetensors"
    save_file(network.state_dict(), path)
    restorer = load_with_spandrel(path, network.state_dict())
    assert restorer is not None
    x = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.testing.assert_close(restorer(x), network(x), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(restorer(x).square().sum(), x)
    assert float(gradient.abs().sum()) > 0
    assert restorer.descriptor.name == "NAFNet" and restorer.descriptor.channels == 3


def test_what_nobody_knows_is_refused_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a.weight": torch.zeros(2, 2)}, path)
    assert load_with_spandrel(path, {"a.weight": torch.zeros(2, 2)}) is None
    with pytest.raises(WeightsError, match=r"udc-ray\[spandrel\]"):
        load_restorer(Entry(name=str(path)))
