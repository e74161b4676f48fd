"""The purifiers without a network, against Pillow, SciPy and the definition of the noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from udc_ray import rng
from udc_ray.errors import DataError, SpecError
from udc_ray.purifiers.simple import GaussianNoise, Identity, Jpeg, Median
from udc_ray.tape import Tape


def tape(count: int = 2) -> Tape:
    return Tape(seed=3, image_ids=tuple(f"image {b}" for b in range(count)), stream="eval")


def images(count: int = 2, height: int = 18, width: int = 21) -> Tensor:
    """Smooth colours with some noise: what the chroma planes of JPEG do shows."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def through_a_file(x_BCHW: Tensor, path: Path, **options: object) -> np.ndarray:
    """Every image written to disk by Pillow and read back, B x H x W x C in [0, 1]."""
    found = []
    for image in x_BCHW.numpy():
        Image.fromarray(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)).save(path, **options)
        with Image.open(path) as read:
            found.append(np.asarray(read) / 255)
    return np.stack(found)


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_jpeg_is_that_of_pillow(tmp_path: Path, quality: int) -> None:
    """Pillow's own default of the colour planes is 4:2:0, as is ours."""
    x = images()
    ours, _ = Jpeg(quality=quality).purify(x, tape(), None)
    theirs = through_a_file(x, tmp_path / "image.jpg", quality=quality)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), theirs, atol=1e-7)


@pytest.mark.parametrize("ours, theirs", [("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)])
def test_jpeg_subsampling_is_that_of_pillow(tmp_path: Path, ours: str, theirs: int) -> None:
    x = images()
    purified, _ = Jpeg(subsampling=ours).purify(x, tape(), None)  # type: ignore[arg-type]  # drawn
    expected = through_a_file(x, tmp_path / "image.jpg", quality=75, subsampling=theirs)
    np.testing.assert_allclose(purified.permute(0, 2, 3, 1).numpy(), expected, atol=1e-7)


def test_jpeg_keeps_more_at_a_higher_quality_and_with_full_colour() -> None:
    x = images()

    def loss(purifier: Jpeg) -> float:
        return (purifier.purify(x, tape(), None)[0] - x).square().mean().item()

    assert loss(Jpeg(quality=95)) < loss(Jpeg(quality=75)) < loss(Jpeg(quality=10))
    assert loss(Jpeg(subsampling="4:4:4")) < loss(Jpeg(subsampling="4:2:0"))


def test_jpeg_rounds_to_eight_bits_first() -> None:
    exact = (images() * 255).round().clamp(1, 254) / 255
    for shift in (-0.4 / 255, 0.4 / 255):
        assert torch.equal(Jpeg().purify(exact + shift, tape(), None)[0], Jpeg().purify(exact, tape(), None)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_jpeg_is_for_rgb(channels: int) -> None:
    with pytest.raises(DataError, match=f"{channels} channels"):
        Jpeg().purify(torch.rand(1, channels, 8, 8), tape(1), None)


@given(size=st.sampled_from([1, 3, 5, 7]), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_median_is_that_of_scipy(size: int, height: int, width: int, seed: int) -> None:
    """Windows wider than the image included; SciPy's default at the edges is "reflect"."""
    x = torch.rand(2, 4, height, width, generator=torch.Generator().manual_seed(seed))
    ours, _ = Median(size=size).purify(x, tape(), None)
    np.testing.assert_array_equal(ours.numpy(), ndimage.median_filter(x.numpy(), size=(1, 1, size, size)))


def test_gaussian_noise_is_the_keyed_noise_of_its_level() -> None:
    x = torch.full((2, 3, 64, 64), 0.5)
    purifier = GaussianNoise(sigma=10)
    noisy, _ = purifier.purify(x, tape(), None)
    noise = (noisy - x) * 255 / 10
    for b, row in enumerate(noise):
        assert stats.kstest(row.flatten().numpy(), "norm").pvalue > 1e-3
        keyed = rng.generator(3, f"image {b}", f"eval/{purifier.identity()}")
        expected = keyed.standard_normal((3, 64, 64), dtype=np.float32)
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-5)
    assert abs(np.corrcoef(noise.flatten(1).numpy())[0, 1]) < 0.04


def test_gaussian_noise_is_clipped() -> None:
    for level in (0.0, 1.0):
        noisy, _ = GaussianNoise(sigma=50).purify(torch.full((1, 3, 16, 16), level), tape(1), None)
        assert noisy.min() >= 0 and noisy.max() <= 1 and 0.4 < (noisy == level).float().mean() < 0.6


def test_identity_returns_the_image() -> None:
    x = images()
    assert torch.equal(Identity().purify(x, tape(), None)[0], x)


@pytest.mark.parametrize(
    "purifier, params",
    [
        (Jpeg, {"quality": 0}),
        (Jpeg, {"quality": 101}),
        (Jpeg, {"subsampling": "4:1:1"}),
        (Jpeg, {"qualty": 50}),
        (Jpeg, {"samples": 0}),
        (Median, {"size": 4}),
        (Median, {"size": -1}),
        (GaussianNoise, {"sigma": 0}),
        (GaussianNoise, {"sigma": 256}),
    ],
)
def test_senseless_parameters_are_refused(purifier: type, params: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=next(iter(params))):
        purifier.build("defence", params)
