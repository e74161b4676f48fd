"""Hosts: the same bits whatever the chunk, counts, memory, and what a report asks for."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from doubles import Counting, tiled
from run_doubles import (
    Wrapped,
    all_units,
    make_host,
    results_of,
    run_all,
    score_request,
    small_device,
    small_run,
    stable,
)

from udc_ray.attacks.oracle import Row, ScoreRequest, pack
from udc_ray.attacks.query import EVENT, Wanted
from udc_ray.errors import DeviceMemoryError, SpecError
from udc_ray.in_process import InProcessPool
from udc_ray.prepare import Prepared
from udc_ray.tape import Tape


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return small_run(
        attacks=("pgd:steps=2,restarts=2", "square:budget=6"),
        defenses=("none", "gaussian-noise:samples=2,grad_mode=[blind, bpda]"),
    )


def test_chunk_order_and_companions_change_nothing(prepared: Prepared) -> None:
    reference = stable(run_all(make_host(prepared), prepared, chunk=3))
    assert len(reference) == 3 * (2 + 4 + 4 + 1 + 2)
    assert stable(run_all(make_host(prepared), prepared, chunk=1)) == reference
    host = make_host(prepared)
    results = results_of(host, reversed(all_units(prepared, 2)))
    backwards = [record for result in results for record in result.records]
    assert stable(backwards) == reference


def test_images_do_not_depend_on_the_chunk(prepared: Prepared) -> None:
    def kept(chunk: int) -> dict[tuple[str, str, int], bytes]:
        host = make_host(prepared)
        images = [image for result in results_of(host, all_units(prepared, chunk)) for image in result.images]
        return {(i.cell, i.image_id, i.restart): i.x_adv.tobytes() for i in images}

    assert kept(1) == kept(2)


def test_every_forward_pass_has_the_same_slots(prepared: Prepared) -> None:
    sizes: set[int] = set()
    host = make_host(prepared, Wrapped(prepared.restorer, lambda x: sizes.add(len(x))), micro_batch=4)
    results_of(host, all_units(prepared, 2))
    assert sizes == {4}


def test_score_is_the_objective_of_the_victim(prepared: Prepared) -> None:
    host = make_host(prepared)
    ids = prepared.setup.dataset.image_ids
    samples = [host.sample(i) for i in (ids[2], ids[0], ids[2])]
    x = torch.stack([(s.degraded + 0.05 * n).clamp(0, 1) for n, s in enumerate(samples)])
    with torch.no_grad():
        outputs = [prepared.restorer(row[None])[0].clamp(0, 1) for row in x]
    truths = [s.truth for s in samples if s.truth is not None]
    expected = [float((o - t).double().square().mean()) for o, t in zip(outputs, truths, strict=True)]
    answers = host.score(score_request([s.image_id for s in samples], x))
    assert answers == pytest.approx(expected, rel=1e-5)
    for goal, happened in ((expected[1] * 0.999, 1.0), (expected[1] * 1.001, 0.0)):
        assert host.score(score_request([ids[0]], x[1:2], wanted=EVENT, goal=goal)) == [happened]


def test_tile_sums_are_taken_against_the_truth_or_the_clean_output(prepared: Prepared) -> None:
    host = make_host(prepared)
    sample = host.sample(prepared.setup.dataset.image_ids[1])
    assert sample.truth is not None
    x = (sample.degraded + 0.05).clamp(0, 1)
    with torch.no_grad():
        attacked, clean = (prepared.restorer(image[None])[0].clamp(0, 1).double() for image in (x, sample.degraded))
    for kind, reference in (("reference", sample.truth), ("clean", clean)):
        wanted = Wanted(kind="tile-sums", tile=20, against=kind)  # type: ignore[arg-type]  # one of the two
        (sums,) = host.score(score_request([sample.image_id], x[None], wanted=wanted))
        assert np.allclose(sums, tiled((attacked - reference.double()).square().numpy(), 20), rtol=1e-5)
        assert np.shape(sums) == (3, 3)


def test_a_random_victim_draws_anew_for_every_query_and_the_same_for_the_same() -> None:
    prepared = small_run(attacks=("square:budget=2",), defenses=("gaussian-noise:sigma=20,grad_mode=[full]",))
    ids = prepared.setup.dataset.image_ids
    host = make_host(prepared)
    x = torch.stack([host.sample(ids[0]).degraded] * 4)

    def scores(**row: Any) -> list[float]:
        return [float(a) for a in host.score(score_request([ids[0]], x[:1], **row))]

    draws = {(restart, step): scores(restart=restart, step=step)[0] for restart in range(2) for step in range(4)}
    assert len(set(draws.values())) == 8
    rows = [Row(image_id=ids[0], restart=r, step=s) for r, s in ((1, 3), (0, 0), (0, 2), (1, 0))]
    again = make_host(prepared).score(ScoreRequest(victim=0, rows=tuple(rows), packed=pack(x)))
    assert again == [draws[row.restart, row.step] for row in rows], "companions or the host's past change a draw"
    assert scores(step=1, cell="another cell", wanted=EVENT, goal=draws[0, 1]) == [1.0]


def test_goal_is_three_decibels_below_clean(prepared: Prepared) -> None:
    host = make_host(prepared)
    unit = all_units(prepared)[0]
    for clean, goal in host.goals(unit).values():
        assert 10 * math.log10(goal / clean) == pytest.approx(3, abs=1e-6)


def test_goal_at_an_absolute_level() -> None:
    prepared = small_run("success={psnr_below: 20}")
    goals = make_host(prepared).goals(all_units(prepared)[0])
    assert [goal for _, goal in goals.values()] == pytest.approx([0.01] * 3)


def test_restorer_calls_are_counted_honestly() -> None:
    """Per image: 3 gradients of PGD-3 and one last score; the rest is the harness."""
    prepared = small_run(attacks=("pgd:steps=3",))
    counting = Counting(prepared.restorer)
    host = make_host(prepared, counting, micro_batch=3)
    records = host.run(all_units(prepared, 3)[0]).records
    assert {(r.grad_evals, r.queries) for r in records} == {(3, 1)}
    assert counting.with_gradient == 3 * 3
    harness = sum(r.queries_harness or 0 for r in records)
    # the goals look at the clean images once more, all in one batch, and remember what they saw
    assert counting.without == 3 * 1 + harness + 3
    host.goals(all_units(prepared, 3)[0])
    assert counting.without == 3 * 1 + harness + 3


@pytest.mark.parametrize("attack", ["pgd:steps=1", "square:budget=3", "noise"])
def test_out_of_memory_names_what_fits(attack: str) -> None:
    prepared = small_run(attacks=(attack,))
    (unit,) = all_units(prepared)
    (failed,) = InProcessPool(make_host(prepared, small_device(prepared.restorer, 2), micro_batch=4)).map_unordered(
        [unit]
    )
    advice = r"DeviceMemoryError: .* at micro_batch 4; micro_batch 2 fits: give --set run.micro_batch=2"
    assert failed.result is None and re.match(advice, failed.error or "")
    (result,) = results_of(make_host(prepared, small_device(prepared.restorer, 2), micro_batch=2), [unit])
    assert result.records


def test_out_of_memory_while_scoring() -> None:
    prepared = small_run()
    host = make_host(prepared, small_device(prepared.restorer, 2), micro_batch=4)
    image_id = prepared.setup.dataset.image_ids[0]
    with pytest.raises(DeviceMemoryError, match="scoring at micro_batch 4; micro_batch 2 fits"):
        host.score(score_request([image_id], host.sample(image_id).degraded[None]))


def test_out_of_memory_in_the_probe_is_for_the_user_to_mend() -> None:
    prepared = small_run()
    host = make_host(prepared, small_device(prepared.restorer, 2), micro_batch=8)
    with pytest.raises(SpecError, match="micro_batch 2 fits"):
        host.resolve(prepared.shapes)


def test_automatic_micro_batch_is_the_largest_power_of_two_that_fits() -> None:
    prepared = small_run("run.micro_batch=auto")
    assert make_host(prepared, small_device(prepared.restorer, 11)).resolve(prepared.shapes).micro_batch == 8
    assert make_host(prepared, small_device(prepared.restorer, 1)).resolve(prepared.shapes).micro_batch == 1


def test_view_shows_what_was_scored(prepared: Prepared) -> None:
    host = make_host(prepared)
    cells = prepared.setup.plan.cells
    image_id = prepared.setup.dataset.image_ids[0]
    sample = host.sample(image_id)
    x_adv = (sample.degraded + 0.1).clamp(0, 1)
    plain = host.views(0, {image_id: x_adv})[image_id]
    assert cells[0].grad_mode == "full" and plain.purified is None
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(plain.attacked_output), prepared.restorer(x_adv[None])[0], atol=1e-6)
        assert torch.allclose(torch.from_numpy(plain.restored), prepared.restorer(sample.degraded[None])[0], atol=1e-6)
    bpda = next(n for n, c in enumerate(cells) if c.grad_mode == "bpda")
    noisy = host.views(bpda, {image_id: x_adv})[image_id]
    assert noisy.purified is not None
    assert float((torch.from_numpy(noisy.purified) - x_adv).std()) == pytest.approx(10 / 255, rel=0.2)
    assert torch.equal(torch.from_numpy(noisy.degraded), sample.degraded)


def test_an_unknown_defence_mode_is_refused(prepared: Prepared) -> None:
    victim = make_host(prepared).victim(1, "surrogate-3")
    tape = Tape(seed=0, image_ids=("a",), stream="attack")
    with pytest.raises(SpecError, match="no gradient of mode 'surrogate-3'"):
        victim.differentiable(torch.zeros(1, 3, 16, 16), tape)
