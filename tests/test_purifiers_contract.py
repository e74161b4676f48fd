"""What every registered purifier promises."""

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from purifier_doubles import tiny_prior
from torch import Tensor, nn

from udc_ray.errors import SpecError
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.purifiers.base import Purifier
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

SLOTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(params=sorted(PURIFIERS))
def purifier(request: pytest.FixtureRequest, folder: Path) -> Purifier:
    """The entry at its defaults, but for a small prior where it needs one."""
    kind = PURIFIERS.get(request.param)
    assert kind.name == request.param
    built: Purifier = kind.build("defence", {"weights": str(folder)} if "weights" in kind.model_fields else {})
    return built


def images(count: int = SLOTS) -> Tensor:
    return torch.rand(count, 3, 16, 18, generator=torch.Generator().manual_seed(5))


def tape(*ids: str, stream: str = "eval") -> Tape:
    return Tape(seed=0, image_ids=ids, stream=stream)


@torch.no_grad()
def purify(purifier: Purifier, x_BCHW: Tensor, keyed: Tape) -> Tensor:
    purified, trace = purifier.purify(x_BCHW, keyed, purifier.prepare("cpu"))
    assert trace.nfe >= 0 and trace.auxiliary >= 0 and trace.seconds >= 0
    assert (trace.nfe > 0) == bool(purifier.weight_files())
    return purified


def test_shape_type_range_and_an_untouched_input(purifier: Purifier) -> None:
    for x in (images(), torch.zeros(SLOTS, 3, 16, 18), torch.ones(SLOTS, 3, 16, 18)):
        given = x.clone()
        purified = purify(purifier, x, tape(*"abcd"))
        assert (purified.shape, purified.dtype) == (x.shape, torch.float32)
        assert purified.min() >= 0 and purified.max() <= 1
        assert torch.equal(x, given)


def test_deterministic_by_key_and_random_as_declared(purifier: Purifier) -> None:
    x, keyed = images(), tape(*"abcd")
    first = purify(purifier, x, keyed)
    assert torch.equal(purify(purifier, x, keyed), first)
    for other in (keyed.at(sample=1), keyed.at(step=1), keyed.at(stream="attack"), tape(*"wxyz")):
        differs = [not torch.equal(a, b) for a, b in zip(purify(purifier, x, other), first, strict=True)]
        assert differs == [purifier.random] * SLOTS


def test_global_randomness_is_neither_used_nor_moved(purifier: Purifier) -> None:
    x, keyed = images(), tape(*"abcd")
    state = torch.get_rng_state()
    first = purify(purifier, x, keyed)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(purify(purifier, x, keyed), first)


def test_an_image_is_independent_of_its_company(purifier: Purifier) -> None:
    x = images()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = purify(purifier, x, tape(*"abcd"))
        turned = purify(purifier, x.roll(1, 0), tape(*"dabc"))
        alone = purify(purifier, x[2:3].repeat(SLOTS, 1, 1, 1), tape(*"cccc"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(turned.roll(-1, 0), together)
    assert torch.equal(alone[0], together[2])


def test_pickles_and_is_rebuilt_from_its_identity(purifier: Purifier) -> None:
    assert pickle.loads(pickle.dumps(purifier)) == purifier
    name, _, rest = purifier.identity().partition("{")
    values: dict[str, Any] = json.loads("{" + rest)
    assert not values.keys() & {"weights", "samples"}, "a path, or more draws, must not change the noise"
    values |= {key: getattr(purifier, key) for key in purifier.not_identity if key in type(purifier).model_fields}
    assert PURIFIERS.get(name).build("defence", values) == purifier


def test_weight_files_exist(purifier: Purifier) -> None:
    assert all(Path(path).is_file() for path in purifier.weight_files().values())


def test_it_is_documented_and_offers_bpda(purifier: Purifier) -> None:
    assert inspect.getdoc(type(purifier)) != inspect.getdoc(Purifier)
    assert "bpda" in purifier.grad_modes


def tiny_restorer() -> ModuleRestorer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
    return ModuleRestorer(module, Descriptor(name="tiny", parameters=0))


@pytest.mark.parametrize("grad_mode", ["blind", "full"])
def test_a_gradient_that_does_not_exist_is_refused(grad_mode: Any) -> None:
    victim = Victim(restorer=tiny_restorer(), purifier=PURIFIERS.get("jpeg").build("defence", {}), grad_mode=grad_mode)
    with pytest.raises(SpecError, match=f"no gradient of mode '{grad_mode}'"):
        victim.differentiable(images(), tape(*"abcd", stream="attack"))


def test_gradient_is_that_of_the_restorer_at_the_purified_image(purifier: Purifier) -> None:
    restorer, purifier = tiny_restorer(), purifier.model_copy(update={"copies": 1})
    victim = Victim(restorer=restorer, purifier=purifier, prepared=purifier.prepare("cpu"), grad_mode="bpda")
    keyed = tape(*"abcd", stream="attack")

    x = images().requires_grad_(True)
    output = victim.differentiable(x, keyed)
    (ours,) = torch.autograd.grad(output.square().sum(), x)

    purified = purify(purifier, x.detach(), keyed).requires_grad_(True)
    (expected,) = torch.autograd.grad(restorer(purified).square().sum(), purified)
    assert torch.equal(ours, expected) and ours.abs().max() > 0
    evaluated, _ = victim.evaluate(x.detach(), keyed)
    assert torch.equal(output.detach(), evaluated)
