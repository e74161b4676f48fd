"""Training: the schedule and the average in closed form, keyed batches, exact resume, files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from udc_ray.data import simulate
from udc_ray.errors import DataError, SpecError
from udc_ray.hashing import file_sha256
from udc_ray.models.loading import load_restorer
from udc_ray.models.nafnet import NAFNet
from udc_ray.spec import Entry
from udc_ray.training import crops, entry
from udc_ray.training.loop import Trainer, TrainSpec, learning_rate
from udc_ray.training.restorer import RestorerRecipe, psnr_loss

SHAPE = {"width": 4, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)}
SPEC = TrainSpec(steps=6, batch=2, crop=16, warmup=2, average=0.9, bfloat16=False, checkpoint_every=2, seed=5)


@pytest.fixture(scope="module")
def scenes() -> list[crops.Scene]:
    values = np.random.default_rng(0).random((2, 3, 40, 40), dtype=np.float32)
    photos = [crops.Photograph(name=f"p{n}", image=torch.from_numpy(v), hdr=False) for n, v in enumerate(values)]
    return crops.make_scenes(photos, [simulate.get_display("toled")])


def batches(scenes: list[crops.Scene], seed: int = 5) -> crops.Batches:
    return crops.Batches(scenes=scenes, batch=2, crop=16, seed=seed)


def trainer(scenes: list[crops.Scene], out: Path, spec: TrainSpec = SPEC) -> Trainer:
    torch.manual_seed(0)
    network = NAFNet(**SHAPE).to(memory_format=torch.channels_last)  # type: ignore[call-overload, arg-type]  # torch's stubs; one dict
    return Trainer(network, RestorerRecipe(batches=batches(scenes, spec.seed), tune=[]), spec, out)


def ignore(step: int, loss: float) -> None:
    """Listen to nothing."""


class Stopped(Exception):
    """What a caller may raise at any step."""


def test_learning_rate_in_closed_form() -> None:
    spec = TrainSpec(steps=110, warmup=10, rate=2e-3)
    assert [learning_rate(spec, s) for s in (0, 4, 9)] == pytest.approx([2e-4, 1e-3, 2e-3])
    for step in (10, 35, 60, 85, 110):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        assert learning_rate(spec, step) == pytest.approx(2e-3 * (0.01 + 0.99 * cosine), rel=1e-5)
    assert learning_rate(TrainSpec(steps=5, warmup=0, rate=1.0), 0) == 1.0


def test_psnr_loss_is_minus_psnr() -> None:
    truth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    output = truth + torch.tensor([0.1, 0.01, 1.0])[:, None, None, None]
    assert float(psnr_loss(output, truth)) == pytest.approx(-(20 + 40 + 0) / 3, abs=1e-3)


def test_batches_are_a_function_of_seed_and_step(scenes: list[crops.Scene]) -> None:
    first, again = batches(scenes)(3), batches(scenes)(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(t.shape == (2, 3, 16, 16) for t in first)
    for other in (batches(scenes)(4), batches(scenes, seed=6)(3)):
        assert not torch.equal(other[1], first[1])
    degraded, truth = first
    assert not torch.equal(degraded, truth) and float(degraded.min()) >= 0 and float(degraded.max()) <= 1


def test_a_photograph_smaller_than_a_crop_is_refused(scenes: list[crops.Scene]) -> None:
    with pytest.raises(DataError, match="p0 is 40x40, smaller than a crop of 64"):
        crops.crop_pair(scenes[0], 64, np.random.default_rng(0))


class OneWeight(nn.Module):
    """The identity times one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))


class Pull:
    """A loss that pulls the weight to zero."""

    def loss(self, network: nn.Module, step: int) -> Tensor:
        return next(network.parameters()).square().sum()

    def validate(self, network: nn.Module) -> dict[str, float]:
        return {}


def test_average_is_the_recurrence(tmp_path: Path) -> None:
    network = OneWeight()
    made = Trainer(network, Pull(), SPEC.model_copy(update={"steps": 40, "average": 0.7, "rate": 0.05}), tmp_path)
    values = [1.0]
    assert made.run(lambda *_: values.append(float(network.weight.detach())))
    expected = values[0]
    for step, value in enumerate(values[1:]):
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert values[-1] < 0.5 and expected != pytest.approx(values[-1], abs=1e-4)
    assert float(made.averaged().weight.detach()) == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]  # a tensor


@pytest.fixture(scope="module")
def uninterrupted(scenes: list[crops.Scene], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Trainer]:
    made, losses = trainer(scenes, tmp_path_factory.mktemp("whole")), []
    assert made.run(lambda _, loss: losses.append(loss))
    return losses, made


def states(made: Trainer) -> Iterator[Tensor]:
    yield from made.network.state_dict().values()
    yield from made.average.values()
    for state in made.optimizer.state_dict()["state"].values():
        yield from state.values()


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resume_gives_the_same_bits(
    scenes: list[crops.Scene], uninterrupted: tuple[list[float], Trainer], tmp_path: Path, stop: int
) -> None:
    """A stop between two steps loses nothing."""

    def stopping(step: int, loss: float) -> None:
        if step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        trainer(scenes, tmp_path).run(stopping)
    resumed, losses = trainer(scenes, tmp_path), []
    assert resumed.step == stop
    started_at = resumed.step
    assert resumed.run(lambda _, loss: losses.append(loss))
    assert losses == uninterrupted[0][started_at:]
    assert all(torch.equal(a, b) for a, b in zip(states(resumed), states(uninterrupted[1]), strict=True))


def test_a_step_that_fails_is_not_saved_half_done(
    scenes: list[crops.Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = trainer(scenes, tmp_path)
    step = failing.optimizer.step

    def fail_at_the_fourth(*args: object, **kwargs: object) -> None:
        step()
        if failing.step == 3:
            raise Stopped

    monkeypatch.setattr(failing.optimizer, "step", fail_at_the_fourth)
    with pytest.raises(Stopped):
        failing.run(ignore)
    assert trainer(scenes, tmp_path).step == 2  # the last checkpoint, not the torn step


def test_time_up_leaves_a_checkpoint(scenes: list[crops.Scene], tmp_path: Path) -> None:
    made = trainer(scenes, tmp_path)
    assert not made.run(ignore, stop_after=0)
    assert made.step == 0 and [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert trainer(scenes, tmp_path).step == 0


def test_another_spec_is_refused(scenes: list[crops.Scene], tmp_path: Path) -> None:
    trainer(scenes, tmp_path).run(ignore, stop_after=0)
    with pytest.raises(SpecError, match="belongs to another training run"):
        trainer(scenes, tmp_path, SPEC.model_copy(update={"rate": 2e-3}))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs: one for training, and one that the split sets aside for tuning."""
    folder = tmp_path / "photos"
    folder.mkdir()
    tune = next(n for n in sorted(crops.split_names("tune")) if "/" not in n)
    ramp = np.linspace(0, 255, 256)
    image = np.stack([np.add.outer(ramp, ramp) / 2, np.add.outer(ramp, ramp[::-1]) / 2, np.full((256, 256), 90)], -1)
    for name in (tune, "my-own-photograph"):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def request(photos: Path, out: Path, what: str = "restorer") -> entry.TrainRequest:
    spec = SPEC.model_copy(update={"steps": 2})
    return entry.TrainRequest(what=what, folders=[photos], out=out, threads=1, device="cpu", spec=spec)


def test_writes_weights_that_load_and_a_card(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "RESTORER_SHAPE", SHAPE)
    displays = {"toled": simulate.get_display("toled")}
    monkeypatch.setattr(simulate, "load_displays", lambda: displays)
    out = tmp_path / "out"
    assert not entry.train_network(request(photos, out), ignore, stop_after=0)
    assert not (out / "card.json").exists() and not list(out.glob("*.safetensors"))
    assert entry.train_network(request(photos, out), ignore)
    weights, card = out / "restorer.safetensors", json.loads((out / "card.json").read_text())
    assert not list(out.glob("*.partial"))
    assert card["sha256"] == file_sha256(weights) and card["steps"] == 2
    assert card["command"].startswith("udc-ray train restorer --photos photos --out out --steps 2 --batch 2 --crop 16")
    assert set(card["tune_psnr_db"]) == {"toled"}
    loaded = load_restorer(Entry(name=str(weights)))
    assert card["parameters"] == loaded.descriptor.parameters == sum(p.numel() for p in NAFNet(**SHAPE).parameters())  # type: ignore[arg-type]  # one dict
    saved = torch.load(out / "checkpoint.pt", weights_only=True)["average"]
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    reference = NAFNet(**SHAPE).eval()  # type: ignore[arg-type]  # one dict
    reference.load_state_dict(saved)
    with torch.no_grad():
        assert torch.allclose(loaded(x), reference(x), atol=1e-6)


def test_folders_without_photographs_of_a_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no photographs for train"):
        crops.read_part([tmp_path], "train")


def test_parts_do_not_mix(photos: Path) -> None:
    train, tune = (crops.read_part([photos], part) for part in ("train", "tune"))
    assert [p.name for p in train] == ["my-own-photograph"]
    assert len(tune) == 1 and tune[0].name in crops.split_names("tune")
