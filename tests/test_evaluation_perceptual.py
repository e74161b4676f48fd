"""The perceptual distance in the records: of what, in which bits, and where it is not defined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from run_doubles import make_host, small_run
from test_evaluation import lpips, run

from udc_ray.attacks.objectives import LPIPS
from udc_ray.data.base import Sample
from udc_ray.errors import DataError, SpecError
from udc_ray.evaluation import Evaluator, Reading
from udc_ray.metrics.perceptual import Perceptual, PerceptualDistance, ShiftTolerant
from udc_ray.metrics.protocols import get_protocol
from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.victim import Victim
from udc_ray.spec import Entry


def readings(images: torch.Tensor, truths: torch.Tensor, protocol: str = "strict", **options: Any) -> list[Reading]:
    """What an evaluator reads of images that a model returns unchanged."""
    evaluator = Evaluator(get_protocol(protocol), options.pop("slots", 2), "cpu", 0, **options)
    samples = [
        Sample(image_id=str(n), degraded=x, truth=t) for n, (x, t) in enumerate(zip(images, truths, strict=True))
    ]
    restorer = load_restorer(Entry(name="identity"))
    restorer.descriptor = replace(restorer.descriptor, channels=images.shape[1])
    return evaluator.read(Victim(restorer=restorer), samples, list(images), list(truths))[0]


def pictures(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    truth, noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return (truth + 0.2 * (noise - 0.5)).clamp(0, 1), truth


def test_the_distance_has_the_same_bits_whatever_the_batch_and_its_companions() -> None:
    images, truths = pictures(5, 3, 32, 40)
    found = [r.lpips for r in readings(images, truths, slots=4)]
    assert found == [r.lpips for r in readings(images.flip(0), truths.flip(0), slots=3)][::-1]
    assert found == [readings(images[n : n + 1], truths[n : n + 1])[0].lpips for n in range(5)]
    assert len(set(found)) == 5


def test_the_distance_is_of_what_the_protocol_compares() -> None:
    images, truths = pictures(1, 3, 40, 44)
    (found,) = readings(images, truths, "udcunet")
    inner = [np.round(i[0, :, 4:-4, 4:-4].numpy().astype(np.float64) * 255) / 255 for i in (images, truths)]
    assert found.lpips == pytest.approx(lpips(*inner), abs=1e-6)
    assert found.lpips != pytest.approx(lpips(images[0].numpy(), truths[0].numpy()), rel=1e-3)


@pytest.mark.parametrize("shape", [(4, 32, 32), (3, 20, 40)])
def test_where_the_distance_is_not_defined_it_is_unknown(shape: tuple[int, int, int]) -> None:
    for reading in readings(*pictures(2, *shape)):
        assert reading.lpips is None and reading.psnr is not None and reading.ssim is not None


def test_another_distance_or_none_can_be_asked_for() -> None:
    images, truths = pictures(2, 3, 32, 32)
    assert [r.lpips for r in readings(images, truths, perceptual=None)] == [None, None]

    class Double(Perceptual):
        name = "stlpips"

        def load(self) -> PerceptualDistance:
            distance = ShiftTolerant().load().requires_grad_(False)
            for head in distance.heads:
                head.mul_(2)
            return distance

    plain = readings(images, truths)
    for reading, once in zip(readings(images, truths, perceptual=Double()), plain, strict=True):
        assert once.lpips is not None and reading.lpips == pytest.approx(2 * once.lpips, rel=1e-6)


def test_an_output_of_nan_has_a_distance() -> None:
    images, truths = pictures(1, 3, 32, 32)
    (broken,), (fine,) = readings(torch.full_like(images, float("nan")), truths), readings(images, truths)
    assert broken.lpips is not None and fine.lpips is not None and broken.lpips > fine.lpips


def test_the_spec_names_the_distance_and_the_records_say_which() -> None:
    asked, without = small_run(), small_run("perceptual=none")
    assert {r.perceptual for r in run(asked).records} == {"stlpips"}
    for record in run(without).records:
        assert record.lpips_adv is record.lpips_clean is None and record.perceptual == "none"
    assert asked.document["perceptual"] == {"name": "stlpips"}
    assert asked.setup.fingerprint != without.setup.fingerprint
    files = asked.document["files"]
    assert isinstance(files, dict) and files["perceptual:stlpips"] == ShiftTolerant().weight_hashes()["stlpips"]
    with pytest.raises(SpecError, match="did you mean stlpips"):
        small_run("perceptual=stlpip")


def test_images_that_the_distance_cannot_judge_are_said_once() -> None:
    assert small_run().notes == ()
    (note,) = small_run("data.size=20").notes
    assert "stlpips" in note and "21 x 21" in note
    assert small_run("data.size=20", "perceptual=none").notes == ()


@pytest.mark.parametrize("key", ["objective=lpips", "protocol=sit"])
def test_what_cannot_be_judged_is_refused_before_the_run(key: str) -> None:
    with pytest.raises(DataError):
        small_run(key, "data.size=20")


def test_the_probe_looks_at_the_objectives_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An objective with a network of its own must not depend on the place in the batch either."""
    prepared = small_run(attacks=("pgd:steps=1,objective=lpips",))
    host, loss, seen = make_host(prepared), LPIPS.loss, []

    def watched(self: LPIPS, output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        seen.append(output.shape)
        return loss(self, output, reference)

    monkeypatch.setattr(LPIPS, "loss", watched)
    assert host.resolve(prepared.shapes).micro_batch == 4
    assert seen == [(4, 3, 48, 48)] * 4
