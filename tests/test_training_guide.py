"""Training of AGDM's guide: the loss against its formula, the inner attack, what keeps features alive, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from PIL import Image
from torch import Tensor

from udc_ray import rng
from udc_ray.data import simulate
from udc_ray.errors import SpecError
from udc_ray.hashing import file_sha256
from udc_ray.purifiers.guide_network import GuideNetwork, GuideShape, layer_distances, load_guide
from udc_ray.training import crops, entry
from udc_ray.training.guide import EPS, SIGMA, GuideRecipe, GuideSpec, Pixels, worst_change
from udc_ray.training.loop import Trainer, TrainSpec

TINY = GuideShape(widths=(4, 4, 6), blocks=(1, 0, 1))
SPEC = GuideSpec(steps=4, batch=2, crop=16, warmup=1, average=0.9, checkpoint_every=2, seed=3)


@pytest.fixture(scope="module")
def scenes() -> list[crops.Scene]:
    ramp = np.linspace(0, 1, 160, dtype=np.float32)
    values = [
        np.stack([np.add.outer(ramp, ramp) / 2, np.full((160, 160), level), 1 - np.add.outer(ramp, 0 * ramp)])
        for level in (0.2, 0.8)
    ]
    grain = np.random.default_rng(0).random((2, 3, 160, 160), dtype=np.float32)
    images = torch.from_numpy(np.stack(values).astype(np.float32) * 0.7 + 0.3 * grain)
    photos = [crops.Photograph(name=f"p{n}", image=image, hdr=False) for n, image in enumerate(images)]
    return crops.make_scenes(photos, [simulate.get_display("toled")])


def recipe(scenes: list[crops.Scene], beta: float = 6.0, attack_steps: int = 2, batch: int = 2) -> GuideRecipe:
    batches = crops.Batches(scenes=scenes, batch=batch, crop=16, seed=3)
    return GuideRecipe(batches=batches, tune=scenes, beta=beta, attack_steps=attack_steps)


def network(seed: int = 0) -> GuideNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GuideNetwork(TINY)


# The loss


def test_the_loss_is_the_task_and_beta_times_the_relative_change(scenes: list[crops.Scene]) -> None:
    """Written anew, with the noise of the same key; without attack steps delta is the random start."""
    net = network()
    degraded, truth = recipe(scenes).batches(5)
    generator = rng.generator(3, "guide", "train", step=5)
    sigma = rng.uniform(generator, 0, SIGMA, 2)
    noisy = torch.stack(
        [d + s * n for d, s, n in zip(degraded, sigma, rng.normal(generator, 2, 3, 16, 16), strict=True)]
    )
    delta = rng.uniform(generator, -EPS, EPS, 2, 3, 16, 16)
    with torch.no_grad():
        errors = [float((net(noisy[b : b + 1]) - truth[b : b + 1]).square().mean()) for b in range(2)]
        task = np.mean([10 * np.log10(e) for e in errors])
        ratios = []
        for before, after in zip(net.features(degraded), net.features(noisy + delta), strict=True):
            moved = float((after - before).square().sum(1).mean())
            apart = float((before[0] - before[1]).square().sum(0).mean())
            ratios.append(moved / apart)
    net.requires_grad_(False)
    assert float(recipe(scenes, beta=0).loss(net, 5)) == pytest.approx(task, abs=1e-4)
    found = float(recipe(scenes, beta=3, attack_steps=0).loss(net, 5))
    assert found == pytest.approx(task + 3 * np.mean(ratios), abs=1e-3)
    attacked = float(recipe(scenes, beta=3, attack_steps=2).loss(net, 5))
    assert attacked > found + 1e-3


def test_a_step_is_keyed(scenes: list[crops.Scene]) -> None:
    net = network()
    first, again, other = (float(recipe(scenes).loss(net, step).detach()) for step in (5, 5, 6))
    assert first == again != other


def test_the_task_reaches_every_guided_layer(scenes: list[crops.Scene]) -> None:
    """The restoration alone moves every weight of the encoder: nothing leads past the features."""
    net = network()
    recipe(scenes, beta=0).loss(net, 0).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())


class Faded:
    """Pixels that fade into a constant: every distance shrinks."""

    def __init__(self, left: float) -> None:
        self.left = left

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        return [1 + self.left * x_BCHW]


def test_shrinking_all_distances_gains_nothing(scenes: list[crops.Scene]) -> None:
    """The term is a ratio, which a common factor leaves alone; the distance itself would fall to a millionth."""

    class Fading(Faded):
        def restore(self, features: list[Tensor]) -> Tensor:
            return 0.5 + 0 * features[0]

    made = recipe(scenes, beta=10, attack_steps=1)
    terms = []
    for left in (1.0, 0.1):
        both = made.loss(Fading(left), 0), recipe(scenes, beta=0).loss(Fading(left), 0)  # type: ignore[arg-type]  # a double
        terms.append(float(both[0] - both[1]))
    assert terms[0] > 0.1 and terms[1] == pytest.approx(terms[0], rel=0.02)


# The inner attack


def test_the_worst_change_stays_in_the_ball_and_gets_worse(scenes: list[crops.Scene]) -> None:
    net = network().requires_grad_(False)
    x, _ = recipe(scenes).batches(0)
    anchor, unit = net.features(x), torch.ones(3)
    start = rng.uniform(rng.generator(0, "a", "test"), -EPS, EPS, *x.shape)

    def distance(delta: Tensor) -> Tensor:
        return layer_distances(net.features(x + delta), anchor).sum(0)

    found = [worst_change(net, x, anchor, unit, start, steps) for steps in (0, 1, 8)]
    assert torch.equal(found[0], start)
    assert all(float(delta.abs().max()) <= EPS + 1e-8 for delta in found)
    assert bool((distance(found[2]) > 1.5 * distance(start)).all())
    assert bool((distance(found[2]) > distance(found[1])).all())


def test_the_worst_change_of_pixels_is_known() -> None:
    """D of the pixels is largest at the corners of the ball: 3 eps^2."""
    x = torch.full((1, 3, 4, 4), 0.5)
    start = rng.uniform(rng.generator(0, "a", "test"), -EPS, EPS, *x.shape)
    delta = worst_change(Pixels(), x, [x], torch.ones(1), start, 10)
    assert torch.equal(delta, EPS * start.sign())
    assert float(layer_distances([x + delta], [x])) == pytest.approx(3 * EPS**2, rel=1e-5)


# What is reported


def test_separation_of_pixels_in_closed_form(scenes: list[crops.Scene]) -> None:
    """Noise of 25/255 lies 3 sigma^2 away and the worst delta 3 eps^2, whatever the images."""
    found = recipe(scenes).separation(Pixels())
    assert found["noise"] == pytest.approx(3 * (25 / 255) ** 2, rel=0.01)
    assert found["adversarial"] == pytest.approx(3 * EPS**2, rel=1e-3)
    first, second = (crops.crop_pair(s, 128, rng.generator(0, s.name, "tune/toled"))[0] for s in scenes)
    assert found["other"] == pytest.approx(float((first - second).square().sum(0).mean()), rel=1e-5)
    assert found["other_over_noise"] == pytest.approx(found["other"] / found["noise"])
    assert found["smooth_over_adversarial"] == pytest.approx(found["smooth"] / found["adversarial"])
    faded = recipe(scenes).separation(Faded(0.1))
    assert faded["other_over_noise"] == pytest.approx(found["other_over_noise"], rel=1e-3)


def test_validation_is_psnr_per_display(scenes: list[crops.Scene]) -> None:
    net = network()
    found = recipe(scenes).validate(net)
    scores = []
    for scene in scenes:
        degraded, truth = crops.crop_pair(scene, 128, rng.generator(0, scene.name, "tune/toled"))
        with torch.no_grad():
            scores.append(-10 * float((net(degraded[None])[0].clamp(0, 1) - truth).square().mean().log10()))
    assert found == {"toled": pytest.approx(np.mean(scores), abs=1e-4)}


# The training run


def test_resume_gives_the_same_bits_and_another_beta_is_refused(scenes: list[crops.Scene], tmp_path: Path) -> None:
    def trainer(out: Path, spec: GuideSpec = SPEC) -> Trainer:
        return Trainer(network(), recipe(scenes, spec.beta), spec, out)

    def stop_after_two(step: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole = trainer(tmp_path / "whole")
    assert whole.run(lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts").run(stop_after_two)
    with pytest.raises(SpecError, match="belongs to another training run"):
        trainer(tmp_path / "parts", SPEC.model_copy(update={"beta": 0.0}))
    resumed = trainer(tmp_path / "parts")
    assert resumed.step == 2 and resumed.run(lambda *_: None)
    for name, value in whole.averaged().state_dict().items():
        assert torch.equal(value, resumed.averaged().state_dict()[name])


def test_one_crop_a_step_is_refused(scenes: list[crops.Scene]) -> None:
    with pytest.raises(SpecError, match="two crops a step"):
        recipe(scenes, batch=1)
    assert recipe(scenes, batch=1, beta=0).beta == 0


def test_a_request_for_a_guide_carries_its_settings(tmp_path: Path) -> None:
    words = {"folders": [tmp_path], "out": tmp_path, "threads": 1, "device": "cpu"}
    asked = entry.TrainRequest(what="guide", spec=SPEC, **words)  # type: ignore[arg-type]  # one dict
    assert asked.command.endswith("--seed 3 --beta 6.0")
    for what, spec in (("guide", TrainSpec(steps=1)), ("restorer", SPEC)):
        with pytest.raises(ValueError, match=f"{what} does not go with"):
            entry.TrainRequest(what=what, spec=spec, **words)  # type: ignore[arg-type]  # one dict


def test_the_command_writes_a_guide_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "GUIDE_SHAPE", TINY)
    displays = {"toled": simulate.get_display("toled")}
    monkeypatch.setattr(simulate, "load_displays", lambda: displays)
    photos, out = tmp_path / "gb82", tmp_path / "out"
    photos.mkdir()
    grain = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    for image, name in zip(
        grain, [*sorted(n for n in crops.split_names("tune") if "/" not in n)[:2], "own"], strict=True
    ):
        Image.fromarray(image).save(photos / f"{name}.png")
    words: list[str | Path] = [
        "train",
        "guide",
        "--photos",
        photos,
        "--out",
        out,
        "--batch",
        "2",
        "--crop",
        "16",
        "--threads",
        "1",
    ]
    answer = call(*words, "--steps", "2", "--beta", "4")
    assert answer.code == 0, answer.err
    card = json.loads((out / "card.json").read_text())
    assert card["sha256"] == file_sha256(out / "guide.safetensors") and card["command"].endswith("--beta 4.0")
    assert card["network"] == {"widths": [4, 4, 6], "blocks": [1, 0, 1]} and set(card["tune_psnr_db"]) == {"toled"}
    assert set(card["separation"]) == {"trained", "untrained", "pixels"}
    assert card["data"] == "GB82 (CC0); the train part of udc_ray/data/split.json"
    saved = torch.load(out / "checkpoint.pt", weights_only=True)["average"]
    assert all(torch.equal(v, saved[k]) for k, v in load_guide(out).state_dict().items())
    assert call(*words, "--steps", "2", "--beta", "5").code == 2  # another run lies there
    refused = call(*["restorer" if w == "guide" else w for w in words], "--steps", "2", "--beta", "4")
    assert refused.code == 2 and "--beta" in refused.err
