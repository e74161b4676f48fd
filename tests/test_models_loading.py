"""Loading restorers: by name, by file, by factory; and one clear error for each wrong file."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from udc_ray.errors import SpecError, WeightsError
from udc_ray.hashing import module_sha256
from udc_ray.models import zoo
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.models.checkpoints import read_state_dict
from udc_ray.models.loading import load_restorer
from udc_ray.models.nafnet import NAFNet
from udc_ray.spec import Entry

SMALL: dict[str, Any] = {"width": 2, "encoder_blocks": [1, 2], "middle_blocks": 1, "decoder_blocks": [2, 1]}
X = torch.rand(1, 3, 10, 7, generator=torch.Generator().manual_seed(0))


def network(**changes: Any) -> NAFNet:
    torch.manual_seed(0)
    return NAFNet(**SMALL | changes).eval()


def safetensors(path: Path, made: nn.Module) -> Path:
    save_file(made.state_dict(), path)
    return path


class TestByName:
    def test_identity(self) -> None:
        restorer = load_restorer(Entry(name="identity"))
        assert torch.equal(restorer(X), X)
        assert restorer.descriptor == Descriptor(name="identity", parameters=0)
        with pytest.raises(WeightsError, match="no weights"):
            load_restorer(Entry(name="identity", params={"weights": "a.pt"}))

    def test_default_has_the_shipped_architecture(self, tmp_path: Path) -> None:
        made = NAFNet(16, (1, 1, 2, 4), 2, (1, 1, 1, 1)).eval()
        path = safetensors(tmp_path / "a.safetensors", made)
        restorer = load_restorer(Entry(name="default", params={"weights": str(path)}))
        with torch.no_grad():
            torch.testing.assert_close(restorer(X), made(X), rtol=0, atol=1e-5)  # channels last: other kernels
        assert restorer.descriptor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert restorer.descriptor.size_multiple == 16

    def test_default_without_its_file_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zoo, "DEFAULT_WEIGHTS", tmp_path / "gone.safetensors")
        with pytest.raises(WeightsError, match="weights of the default restorer are missing"):
            load_restorer(Entry(name="default"))

    def test_nafnet_with_sizes(self, tmp_path: Path) -> None:
        path = safetensors(tmp_path / "a.safetensors", network(channels=4))
        restorer = load_restorer(Entry(name="nafnet", params=SMALL | {"channels": 4, "weights": str(path)}))
        assert restorer.descriptor.channels == 4
        assert restorer.descriptor.parameters == sum(p.numel() for p in network(channels=4).parameters())

    @pytest.mark.parametrize(
        ("entry", "error", "message"),
        [
            (Entry(name="defalt"), SpecError, "unknown model 'defalt'.*did you mean default"),
            (Entry(name="default", params={"wieghts": "x"}), SpecError, "no parameter 'wieghts'.*did you mean weights"),
            (Entry(name="nafnet"), WeightsError, "needs weights"),
            (Entry(name="nafnet", params={"width": 0, "weights": "x"}), SpecError, "width"),
            (Entry(name="nafnet", params={"decoder_blocks": [1], "weights": "x"}), WeightsError, "differ in length"),
            (Entry(name="default", params={"weights": "nowhere.pt"}), WeightsError, "no weights file nowhere.pt"),
            (Entry(name="nowhere.pt"), WeightsError, "no weights file nowhere.pt"),
            (Entry(name="x.pt", params={"width": 3}), SpecError, "takes no parameters"),
        ],
    )
    def test_mistakes(self, entry: Entry, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"(?s){message}"):
            load_restorer(entry)


class TestByFile:
    @pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
    @pytest.mark.parametrize(
        "changes", [{}, {"width": 3, "channels": 4}, {"middle_blocks": 0}, {"encoder_blocks": [0, 3]}]
    )
    def test_sizes_are_read_from_the_file(self, tmp_path: Path, suffix: str, changes: dict[str, Any]) -> None:
        made, path = network(**changes), tmp_path / f"mine.{suffix}"
        if suffix == "safetensors":
            safetensors(path, made)
        else:
            torch.save(made.state_dict(), path)
        restorer = load_restorer(Entry(name=str(path)))
        x = torch.rand(1, changes.get("channels", 3), 9, 6)
        with torch.no_grad():
            torch.testing.assert_close(restorer(x), made(x), rtol=0, atol=1e-5)
        assert (restorer.descriptor.name, restorer.descriptor.channels) == ("mine", changes.get("channels", 3))

    @pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_wrapped_state_dicts(self, tmp_path: Path, wrapper: str, prefix: str) -> None:
        state = network().state_dict()
        torch.save({wrapper: {prefix + k: v for k, v in state.items()}, "epoch": 3}, tmp_path / "a.pt")
        loaded = read_state_dict(tmp_path / "a.pt")
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[k], state[k]) for k in state)

    def test_loaded_restorers_do_not_train(self, tmp_path: Path) -> None:
        restorer = load_restorer(Entry(name=str(safetensors(tmp_path / "a.safetensors", network()))))
        assert isinstance(restorer, ModuleRestorer)
        assert not restorer.module.training
        assert not any(p.requires_grad for p in restorer.module.parameters())
        x = X.clone().requires_grad_()
        restorer(x).sum().backward()
        assert x.grad is not None and x.grad.abs().sum() > 0


class Planted:
    """Runs code where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def _planted(path: Path) -> None:
    torch.save({"params": Planted(path.parent / "ran")}, path)


def _planted_bare(path: Path) -> None:
    path.write_bytes(pickle.dumps(Planted(path.parent / "ran")))


def _cut(path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors(path, network())
    else:
        torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


def _changed(**changes: Tensor | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        names = {key.replace("__", "."): value for key, value in changes.items()}
        state = network().state_dict() | {k: v for k, v in names.items() if v is not None}
        torch.save({k: v for k, v in state.items() if names.get(k, v) is not None}, path)

    return write


WRONG_FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing": ("a.pt", lambda p: None, "no weights file"),
    "zero bytes": ("a.pt", lambda p: p.touch(), "empty"),
    "zero bytes safetensors": ("a.safetensors", lambda p: p.touch(), "empty"),
    "folder": ("a.pt", lambda p: p.mkdir(), "is a folder"),
    "loop": ("a.pt", lambda p: p.symlink_to(p), "a.pt"),
    "pipe": ("a.pt", lambda p: os.mkfifo(p), "no weights file"),
    "text": ("a.pt", lambda p: p.write_text("no weights") and None, "cannot read the weights"),
    "text safetensors": ("a.safetensors", lambda p: p.write_text("no weights") and None, "cannot read the weights"),
    "truncated": ("a.pt", _cut, "cannot read the weights"),
    "truncated safetensors": ("a.safetensors", _cut, "cannot read the weights"),
    "code": ("a.pt", _planted, "holds code"),
    "code in a bare pickle": ("a.pkl", _planted_bare, "holds code"),
    "a whole model": ("a.pt", lambda p: torch.save(network(), p), "holds code"),
    "a tensor": ("a.pt", lambda p: torch.save(torch.zeros(3), p), "no state dict"),
    "an empty dict": ("a.pt", lambda p: torch.save({}, p), "no state dict"),
    "an unknown wrapper": ("a.pt", lambda p: torch.save({"net": network().state_dict()}, p), "entry 'net'"),
    "NaN": ("a.pt", _changed(intro__bias=torch.tensor([float("nan"), 1.0])), "1 values of intro.bias are NaN"),
    "a missing key": ("a.pt", _changed(encoders__0__0__sca__1__bias=None), "encoders.0.0.sca.1.bias is missing"),
    "an extra key": ("a.pt", _changed(surplus=torch.zeros(1)), "surplus is unexpected"),
    "another shape": ("a.pt", _changed(ending__bias=torch.zeros(4)), "ending.bias is 4 instead of 3"),
    "protocol 4 pickle": ("a.pt", lambda p: p.write_bytes(pickle.dumps({"a": 1})) and None, "pickle of Python objects"),
    "another network": ("a.pt", lambda p: torch.save(nn.Linear(2, 2).state_dict(), p), "first key is weight"),
    "another width": (
        "a.pt",
        _changed(intro__weight=torch.zeros(10**5, 3, 1, 1)),
        "intro.weight is 100000 x 3 x 1 x 1 instead of 100000 x 3 x 3 x 3",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_give_one_weights_error(tmp_path: Path, case: str) -> None:
    name, write, message = WRONG_FILES[case]
    path = tmp_path / name
    write(path)
    with pytest.raises(WeightsError, match=message) as caught:
        zoo.load_file(path)
    assert str(path) in caught.value.what
    assert caught.value.change
    assert not (tmp_path / "ran").exists()  # no code from the file has run


def test_the_way_out_of_a_pickle_is_said(tmp_path: Path) -> None:
    _planted(tmp_path / "a.pt")
    with pytest.raises(WeightsError) as caught:
        read_state_dict(tmp_path / "a.pt")
    assert ".safetensors" in caught.value.change


def test_weights_of_another_size_name_the_first_wrong_key(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", network())
    with pytest.raises(WeightsError, match=r"intro\.weight is 2 x 3 x 3 x 3 instead of 16 x 3 x 3 x 3"):
        load_restorer(Entry(name="default", params={"weights": str(path)}))


FACTORIES = """
import torch
from torch import nn
from udc_ray.models.base import Descriptor

class Halve(nn.Module):
    def __init__(self, weights=None, factor=0.5):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.factor = factor if weights is None else torch.load(weights, weights_only=True)["factor"].item()
    def forward(self, x):
        return x * self.factor

class Own:
    descriptor = Descriptor(name="own", parameters=1)
    def __call__(self, x):
        return x + 1
    def to(self, device):
        return self

class Act(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act
    def forward(self, x):
        return self.act(x)

def nothing():
    return 3
def fails():
    raise RuntimeError("no such thing")
def pair():
    return Act(lambda x: (x, x))
def smaller():
    return Act(lambda x: x[..., :-1])
def double():
    return Act(lambda x: x.double())
def nan():
    return Act(lambda x: x / 0 * 0)
def picky():
    return Act(nn.Conv2d(6, 6, 1))
def crashes():
    return Act(lambda x: x.missing)
number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory, found without being installed."""
    (tmp_path / "my_restorers.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_restorers", raising=False)
    return "my_restorers"


class TestByFactory:
    def test_a_module_is_wrapped(self, factories: str) -> None:
        restorer = load_restorer(Entry(name=f"{factories}:Halve"))
        assert isinstance(restorer, ModuleRestorer)
        assert torch.equal(restorer(X), X / 2)
        assert (restorer.descriptor.name, restorer.descriptor.parameters) == ("Halve", 12)
        assert restorer.descriptor.sha256 == module_sha256(restorer.module)

    def test_weights_and_parameters_reach_the_factory(self, factories: str, tmp_path: Path) -> None:
        restorer = load_restorer(Entry(name=f"{factories}:Halve", params={"factor": 3}))
        assert torch.equal(restorer(X), X * 3)
        path = tmp_path / "w.pt"
        torch.save({"factor": torch.tensor(4.0)}, path)
        restorer = load_restorer(Entry(name=f"{factories}:Halve", params={"weights": str(path)}))
        assert torch.equal(restorer(X), X * 4)
        assert restorer.descriptor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_a_restorer_is_taken_as_it_is(self, factories: str) -> None:
        restorer = load_restorer(Entry(name=f"{factories}:Own"))
        assert torch.equal(restorer(X), X + 1)
        assert restorer.descriptor.name == "own"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nothing", "returned a int"),
            ("fails", "failed: RuntimeError: no such thing"),
            ("pair", "returns a tuple"),
            ("smaller", r"returns \(1, 3, 64, 63\)"),
            ("double", "torch.float64"),
            ("nan", "NaN"),
            ("picky", r"fails on an image of .*RuntimeError"),
            ("crashes", "AttributeError"),
        ],
    )
    def test_models_that_cannot_be_used(self, factories: str, name: str, message: str) -> None:
        with pytest.raises(WeightsError, match=message) as caught:
            load_restorer(Entry(name=f"{factories}:{name}"))
        assert caught.value.change

    def test_names_that_cannot_be_loaded(self, factories: str) -> None:
        for name in ("gone", "number"):
            with pytest.raises(SpecError, match=name):
                load_restorer(Entry(name=f"{factories}:{name}"))
        with pytest.raises(SpecError, match="no_such_package"):
            load_restorer(Entry(name="no_such_package:make"))
        with pytest.raises(WeightsError, match="parameters that it does not take"):
            load_restorer(Entry(name=f"{factories}:Halve", params={"wdith": 3}))
        with pytest.raises(WeightsError, match="no weights file"):
            load_restorer(Entry(name=f"{factories}:Halve", params={"weights": "gone.pt"}))


def test_module_hash_sees_values_names_and_types() -> None:
    one, other = network(), network()
    assert module_sha256(one) == module_sha256(other)
    with torch.no_grad():
        value = np.float32(other.ending.weight[0, 0, 0, 0].item())
        other.ending.weight[0, 0, 0, 0] = float(np.nextafter(value, np.float32(9)))  # one bit
    assert module_sha256(one) != module_sha256(other)
    assert module_sha256(one) != module_sha256(network().double())
    assert len({module_sha256(m) for m in (nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1))}) == 2
