"""A user's own network as a prior, and priors by what a spec calls them."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from purifier_doubles import LINEAR, tiny_prior
from torch import nn

from udc_ray.errors import SpecError, WeightsError
from udc_ray.purifiers import denoiser, priors
from udc_ray.purifiers.sidecar import Declared
from udc_ray.purifiers.supplied import is_factory

SIGMOID = DDPMScheduler(beta_schedule="sigmoid", prediction_type="sample")
SOURCE = """
import torch
from diffusers import DDPMScheduler

class Mine(torch.nn.Module):
    channels, prediction, input_range, size_multiple = 3, "sample", (0, 1), 4
    schedule = DDPMScheduler(num_train_timesteps=500, prediction_type="sample")

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.full((1,), 0.9))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, y_t, t):
        assert t.shape == (len(y_t),) and y_t.shape[-1] % 4 == 0
        return self.drop(y_t) * self.gain + t[:, None, None, None] / 1000

def plain(y_t, t):
    return y_t * 0.5
plain.channels, plain.prediction, plain.input_range = 1, "epsilon", [-1, 1]
plain.schedule = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "beta_schedule": "linear"}
plain.training_domain = "ramps"

def make_plain():
    return plain

def broken():
    raise ValueError("no such file")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "my_prior.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_prior", raising=False)
    import my_prior  # type: ignore[import-not-found]  # written above

    return my_prior


def test_a_module_is_a_prior(module: ModuleType) -> None:
    sidecar = priors.describe("my_prior:Mine")
    assert (sidecar.prediction, sidecar.input_range) == ("sample", (0.0, 1.0))
    assert sidecar.schedule == LINEAR.model_copy(update={"num_train_timesteps": 500})
    assert sidecar.training_domain == "not said by my_prior:Mine"
    ours = priors.load("my_prior:Mine", "cpu")
    assert (ours.channels, ours.size_multiple, ours.schedule) == (3, 4, sidecar.image_schedule)
    assert not any(p.requires_grad for p in ours.network.parameters())
    assert not any(m.training for m in ours.network.modules())

    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 120
    ours_abar, theirs = float(ours.schedule.alpha_bar[t]), float(sidecar.schedule.alpha_bar[t])
    y_t = theirs**0.5 * (0.5 + 0.5 * x / ours_abar**0.5)
    clean = y_t * 0.9 + 0.12
    expected = (y_t - theirs**0.5 * clean) / (1 - theirs) ** 0.5
    torch.testing.assert_close(ours(x, t), expected, rtol=1e-5, atol=1e-5)


def test_a_function_is_a_prior(module: ModuleType) -> None:
    ours = priors.load("my_prior:make_plain", "cpu", Declared(training_domain="ramps", input_range=(-1, 1)))
    x = torch.randn(2, 1, 5, 7)
    assert torch.equal(ours(x, 3), x * 0.5)
    assert ours.schedule.num_train_timesteps == 100
    with pytest.raises(WeightsError, match="the spec and my_prior:make_plain name a different input_range"):
        priors.describe("my_prior:make_plain", Declared(input_range=(0, 1)))


def test_it_is_hashed_by_source_and_values(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    first = priors.hashes("my_prior:Mine")
    assert sorted(first) == ["prior/my_prior:Mine/source", "prior/my_prior:Mine/values"]
    assert first["prior/my_prior:Mine/source"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert list(priors.hashes("my_prior:make_plain")) == ["prior/my_prior:make_plain/source"]
    assert priors.files("my_prior:Mine") == {}
    made = module.Mine()
    made.gain.data += 1
    monkeypatch.setattr(module, "Mine", lambda: made)
    second = priors.hashes("my_prior:Mine")
    assert [first[key] == second[key] for key in sorted(first)] == [True, False]


def test_values_that_a_factory_draws_are_the_same_every_time(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> Any:
        made = module.Mine()
        made.gain.data = torch.randn(1)
        return made

    monkeypatch.setattr(module, "draw", draw, raising=False)
    state = torch.get_rng_state()
    assert priors.hashes("my_prior:draw") == priors.hashes("my_prior:draw")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "attribute, value, message",
    [
        ("input_range", None, "no input_range|does not say: input_range"),
        ("input_range", (1, 0), "input_range: .*lowest"),
        ("prediction", "epsilon", "the attributes: .*prediction_type in schedule 'sample'"),
        ("schedule", SIGMOID, "schedule.beta_schedule: Input should be"),
        ("schedule", {"num_train_timesteps": 3}, "schedule.beta_start"),
        ("channels", 0, "has 0 channels"),
        ("channels", 2, "answers images|fails on images"),
    ],
)
def test_a_network_that_says_nonsense_is_refused(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any, message: str
) -> None:
    monkeypatch.setattr(module.Mine, attribute, value)
    monkeypatch.setattr(module.Mine, "forward", lambda self, y_t, t: torch.zeros(len(y_t), 3, *y_t.shape[2:]))
    with pytest.raises(WeightsError, match=message):
        priors.load("my_prior:Mine", "cpu")


@pytest.mark.parametrize("key", ["channels", "schedule", "input_range", "prediction"])
def test_every_attribute_is_needed(module: ModuleType, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.delattr(module.Mine, key)
    with pytest.raises(WeightsError, match=f"has no {key}"):
        priors.describe("my_prior:Mine")


def test_a_learned_variance_is_left_out(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Mine, "forward", lambda self, y_t, t: torch.cat([y_t * 0, y_t * 0 + 7], dim=1))
    monkeypatch.setattr(module.Mine, "prediction", "epsilon")
    monkeypatch.setattr(module.Mine, "schedule", LINEAR)
    assert not priors.load("my_prior:Mine", "cpu")(torch.rand(1, 3, 8, 8), 5).any()


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda self, y_t, t: (y_t,), "with tuple"),
        (lambda self, y_t, t: y_t.double(), "torch.float64"),
        (lambda self, y_t, t: y_t[..., 1:], r"\(2, 3, 32, 31\)"),
        (lambda self, y_t, t: y_t / 0, "not finite"),
        (lambda self, y_t, t: y_t[5], "fails on images"),
    ],
)
def test_a_network_that_answers_nonsense_is_refused(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    monkeypatch.setattr(module.Mine, "forward", answer)
    with pytest.raises(WeightsError, match=message):
        priors.load("my_prior:Mine", "cpu")


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("my_prior:gone", SpecError, "AttributeError"),
        ("no_such_module:make", SpecError, "ModuleNotFoundError"),
        ("my_prior:broken", WeightsError, "failed: ValueError: no such file"),
        ("my_prior:SOURCE", WeightsError, "failed|cannot"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(
    module: ModuleType, name: str, kind: type[Exception], message: str
) -> None:
    module.SOURCE = 3  # type: ignore[attr-defined]  # a module of ours
    for call in (priors.describe, priors.hashes, lambda n: priors.load(n, "cpu")):
        with pytest.raises(kind, match=message):
            call(name)


def test_names_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_factory("package.module:factory") and is_factory("m:f")
    assert not any(map(is_factory, ("s3://bucket/prior", "runs/prior", "prior", "/a/b:c", "a:b/c", "a:b:c")))
    (tmp_path / "a:b").mkdir()
    assert not is_factory("a:b")


def test_the_shipped_prior_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_prior(tmp_path / "prior")
    assert priors.folder_of(str(folder)) == folder
    with pytest.raises(WeightsError, match="config.json is missing"):
        priors.describe(str(tmp_path / "gone"))
    monkeypatch.setattr(denoiser, "DEFAULT_PRIOR", folder)
    assert priors.load(None, "cpu").schedule == priors.describe(None).image_schedule == LINEAR
    assert sorted(priors.files(None)) == [f"prior/{name}" for name in denoiser.PRIOR_FILES]


def test_a_callable_moves_itself(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Moves:
        channels, schedule, input_range, prediction = 2, DDPMScheduler(), (-1, 1), "epsilon"
        where = None

        def to(self, device: str) -> "Moves":
            self.where = device
            return self

        def __call__(self, y_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return y_t

    monkeypatch.setattr(module, "Moves", Moves, raising=False)
    network = priors.load("my_prior:Moves", "cpu").network
    assert isinstance(network, nn.Module) and network.predict.where == "cpu"  # type: ignore[union-attr]  # no module
