"""Every column of a record against a recomputation with plain NumPy, Pillow and scikit-image."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from run_doubles import all_units, make_host, results_of, small_run, stable
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udc_ray.data.base import Sample
from udc_ray.metrics.perceptual import PerceptualDistance, ShiftTolerant
from udc_ray.metrics.protocols import get_protocol
from udc_ray.plan import Cell
from udc_ray.prepare import Prepared
from udc_ray.records import Record
from udc_ray.results import Adversarial, UnitResult
from udc_ray.tasks import get_task

Floats = NDArray[Any]


def psnr(output: Floats, truth: Floats) -> float:
    shown = np.clip(output.astype(np.float64), 0, 1)
    return float(peak_signal_noise_ratio(truth.astype(np.float64), shown, data_range=1))


def ssim(output: Floats, truth: Floats) -> float:
    shown = np.clip(output.astype(np.float64), 0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(truth.astype(np.float64), shown, data_range=1, channel_axis=0, **options))


@lru_cache
def network() -> PerceptualDistance:
    return ShiftTolerant().load().requires_grad_(False)


def lpips(output: Floats, truth: Floats) -> float:
    """The shipped perceptual distance of one clamped image."""
    images = (np.ascontiguousarray(i[None], np.float32) for i in (np.clip(output, 0, 1), truth))
    return float(network()(*map(torch.from_numpy, images)))


def philox(*key: object) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def jpeg(x: Floats) -> Floats:
    file = io.BytesIO()
    image = np.round(x * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
    return np.asarray(Image.open(file), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


def restored(prepared: Prepared, x: Floats) -> Floats:
    with torch.no_grad():
        output: Floats = prepared.restorer(torch.from_numpy(np.ascontiguousarray(x[None], np.float32)))[0].numpy()
    return output


def under_noise(f: Callable[[Floats], Floats], sample: Sample, norm: str, size: float, truth: Floats) -> float:
    x, values = sample.degraded.numpy(), []
    for draw in range(4):
        generator = philox(0, sample.image_id, f"control/noise/{norm}", 0, draw, 0)
        if norm == "linf":
            direction = generator.integers(0, 2, x.shape) * 2.0 - 1
        else:
            direction = generator.standard_normal(x.shape, dtype=np.float32).astype(np.float64)
            direction /= np.linalg.norm(direction)
        values.append(psnr(f(np.clip(x + size * direction, 0, 1)), truth))
    return float(np.mean(values))


def run(prepared: Prepared, chunk: int = 4) -> UnitResult:
    """All units of a run as one result."""
    results = results_of(make_host(prepared), all_units(prepared, chunk))
    return UnitResult(
        records=[r for result in results for r in result.records],
        images=[i for result in results for i in result.images],
        curves={k: v for result in results for k, v in result.curves.items()},
    )


def cell_of(prepared: Prepared, record: Record) -> Cell:
    return next(c for c in prepared.setup.plan.cells if c.id == record.cell)


def crafted_for(prepared: Prepared, result: UnitResult, record: Record) -> Adversarial:
    """The attacked image that a record scores: its own, or the undefended one's for blind cells."""
    plan, cell = prepared.setup.plan, cell_of(prepared, record)
    if record.grad_mode == "blind":
        cell = next(c for c in plan.cells if c.attack == cell.attack and plan.defences[c.defence].purifier is None)
    wanted = (cell.id, record.image_id, record.restart)
    return next(i for i in result.images if (i.cell, i.image_id, i.restart) == wanted)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return small_run(
        "run.save=all",
        attacks=("pgd:steps=2,restarts=2", "pgd:norm=l2,eps=3.0,steps=2", "square:budget=5"),
        defenses=("none", "jpeg:grad_mode=[blind, bpda]"),
    )


@pytest.fixture(scope="module")
def result(prepared: Prepared) -> UnitResult:
    return run(prepared)


def test_scores_equal_an_independent_recomputation(prepared: Prepared, result: UnitResult) -> None:
    assert len(result.records) == 3 * (2 * 3 + 3 + 2)
    for record in result.records:
        sample = prepared.setup.dataset.load(record.image_id)
        assert sample.truth is not None
        x, truth = sample.degraded.numpy(), sample.truth.numpy()

        def f(image: Floats, shield: bool = record.defense == "jpeg") -> Floats:
            return restored(prepared, jpeg(image) if shield else image)

        image = crafted_for(prepared, result, record)
        assert np.array_equal(image.x, x)
        close = {"abs": 1e-3 if record.defense == "none" else 5e-3}  # JPEG rounds: one level may tip over
        assert record.psnr_degraded == pytest.approx(psnr(x, truth), abs=1e-9)
        assert record.psnr_clean == pytest.approx(psnr(f(x), truth), abs=1e-4)
        assert record.psnr_adv == pytest.approx(psnr(f(image.x_adv), truth), abs=1e-4)
        assert record.ssim_clean == pytest.approx(ssim(f(x), truth), abs=1e-5)
        assert record.ssim_adv == pytest.approx(ssim(f(image.x_adv), truth), abs=1e-5)
        assert record.lpips_clean == pytest.approx(lpips(f(x), truth), abs=1e-4)
        assert record.lpips_adv == pytest.approx(lpips(f(image.x_adv), truth), abs=1e-4)
        assert record.lpips_clean > 0 and record.lpips_adv > 0
        assert record.eps is not None
        assert record.psnr_noise == pytest.approx(under_noise(f, sample, record.norm, record.eps, truth), **close)
        delta = image.x_adv.astype(np.float64) - x
        assert record.linf == pytest.approx(np.abs(delta).max(), abs=1e-12)
        assert record.l2 == pytest.approx(np.linalg.norm(delta), rel=1e-9)
        assert record.psnr_clean is not None and record.psnr_adv is not None
        assert record.success is (record.psnr_clean - record.psnr_adv >= 3)


def test_counts_and_labels(prepared: Prepared, result: UnitResult) -> None:
    for record in result.records:
        expected = (5, 0, 5, "budget") if record.attack == "square" else (1, 2, None, "iterations")
        assert (record.queries, record.grad_evals, record.budget, record.stop_reason) == expected
        assert record.queries_harness == 2 * 1 + 4
        assert record.queries_reexecuted == record.retries == record.nfe == record.sample == 0
        assert record.run_fingerprint == prepared.setup.fingerprint and record.error is None
        assert (record.data, record.objective, record.protocol) == ("shipped", "mse", "strict")
    assert {r.restart for r in result.records if r.label.startswith("pgd linf")} == {0, 1}


def test_what_an_attack_noticed_is_in_its_records(result: UnitResult) -> None:
    for record in result.records:
        seen = (record.grad_zero_share, record.grad_dead_steps, record.loss_move, record.lost)
        if record.attack == "square":
            assert seen == (None,) * 4
            continue
        assert record.grad_dead_steps == 0 and record.lost is False
        # PGD-2: with ten steps or fewer every rise is a last one
        assert record.grad_zero_share is not None and 0 <= record.grad_zero_share < 0.01
        assert record.loss_move in (0.0, 1.0)


def test_blind_cells_repeat_what_the_attack_cost(result: UnitResult) -> None:
    plain = {(r.attack, r.norm, r.image_id, r.restart): r for r in result.records if r.defense == "none"}
    blind = [r for r in result.records if r.grad_mode == "blind"]
    assert len(blind) == 3 * 4
    for record in blind:
        other = plain[record.attack, record.norm, record.image_id, record.restart]
        for column in ("queries", "grad_evals", "linf", "l2", "stop_reason", "psnr_degraded"):
            assert getattr(record, column) == getattr(other, column)
        assert record.psnr_adv != other.psnr_adv


def test_curves_belong_to_the_cells_that_were_attacked(prepared: Prepared, result: UnitResult) -> None:
    squares = [r for r in result.records if r.attack == "square" and r.defense == "none"]
    assert set(result.curves) == {f"{r.cell}/{r.image_id}/0" for r in squares}
    for record in squares:
        curve = result.curves[f"{record.cell}/{record.image_id}/0"]
        assert [q for q, _ in curve] == sorted({q for q, _ in curve}) and curve[-1][0] <= 5
        assert record.psnr_adv == pytest.approx(-10 * np.log10(curve[-1][1]), abs=1e-4)


@pytest.mark.parametrize("save", ["best", "none"])
def test_what_is_kept(prepared: Prepared, result: UnitResult, save: str) -> None:
    sparing = small_run(
        f"run.save={save}", attacks=("pgd:steps=2,restarts=2",), defenses=("none", "jpeg:grad_mode=[blind, bpda]")
    )
    kept = run(sparing)
    if save == "none":
        assert kept.images == []
        return
    scores = {(r.cell, r.image_id, r.restart): r.psnr_adv or 0.0 for r in kept.records}
    made = {r.cell for r in kept.records if r.grad_mode != "blind"}
    assert {(i.cell, i.image_id) for i in kept.images} == {
        (c, i) for c in made for i in {r.image_id for r in kept.records}
    }
    for image in kept.images:
        rivals = [scores[image.cell, image.image_id, restart] for restart in (0, 1)]
        assert scores[image.cell, image.image_id, image.restart] == min(rivals)
    assert len(result.images) == 3 * (2 * 2 + 2 + 1), "save: all keeps every restart"


def test_random_defences_give_a_row_for_every_sample() -> None:
    prepared = small_run(
        attacks=("pgd:steps=2,eot=2",), defenses=("none", "gaussian-noise:sigma=20,samples=2,grad_mode=[bpda]")
    )
    result = run(prepared)
    rows = [r for r in result.records if r.defense != "none"]
    assert sorted((r.image_id, r.sample) for r in rows) == [
        (i, s) for i in sorted(prepared.setup.dataset.image_ids) for s in (0, 1)
    ]
    identity = prepared.setup.plan.defences[1].purifier
    assert identity is not None
    for first, second in zip(*([r for r in rows if r.sample == s] for s in (0, 1)), strict=True):
        assert first.psnr_adv != second.psnr_adv and first.psnr_clean != second.psnr_clean
        assert first.lpips_adv != second.lpips_adv and first.lpips_clean != second.lpips_clean
        assert first.psnr_noise == second.psnr_noise
        for row in (first, second):
            # two EOT draws a gradient; every iterate and the last one are asked once on the select tape
            assert (row.grad_evals, row.queries, row.queries_harness, row.eot) == (4, 3, 2 * 2 + 4, 2)
            sample = prepared.setup.dataset.load(row.image_id)
            assert sample.truth is not None
            noise = philox(0, row.image_id, f"eval/{identity.identity()}", 0, row.sample, 0).standard_normal(
                sample.degraded.shape, dtype=np.float32
            )
            x_adv = crafted_for(prepared, result, row).x_adv
            for x, value in ((sample.degraded.numpy(), row.psnr_clean), (x_adv, row.psnr_adv)):
                output = restored(prepared, np.clip(x + np.float32(20 / 255) * noise, 0, 1))
                assert value == pytest.approx(psnr(output, sample.truth.numpy()), abs=1e-4)


def test_outputs_of_all_draws_are_fused_apart_from_their_mean_score() -> None:
    prepared = small_run(
        "run.save=all",
        attacks=("pgd:steps=1,restarts=2",),
        defenses=("none", "gaussian-noise:sigma=40,samples=4,grad_mode=[bpda]"),
        limit=2,
    )
    result = run(prepared)
    purifier = prepared.setup.plan.defences[1].purifier
    assert purifier is not None
    for record in result.records:
        fused = [
            getattr(record, f"psnr_{how}_output_{side}") for how in ("mean", "median") for side in ("clean", "adv")
        ]
        assert record.guide_calls == record.nfe == 0
        if record.defense == "none":
            assert fused == [None] * 4
            continue
        sample = prepared.setup.dataset.load(record.image_id)
        assert sample.truth is not None
        truth, expected = sample.truth.numpy(), []
        images = (sample.degraded.numpy(), crafted_for(prepared, result, record).x_adv)
        outputs = []
        for x in images:
            draws = []
            for draw in range(4):
                generator = philox(0, record.image_id, f"eval/{purifier.identity()}", 0, draw, 0)
                noise = generator.standard_normal(x.shape, dtype=np.float32)
                draws.append(np.clip(restored(prepared, np.clip(x + np.float32(40 / 255) * noise, 0, 1)), 0, 1))
            outputs.append(np.asarray(draws, dtype=np.float64))
        expected = [psnr(how(draws, axis=0), truth) for how in (np.mean, np.median) for draws in outputs]
        assert fused == pytest.approx(expected, abs=1e-4)
        rows = [r for r in result.records if r.key[:3] == record.key[:3]]
        assert len(rows) == 4 and len({(r.psnr_mean_output_adv, r.psnr_median_output_clean) for r in rows}) == 1
        # Jensen: the error of the mean image is at most the mean error
        errors = [10 ** (-(r.psnr_adv or 0.0) / 10) for r in rows]
        assert 10 ** (-fused[1] / 10) <= np.mean(errors) + 1e-12


def test_a_host_knows_how_long_purifications_took() -> None:
    prepared = small_run(
        attacks=("pgd:steps=1,restarts=2",), defenses=("none", "gaussian-noise:samples=3,grad_mode=[blind, bpda]")
    )
    host = make_host(prepared)
    results_of(host, all_units(prepared))
    (label, spent), *rest = host.evaluator.clock.to_json().items()
    assert (label, rest) == ("gaussian-noise", [])
    # three images, three draws and two restarts in two cells
    assert spent["images"] == 3 * 3 * 2 * 2 and 0 < spent["seconds"] < 60


@settings(max_examples=30, deadline=None)
@given(draws=st.integers(2, 7), seed=st.integers(0, 2**32 - 1), spread=st.floats(0.01, 3))
def test_fused_outputs_are_those_of_what_would_be_stored(draws: int, seed: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    truth, outputs = generator.random((3, 4, 5)), generator.normal(0.5, spread, (draws, 3, 4, 5))
    tensors = [torch.from_numpy(output) for output in outputs]
    fused = get_task("restoration").fuse(tensors, torch.from_numpy(truth), get_protocol("strict"))
    shown = np.clip(outputs, 0, 1)
    assert fused.mean == pytest.approx(psnr(shown.mean(axis=0), truth), abs=1e-9)
    assert fused.median == pytest.approx(psnr(np.median(shown, axis=0), truth), abs=1e-9)
    assert np.mean((shown.mean(axis=0) - truth) ** 2) <= np.mean((shown - truth) ** 2) + 1e-12


@pytest.fixture
def degraded_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(2):
        values = np.random.default_rng(n).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


def test_without_reference_the_clean_output_is_the_measure(degraded_folder: Path) -> None:
    flags: dict[str, Any] = {"data": str(degraded_folder), "reference": False}
    result = run(prepared := small_run("run.save=all", attacks=("pgd:steps=2",), **flags))
    assert len(result.records) == 2
    for record in result.records:
        assert record.psnr_mean_output_clean is record.psnr_mean_output_adv is None
        assert record.psnr_degraded is record.psnr_clean is record.ssim_clean is record.success is None
        assert record.lpips_clean is None
        assert record.objective == "mse-clean"
        sample = prepared.setup.dataset.load(record.image_id)
        clean = np.clip(restored(prepared, sample.degraded.numpy()), 0, 1)
        attacked = restored(prepared, crafted_for(prepared, result, record).x_adv)
        assert record.psnr_adv == pytest.approx(psnr(attacked, clean), abs=1e-4)
        assert record.ssim_adv == pytest.approx(ssim(attacked, clean), abs=1e-5)
        assert record.lpips_adv == pytest.approx(lpips(attacked, clean), abs=1e-4)
        expected = under_noise(lambda x: restored(prepared, x), sample, "linf", 8 / 255, clean)
        assert record.psnr_noise == pytest.approx(expected, abs=1e-3)
    leveled = run(small_run("success={psnr_below: 30}", attacks=("pgd:steps=2",), **flags))
    assert [r.success for r in leveled.records] == [(r.psnr_adv or 0) <= 30 for r in leveled.records]


def test_attacks_guided_by_lpips_give_the_same_records_in_any_chunks() -> None:
    attacks = ("pgd:steps=2,objective=lpips", "square:budget=4", "pgd:steps=2,objective=mse")
    prepared = small_run("objective=lpips", attacks=attacks, defenses=("none", "jpeg:grad_mode=[bpda]"))
    records = sorted(run(prepared).records, key=lambda r: r.key)
    assert stable(records) == stable(run(prepared, chunk=1).records)
    assert {(r.attack, r.objective) for r in records} == {("pgd", "lpips"), ("square", "lpips"), ("pgd", "mse")}
    by_lpips, by_mse = (
        {r.image_id: r.lpips_adv or 0.0 for r in records if (r.attack, r.objective, r.defense) == ("pgd", o, "none")}
        for o in ("lpips", "mse")
    )
    assert len(by_lpips) == 3 and all(by_lpips[i] > by_mse[i] for i in by_mse)


def test_minimum_norm_noise_has_the_size_that_was_reached() -> None:
    prepared = small_run("run.save=all", attacks=("cw:search_steps=2,iterations=6,rate=0.05,initial_const=0.1",))
    result = run(prepared)
    for record in result.records:
        assert record.eps is None and record.norm == "l2" and record.l2
        sample = prepared.setup.dataset.load(record.image_id)
        assert sample.truth is not None
        truth = sample.truth.numpy()
        expected = under_noise(lambda x: restored(prepared, x), sample, "l2", record.l2, truth)
        assert record.psnr_noise == pytest.approx(expected, abs=1e-3)
    assert len({r.psnr_noise for r in result.records}) == 3


def test_order_of_records_is_cells_restarts_images_samples(prepared: Prepared) -> None:
    unit = all_units(prepared)[0]
    records = make_host(prepared).run(unit).records
    expected = [(c.id, r, i) for c in unit.cells for r in (0, 1) for i in unit.image_ids]
    assert [(r.cell, r.restart, r.image_id) for r in records] == expected
