"""The choice of levels before a run: the planted level wins, is frozen, and is met by every attack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_doubles import Notes, StoppedPool, make_host, run_all, small_run, stable
from selection_doubles import ENTRY, Planted, anls, clean_folder, leveled_run
from torch import Tensor

from udc_ray.attacks.base import AttackResult, GradientTarget, Problem
from udc_ray.attacks.pgd import FGSM
from udc_ray.data.base import Sample
from udc_ray.data.images import read_image
from udc_ray.errors import Interrupted, SpecError, UserError, WeightsError
from udc_ray.features import features_of, find_layer
from udc_ray.in_process import InProcessPool
from udc_ray.metrics.frechet import kid
from udc_ray.prepare import Prepared
from udc_ray.probe import Resolved
from udc_ray.purifiers.selectors import Fixed
from udc_ray.run import Settings, execute
from udc_ray.rundir import RunDirectory
from udc_ray.selection import pending, select_levels
from udc_ray.tape import Tape
from udc_ray.trials import squares, trial_samples


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_folder(tmp_path_factory.mktemp("selection") / "clean")


@pytest.fixture(scope="module")
def prepared(clean: Path) -> Prepared:
    return leveled_run(clean, "run.save=none", trials=10)  # leaves slots of the last micro-batch empty


@pytest.fixture(scope="module")
def resolved(prepared: Prepared) -> Resolved:
    return select_levels(make_host(prepared), prepared.setup.resolved)


@pytest.mark.parametrize(("metric", "best"), [("kid", 30), ("kid", 60), ("fid", 10)])
def test_the_planted_level_is_chosen(clean: Path, metric: str, best: int) -> None:
    prepared = leveled_run(clean, best=best, metric=metric, exposed=0)
    found = select_levels(make_host(prepared), prepared.setup.resolved)
    (choice,) = found.selections
    assert choice["candidates"][choice["chosen"]]["t"] == best == found.levels["0"]
    assert choice["agreement"] > 0.9
    blind = [candidate["blind"] for candidate in choice["candidates"]]
    assert int(np.argmax(blind)) == choice["chosen"] and choice["worst"] == int(np.argmin(blind))
    assert all(candidate["adaptive"] is None for candidate in choice["candidates"])


def attacked(prepared: Prepared, samples: Sequence[Sample]) -> Tensor:
    """The trial images under FGSM on the network alone, without anything of ours but the objective."""
    x = torch.stack([sample.degraded for sample in samples]).requires_grad_()
    truth = torch.stack([sample.truth for sample in samples if sample.truth is not None])
    loss = (prepared.restorer(x) - truth).square().mean()
    (gradient,) = torch.autograd.grad(loss, x)
    return (x + 8 / 255 * gradient.sign()).clamp(0, 1).detach()


def test_the_table_says_what_it_says(prepared: Prepared, resolved: Resolved, clean: Path) -> None:
    """Distances and qualities, done again with plain calls; in one batch, so to rounding."""
    spec, model = prepared.setup.spec, prepared.restorer
    samples = trial_samples(spec, prepared.setup.dataset, 10, 32)
    x, layer = attacked(prepared, samples), find_layer(model)
    pieces = [square for path in sorted(clean.iterdir()) for square in squares(read_image(path).image, 32)]
    side = features_of(model, layer, pieces, 4)
    tape = Tape(seed=spec.seed, image_ids=tuple(s.image_id for s in samples), stream="select")
    (choice,) = resolved.selections
    assert (choice["clean"], choice["trials"], choice["layer"], choice["width"]) == (48, 10, "first", 6)
    assert resolved.layers == {"0": "first"}
    for name, images in (("untouched", [s.degraded for s in samples]), ("attacked", list(x))):
        assert choice[name]["distance"] == pytest.approx(kid(side, features_of(model, layer, images, 4)), rel=1e-4)
    assert choice["untouched"]["quality"] > choice["attacked"]["quality"]
    for row in choice["candidates"]:
        purified, _ = Planted(t=row["t"]).purify(x, tape, None)
        assert row["distance"] == pytest.approx(kid(side, features_of(model, layer, list(purified), 4)), rel=1e-4)
        with torch.no_grad():
            errors = [(o.clamp(0, 1) - s.truth).square().mean() for o, s in zip(model(purified), samples, strict=True)]
        assert row["blind"] == pytest.approx(float(np.mean([-10 * np.log10(float(e)) for e in errors])), rel=1e-4)
        assert row["ci_low"] < row["distance"] < row["ci_high"]


def test_a_few_images_are_attacked_through_the_purifier_at_every_level(resolved: Resolved) -> None:
    (choice,) = resolved.selections
    adaptive = [candidate["adaptive"] for candidate in choice["candidates"]]
    assert (choice["exposed"], choice["grad_mode"]) == (2, "bpda")
    assert choice["worst"] == int(np.argmin(adaptive))
    assert "worst candidate t = " in resolved.notes[-1] and "level t = 30 (sigma" in resolved.notes[-1]
    # at its best level the planted purifier gives the attacked images back, no nearer
    assert choice["candidates"][1]["distance"] == choice["attacked"]["distance"]
    assert "no level brings purified images nearer to clean ones" in resolved.notes[-1]


def test_any_host_chooses_alike(prepared: Prepared, resolved: Resolved) -> None:
    again = select_levels(make_host(prepared), prepared.setup.resolved)
    assert again == resolved
    assert make_host(prepared).resolve(prepared.shapes).selections == resolved.selections


def test_defences_that_ask_for_the_same_trials_share_the_attack(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"name": ENTRY, "best": b, "selector": anls(clean, exposed=0)} for b in (10, 60)]
    prepared = small_run(f"defenses={entries}")
    batches = []

    def perturb(self: FGSM, target: GradientTarget, problem: Problem) -> AttackResult:
        batches.append(problem.tape.image_ids)
        return original(self, target, problem)

    original = FGSM.perturb
    monkeypatch.setattr(FGSM, "perturb", perturb)
    found = select_levels(make_host(prepared), prepared.setup.resolved)
    assert found.levels == {"0": 10, "1": 60}
    assert len(batches) == 3  # 12 trial images in micro-batches of 4


def test_the_frozen_defence_is_the_one_of_that_level(prepared: Prepared, resolved: Resolved) -> None:
    """A run with the chosen level gives the numbers of a run that was given it."""
    fixed = small_run(f"defenses=[{{name: {ENTRY}, t: 30, grad_mode: [blind, bpda]}}]")
    host = make_host(prepared)
    host.configure(resolved)
    assert host.victim(0).purifier == Planted(t=30, selector=Fixed())
    names = {"run_fingerprint", "cell", "label", "defense"}
    ours, theirs = (
        sorted(
            [{k: v for k, v in row.items() if k not in names} for row in stable(records)],
            key=lambda row: (row["grad_mode"], row["image_id"]),
        )
        for records in (run_all(host, prepared), run_all(make_host(fixed), fixed))
    )
    assert [r for r in ours if r["grad_mode"] == "bpda"] and ours == theirs


def test_a_level_that_was_not_chosen_is_no_level(prepared: Prepared) -> None:
    with pytest.raises(AssertionError, match="SpecError: the noise level of 'planted' is not chosen yet"):
        run_all(make_host(prepared), prepared)


class Frozen(StoppedPool):
    """A pool whose hosts cannot choose."""

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        raise AssertionError("the level was to be chosen once")


def test_the_level_is_written_and_every_resume_uses_it(prepared: Prepared, resolved: Resolved, tmp_path: Path) -> None:
    out, notes = str(tmp_path / "run"), Notes()
    pools: list[StoppedPool] = []

    def stopped(setup: Any) -> StoppedPool:
        pools.append(StoppedPool(make_host(replace(prepared, setup=setup)), stop_after=1))
        return pools[-1]

    with pytest.raises(Interrupted):
        execute(prepared, stopped, notes, Settings(out=out))
    header = RunDirectory.read(out).header
    assert header.resolved is not None and header.resolved["levels"] == {"0": 30}
    assert header.resolved["layers"] == {"0": "first"} and "selections" not in header.resolved
    assert header.fingerprint == prepared.setup.fingerprint
    table = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert table == json.loads(json.dumps(resolved.selections))
    assert "choosing noise levels on trial images" in notes.notes

    def frozen(setup: Any) -> Frozen:
        return Frozen(make_host(replace(prepared, setup=setup)))

    finished = execute(prepared, frozen, Notes(), Settings(out=out))
    assert finished.complete and not finished.failed
    whole = execute(prepared, lambda _: InProcessPool(make_host(prepared)), Notes(), Settings(out=f"{out}2"))
    ours, theirs = (
        [(row["label"], row["mean"]) for row in done.summary.to_json()["rows"] if row["metric"] == "psnr_adv"]
        for done in (finished, whole)
    )
    assert len(ours) == 3 and ours == theirs


def test_a_run_that_is_taken_back_leaves_nothing(prepared: Prepared, tmp_path: Path) -> None:
    class Failing(InProcessPool):
        def configure(self, resolved: Resolved) -> None:
            raise SpecError("no host can hold it")

    with pytest.raises(SpecError, match="no host"):
        execute(prepared, lambda _: Failing(make_host(prepared)), Notes(), Settings(out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_the_fingerprint_holds_what_is_asked_and_not_what_was_chosen(clean: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(clean, moved)
    asked = leveled_run(clean)
    assert leveled_run(moved).setup.fingerprint == asked.setup.fingerprint
    assert [c.id for c in leveled_run(moved).setup.plan.cells] == [c.id for c in asked.setup.plan.cells]
    fewer = leveled_run(clean, trials=11)
    assert fewer.setup.fingerprint != asked.setup.fingerprint
    next(moved.iterdir()).unlink()
    assert leveled_run(moved).setup.fingerprint != asked.setup.fingerprint
    assert not pending(small_run(defenses=("none", "jpeg")).setup.plan)


@pytest.mark.parametrize(
    ("params", "sets", "said"),
    [
        ({"trials": 5000}, (), "5000 are wanted"),
        ({"edge": 256}, ("data.size=null", "limit=null"), "there are 0 trial images"),
        ({"metric": "fid", "trials": 11}, (), "metric fid needs 12 trial images for 6 features; there are 11"),
        ({"layer": "middle"}, (), "has no layer 'middle'"),
        ({"clean": "MISSING"}, (), "there is no data"),
        ({"clean": None}, (), "clean features of the model Conv are not known"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_the_run(
    clean: Path, params: dict[str, Any], sets: tuple[str, ...], said: str
) -> None:
    selector = {key: value for key, value in (anls(clean) | params).items() if value is not None}
    with pytest.raises(UserError, match=said):
        small_run(f"defenses=[{json.dumps({'name': ENTRY, 'selector': selector})}]", *sets)


def test_features_of_another_width_are_refused_before_the_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", features=np.ones((40, 7)))
    with pytest.raises(WeightsError, match="7 values an image, not 6"):
        leveled_run(tmp_path / "wide.npz")


def test_a_file_of_features_is_as_good_as_the_images(clean: Path, prepared: Prepared, tmp_path: Path) -> None:
    pieces = [square for path in sorted(clean.iterdir()) for square in squares(read_image(path).image, 32)]
    model = prepared.restorer
    np.savez(tmp_path / "mine.npz", features=features_of(model, find_layer(model), pieces, 4))
    by_file, by_folder = (
        select_levels(make_host(run), run.setup.resolved).selections[0]
        for run in (leveled_run(tmp_path / "mine.npz", exposed=0), leveled_run(clean, exposed=0))
    )
    assert by_file["candidates"] == by_folder["candidates"]
