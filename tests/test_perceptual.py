"""Perceptual distances against values that others' programs gave for the same images.

tests/data/stlpips.npz holds eight-bit image pairs and, computed once with the package
``stlpips-pytorch`` 0.0.2, their distances, the share of every layer (of the first by subtraction), probes of
its feature maps and an input gradient; and the LPIPS that ``torchmetrics`` gives with the weights of `official_files`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from udc_ray.errors import SpecError, WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.metrics.perceptual import SHIPPED, Official, PerceptualDistance, ShiftTolerant, get_perceptual, loaded
from udc_ray.metrics.trunks import WIDTHS
from udc_ray.probe import position_invariant
from udc_ray.spec import Entry

DATA = np.load(Path(__file__).parent / "data" / "stlpips.npz")
PAIRS = range(5)
CPU = torch.device("cpu")


def shipped(dtype: torch.dtype) -> PerceptualDistance:
    return loaded(ShiftTolerant(), CPU, dtype)


def image(name: str, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(DATA[name].astype(np.float64) / 255)[None].to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_distance_is_the_packages(pair: int, dtype: torch.dtype, tolerance: float) -> None:
    found = shipped(dtype)(image(f"x{pair}", dtype), image(f"y{pair}", dtype))
    assert found.dtype == dtype
    wanted = DATA["distance_float32" if dtype == torch.float32 else "distance_float64"][pair]
    assert found.tolist() == [pytest.approx(wanted, abs=tolerance)]


def test_every_feature_map_is_the_packages() -> None:
    distance, x = shipped(torch.float64), image("x1", torch.float64)
    standard = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float32)[:, None, None].double()) / (
        torch.tensor([0.458, 0.448, 0.450], dtype=torch.float32)[:, None, None].double()
    )
    maps = distance.trunk(standard)
    assert [list(m.shape) for m in maps] == [DATA[f"shape{k}"].tolist() for k in PAIRS]
    for k, found in enumerate(maps):
        wanted = DATA[f"map{k}"]
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found.flatten().numpy()[DATA[f"at{k}"]], wanted, rtol=0, atol=1e-12)


def test_every_layers_share_is_the_packages() -> None:
    """A head alone gives its layer's share of the distance."""
    x, y = image("x1", torch.float64), image("y1", torch.float64)
    distance = ShiftTolerant().load().double().requires_grad_(False)
    heads = [head.clone() for head in distance.heads]
    for k in PAIRS:
        for n, head in enumerate(distance.heads):
            head.copy_(heads[n] if n == k else torch.zeros_like(heads[n]))
        assert distance(x, y).item() == pytest.approx(DATA["layers1"][k], abs=1e-12)


def test_the_input_gradient_is_the_packages() -> None:
    x = image("x1", torch.float64).requires_grad_(True)
    gradient = torch.autograd.grad(shipped(torch.float64)(x, image("y1", torch.float64)).sum(), x)[0]
    np.testing.assert_allclose(gradient[0].numpy(), DATA["gradient1"], rtol=1e-5, atol=1e-9)


def test_places_without_any_feature_have_finite_gradients() -> None:
    """Where every channel is 0 the length of the feature vector has no derivative."""
    distance = ShiftTolerant().load().requires_grad_(False)
    distance.trunk.conv5.weight.zero_()
    distance.trunk.conv5.bias.fill_(-1)
    x = image("x0", torch.float32).requires_grad_(True)
    value = distance(x, image("y0", torch.float32))
    gradient = torch.autograd.grad(value.sum(), x)[0]
    assert 0 < value.item() < DATA["distance_float32"][0]
    assert bool(torch.isfinite(gradient).all()) and gradient.abs().max() > 0


@given(seed=st.integers(0, 1000), height=st.integers(21, 40), width=st.integers(21, 40))
@settings(max_examples=10, deadline=None)
def test_it_is_a_distance(seed: int, height: int, width: int) -> None:
    x, y = torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    distance = shipped(torch.float32)
    assert distance(x, x).item() == 0
    assert distance(x, y).item() > 0
    assert distance(x, y).item() == pytest.approx(distance(y, x).item(), rel=1e-5)


def test_images_of_a_batch_do_not_mix() -> None:
    x, y = torch.rand(2, 3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    distance = shipped(torch.float32)
    both = distance(x, y)
    for b in range(3):
        assert both[b].item() == pytest.approx(distance(x[b : b + 1], y[b : b + 1]).item(), rel=1e-5)


@pytest.mark.parametrize("slots", [3, 4])
def test_the_place_in_a_batch_does_not_change_a_bit(slots: int) -> None:
    distance = shipped(torch.float32)
    y = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)).expand(slots, -1, -1, -1)
    assert position_invariant(lambda x: distance(x, y)[:, None], (3, 48, 48), slots)


def test_what_is_remembered_has_the_bits_of_a_fresh_computation() -> None:
    first, second, x = torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = ShiftTolerant().load().requires_grad_(False)
    values = [kept(x, y) for y in (first, second, first, second)]
    fresh = [ShiftTolerant().load()(x, y).detach() for y in (first, second)]
    assert all(a.equal(b) for a, b in zip(values, fresh * 2, strict=True))
    first += 0.5  # the same tensor with other values is another reference
    assert kept(x, first).equal(ShiftTolerant().load()(x, first).detach())
    assert not kept(x, first).equal(values[0])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    distance = ShiftTolerant().load().requires_grad_(False)
    distance.trunk.register_forward_hook(lambda *_: calls.append(1))
    references = torch.rand(3, 1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    size = sum(m.nbytes for m in distance.features(references[0]))
    monkeypatch.setattr("udc_ray.metrics.perceptual._KEPT_BYTES", 2 * size)

    def trunk_calls(n: int) -> int:
        before = len(calls)
        distance(references[0], references[n])
        return len(calls) - before

    assert [trunk_calls(n) for n in (0, 0, 1, 0, 1, 2, 2, 0)] == [2, 1, 2, 1, 1, 2, 1, 2]


def test_the_shipped_weights_are_those_of_their_card() -> None:
    card: dict[str, Any] = json.loads((SHIPPED.parent / "card.json").read_text())
    assert card["sha256"] == file_sha256(SHIPPED)
    assert ShiftTolerant().weight_hashes() == {"stlpips": card["sha256"]}
    assert sum(p.numel() for p in ShiftTolerant().load().parameters()) == card["parameters"]
    assert "Abhijay Ghildyal, Feng Liu" in (SHIPPED.parent / "LICENSE").read_text()


def official_files(folder: Path) -> dict[str, str]:
    """A torchvision AlexNet and heads with seeded values, as the fixture's were."""
    shapes = {"0": (64, 3, 11, 11), "3": (192, 64, 5, 5), "6": (384, 192, 3, 3)}
    shapes |= {"8": (256, 384, 3, 3), "10": (256, 256, 3, 3)}
    keys = sorted(f"{number}.{part}" for number in shapes for part in ("weight", "bias"))
    state = {"classifier.1.weight": torch.zeros(4, 4)}
    for seed, key in enumerate(keys):
        number, part = key.split(".")
        shape = shapes[number] if part == "weight" else shapes[number][:1]
        fan = int(np.prod(shape[1:])) if part == "weight" else 25
        values = np.random.default_rng(seed).normal(0, (2 / fan) ** 0.5, shape)
        state[f"features.{key}"] = torch.from_numpy(values.astype(np.float32))
    rng = np.random.default_rng(100)
    heads = {
        f"lin{k}.model.1.weight": torch.from_numpy(np.abs(rng.normal(0, 0.1, (1, width, 1, 1))).astype(np.float32))
        for k, width in enumerate(WIDTHS)
    }
    torch.save(state, folder / "alexnet.pth")
    torch.save(heads, folder / "alex.pth")
    return {"backbone": str(folder / "alexnet.pth"), "heads": str(folder / "alex.pth")}


def test_official_lpips_with_the_users_weights_is_torchmetrics(tmp_path: Path) -> None:
    files = official_files(tmp_path)
    official = get_perceptual(Entry(name="lpips-alex", params=files))
    assert official is not None
    for dtype, column, tolerance in ((torch.float32, "lpips_float32", 1e-6), (torch.float64, "lpips_float64", 1e-10)):
        distance = loaded(official, CPU, dtype)
        found = [distance(image(f"x{k}", dtype), image(f"y{k}", dtype)).item() for k in DATA["lpips_pairs"]]
        np.testing.assert_allclose(found, DATA[column], rtol=0, atol=tolerance)
    assert official.weight_hashes() == {name: file_sha256(Path(file)) for name, file in files.items()}


def test_wrong_files_for_official_lpips_are_refused(tmp_path: Path) -> None:
    files = official_files(tmp_path)
    exchanged = Official(backbone=files["heads"], heads=files["backbone"])
    with pytest.raises(WeightsError, match=r"features.0.weight is missing.*lin0"):
        exchanged.load()
    narrow = {f"lin{k}.model.1.weight": torch.ones(1, 8, 1, 1) for k in range(5)}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(WeightsError, match="another network"):
        Official(backbone=files["backbone"], heads=str(tmp_path / "narrow.safetensors")).load()
    with pytest.raises(WeightsError, match="no weights file"):
        Official(backbone=str(tmp_path / "none.pth"), heads=files["heads"]).load()


def test_names() -> None:
    assert get_perceptual(Entry(name="stlpips")) == ShiftTolerant()
    assert get_perceptual(Entry(name="none")) is None
    with pytest.raises(SpecError, match="did you mean stlpips"):
        get_perceptual(Entry(name="stlpip"))
    with pytest.raises(SpecError, match="heads"):
        get_perceptual(Entry(name="lpips-alex", params={"backbone": "alexnet.pth"}))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((3, 21, 21), None), ((3, 20, 64), "21 x 21"), ((4, 64, 64), "4 channels")],
)
def test_it_says_which_images_it_cannot_judge(shape: tuple[int, int, int], reason: str | None) -> None:
    found = ShiftTolerant().why_not(*shape)
    assert (found is None) if reason is None else (found is not None and reason in found)
    if shape[0] == 3 and reason is not None:
        with pytest.raises(RuntimeError):
            shipped(torch.float32)(torch.zeros(1, *shape), torch.ones(1, *shape))
    if reason is None:
        assert shipped(torch.float32)(torch.zeros(1, *shape), torch.ones(1, *shape)).item() > 0


def test_official_lpips_takes_images_from_31_pixels(tmp_path: Path) -> None:
    official = Official(**official_files(tmp_path))
    distance = official.load().requires_grad_(False)
    assert official.why_not(3, 31, 31) is None and official.why_not(3, 30, 64) is not None
    assert distance(torch.zeros(1, 3, 31, 31), torch.ones(1, 3, 31, 31)).item() > 0
    with pytest.raises(RuntimeError):
        distance(torch.zeros(1, 3, 30, 64), torch.ones(1, 3, 30, 64))
