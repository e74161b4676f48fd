"""The published networks as their users meet them: built by name, run, recognised, loaded, adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_fixture import NAMES, fill, fixture
from safetensors.torch import save_file

from udc_ray.errors import DataError, SpecError, WeightsError
from udc_ray.models import build, load, run_published
from udc_ray.models.adapter import load_published
from udc_ray.models.loading import load_restorer
from udc_ray.models.padding import SizeRule
from udc_ray.models.published import PUBLISHED
from udc_ray.models.ranges import RANGES
from udc_ray.models.recognise import plain_keys, recognise
from udc_ray.models.tiling import tiled
from udc_ray.models.zoo import MODELS
from udc_ray.spec import Entry

QUICK = [name for name in NAMES if name not in {"uformer_b", "swinir_color_dn", "restormer_denoise", "dagf"}]


def filled(name: str) -> Any:
    network = build(name)
    fill(network, fixture(name)[0])
    return network


def image(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_run_published_maps_pads_and_selects(name: str) -> None:
    """Fed the image before its mapping, in double precision."""
    info, data = fixture(name)
    network = filled(name).double()
    with torch.no_grad():
        found = run_published(name, network, data["input"].double())
    largest = float(data["output_f64"].abs().max())
    np.testing.assert_allclose(found.numpy(), data["output_f64"].numpy(), rtol=0, atol=1e-5 * largest)
    assert sum(p.numel() for p in network.parameters()) == info["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recognised_by_its_keys(name: str) -> None:
    with torch.device("meta"):
        state = build(name).state_dict()
    found = recognise(state)
    assert found is not None and (found.name, found.options) == (name, {})
    renamed = {
        key.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }
    assert list(plain_keys(renamed)) == list(state)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uformer_t", {"width": 8, "channels": 4}),
        ("swinir_color_dn", {"image_size": 64, "depths": (2, 2), "heads": (2, 3), "width": 12}),
        ("restormer_denoise", {"norm_bias": True, "blocks": (1, 1, 1, 2)}),
        ("nafnet_sidd_w32", {"width": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 2), "middle_blocks": 3}),
        ("discnet", {"width": 16}),
        ("udcunet", {"blocks": 1, "bottom_blocks": 3}),
        ("srudc_l", {"width": 8}),
        ("ecfnet", {"blocks": 2}),
        ("bnudc", {"blocks": 2}),
    ],
)
def test_sizes_are_read_from_shapes(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        made = build(name, **options)
    found = recognise(made.state_dict())
    assert found is not None
    with torch.device("meta"):
        again = build(found.name, **found.options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in made.state_dict().items()}


@pytest.mark.parametrize("name", QUICK)
def test_a_checkpoint_becomes_a_restorer(name: str, tmp_path: Path) -> None:
    network = filled(name)
    path = tmp_path / "net.pth"
    wrapper = (
        {"params": {}, "params_ema": network.state_dict()}
        if name == "udcunet"
        else {"state_dict": network.state_dict()}
    )
    wrapper = {k: {f"module.{key}": v for key, v in state.items()} for k, state in wrapper.items() if state}
    torch.save(wrapper, path)
    restorer = load(name, weights=path)
    side = 48 if name != "uformer_t" else 128
    x = image(side, side).float()
    with torch.no_grad():
        expected = RANGES[PUBLISHED[name].range].leave(run_published(name, network, x))
        torch.testing.assert_close(restorer(x), expected, rtol=1e-5, atol=1e-5)
        assert restorer(x[..., :45, :37]).shape == (1, 3, 45, 37)
    assert restorer.descriptor.name == name and restorer.descriptor.sha256 is not None
    by_file = load_restorer(Entry(name=str(path)))
    with torch.no_grad():
        torch.testing.assert_close(by_file(x), restorer(x), rtol=1e-5, atol=1e-4)  # NAFNets go channels last


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(build("bnudc").state_dict(), path)
    with pytest.raises(WeightsError, match=r"no weights of DISCNet: conv_11.0.weight is missing") as raised:
        load_published(path, "discnet")
    assert "look like those of BNUDC" in str(raised.value) and "--model bnudc" in str(raised.value)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="no network known here"):
        load_published(path, "discnet")
    with pytest.raises(WeightsError, match="first key is a"):
        load_restorer(Entry(name=str(path)))
    state = {k: v for k, v in build("srudc_l").state_dict().items() if k != "outconv.proj.0.bias"}
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"outconv.proj.0.bias is missing"):
        load_restorer(Entry(name=str(path)))


def test_without_weights_the_source_is_told() -> None:
    assert set(PUBLISHED) <= set(MODELS)
    with pytest.raises(WeightsError, match="jnjaby/DISCNet"):
        load_restorer(Entry(name="discnet"))
    with pytest.raises(SpecError, match="did you mean discnet"):
        build("disknet")
    with pytest.raises(SpecError, match="cannot be built"):
        build("discnet", wide=3)


@pytest.mark.parametrize(
    ("kind", "size", "padded"),
    [("reflect", (13, 16), (16, 16)), ("mirror", (13, 9), (16, 16)), ("square", (200, 90), (256, 256))],
)
def test_padding_is_undone_and_gets_no_gradient(kind: str, size: tuple[int, int], padded: tuple[int, int]) -> None:
    rule = SizeRule(multiple=128 if kind == "square" else 8, published=kind)
    x = image(*size).requires_grad_()
    fitted, crop = rule.fit(x)
    assert fitted.shape[-2:] == padded
    assert torch.equal(crop(fitted), x)
    mode = {"reflect": "reflect", "mirror": "symmetric"}.get(kind)
    if mode is not None:
        around = [(0, 0), (0, 0), (0, padded[0] - size[0]), (0, padded[1] - size[1])]
        np.testing.assert_array_equal(fitted.detach().numpy(), np.pad(x.detach().numpy(), around, mode=mode))
    crop(fitted).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_sizes_without_a_published_padding() -> None:
    rule = SizeRule(multiple=8, published="none")
    assert rule.fit(image(16, 8))[0].shape[-2:] == (16, 8)
    with pytest.raises(DataError, match="multiples of 8, not 9x16"):
        rule.fit(image(16, 9))
    assert rule.fit(image(16, 9), otherwise="reflect")[0].shape[-2:] == (16, 16)
    with pytest.raises(DataError, match="too small"):
        SizeRule(multiple=16, published="reflect").fit(image(5, 5))


@pytest.mark.parametrize("name", RANGES)
def test_ranges_there_and_back(name: str) -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64, requires_grad=True)
    there = RANGES[name].enter(x)
    back = RANGES[name].leave(there)
    inside = x < 500 / 500.25 if name == "linear" else x <= 1
    torch.testing.assert_close(back[inside], x[inside], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(there.sum(), x)
    assert bool(torch.isfinite(gradient).all()) and bool((there <= 500).all())


def test_the_tone_map_goes_on_below_zero() -> None:
    y = torch.tensor([-1.0, -0.25, -1e-9, 0.0, 0.25], dtype=torch.float64)
    np.testing.assert_allclose(RANGES["linear"].leave(y).numpy(), [-4.0, -1.0, -4e-9, 0.0, 0.5])


def test_tiles_give_the_whole_where_surroundings_suffice() -> None:
    kernel = torch.rand(3, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, kernel, padding=3)

    x = image(50, 83, 2).requires_grad_()
    found, whole = tiled(blur, x, 32, 12), blur(x)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, whole)), rtol=0, atol=1e-9
    )
    assert tiled(blur, x, 90, 12).shape == x.shape
    with pytest.raises(SpecError, match="cannot overlap"):
        tiled(blur, x, 32, 32)


def test_networks_with_global_statistics_are_not_tiled(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(build("srudc_l").state_dict(), path)
    with pytest.raises(SpecError, match="depends on the whole image"):
        load_restorer(Entry(name="srudc_l", params={"weights": str(path), "tile": 64}))


def test_another_psf_code_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(filled("discnet").state_dict(), path)
    code = [0.01, -0.02, 0.0, 0.03, 0.001]
    usual, other = load("discnet", weights=path), load("discnet", weights=path, code=code)
    x = image(16, 16).float()
    network = filled("discnet")
    with torch.no_grad():
        expected = network(x, torch.tensor(code).reshape(1, 5, 1, 1))
        torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(usual(x), expected)
    with pytest.raises(SpecError, match="a PSF code of 5 numbers"):
        load("discnet", weights=path, code=[1.0])
    save_file(build("srudc_l").state_dict(), path)
    with pytest.raises(SpecError, match="takes no PSF code"):
        load("srudc_l", weights=path, code=code)
