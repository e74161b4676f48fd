"""What the shipped networks are worth, on photographs that they never saw.

Restorer: Kodak24, centre 256 x 256, behind each display; gain over the degraded input after its
best per-channel gain, and over a Wiener filter that knows the true PSF and whose regularisation
is tuned on the tune split. Prior: one-step denoising at sigma 25/255 against the best of
scikit-image's non-local means, wavelet and total-variation denoisers, tuned on the tune split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import restoration
from torch import Tensor

from udc_ray import rng
from udc_ray.data import domains, simulate
from udc_ray.errors import DataError
from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.diffusion import DDIM
from udc_ray.spec import Entry
from udc_ray.training import crops

SIZE = 256
SIGMA = 25
WIENER_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
Pair = tuple[Tensor, Tensor]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for the three displays, their mean, and the prior."""
    if arguments.data is None:
        raise DataError("quality needs --data", "the photographs are not in the package", "give their folder")
    torch.set_num_threads(2)
    kodak = crops.read_part([arguments.data / "photos" / "kodak24"], "test")
    tune = crops.read_part([arguments.data / "photos" / "cid22_train"], "tune")
    rows = [_restorer_row(display, kodak, tune) for display in simulate.load_displays().values()]
    return [*rows, _mean_row(rows), _prior_row(kodak, tune)]


def centre(image: Tensor, size: int = SIZE) -> Tensor:
    """The middle of an image."""
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def psnr(output: Tensor, truth: Tensor) -> float:
    """PSNR in dB of the clamped output, range 1."""
    return float(-10 * (output.clamp(0, 1).double() - truth.double()).square().mean().log10())


def best_gain(degraded: Tensor, truth: Tensor) -> Tensor:
    """The degraded image after the least-squares gain of each channel."""
    gain = (degraded * truth).sum((1, 2)) / degraded.square().sum((1, 2))
    return degraded * gain[:, None, None]


def pairs(display: simulate.Display, photographs: Sequence[crops.Photograph]) -> list[Pair]:
    """Degraded and true images, centre 256 x 256, simulated on the whole photograph."""
    found = []
    for photo in photographs:
        linear = simulate.to_linear(photo.image, display, hdr=False)
        noise = rng.generator(0, photo.name, f"simulate/{display.name}")
        degraded = simulate.degrade(linear, display, noise, hdr=False)
        found.append((centre(degraded), centre(photo.image)))
    return found


def wiener(degraded: Tensor, display: simulate.Display, ratio: float) -> Tensor:
    """Wiener filter with the true PSF in the domain where the PSF acts, natural-image prior 1/f^2."""
    linear = display.domain == "srgb"
    y = domains.srgb_to_linear(degraded) if linear else degraded
    pad = 48
    padded = torch.nn.functional.pad(y[None].double(), (pad,) * 4, mode="replicate")[0]
    height, width = padded.shape[1:]
    kernel = display.kernel().double()
    otf = torch.zeros(3, height, width, dtype=torch.float64)
    otf[:, : kernel.shape[1], : kernel.shape[2]] = kernel
    transfer = torch.fft.fft2(otf.roll((-(kernel.shape[1] // 2), -(kernel.shape[2] // 2)), dims=(1, 2)))
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
    weight = ratio * (fy**2 + fx**2 + 1e-5)
    inverse = transfer.conj() / (transfer.abs() ** 2 + weight)
    result = torch.fft.ifft2(inverse * torch.fft.fft2(padded)).real[:, pad:-pad, pad:-pad].float().clamp(0, 1)
    return domains.linear_to_srgb(result) if linear else result


def _restorer_row(
    display: simulate.Display, kodak: Sequence[crops.Photograph], tune: Sequence[crops.Photograph]
) -> dict[str, Any]:
    restorer = load_restorer(Entry(name="default"))
    tuned = _tune(WIENER_GRID, lambda r: [psnr(wiener(d, display, r), t) for d, t in pairs(display, tune)])
    test = pairs(display, kodak)
    with torch.no_grad():
        restored = [psnr(restorer(d[None])[0], t) for d, t in test]
    degraded = [psnr(best_gain(d, t), t) for d, t in test]
    filtered = [psnr(wiener(d, display, tuned), t) for d, t in test]
    return {
        "name": display.name,
        "degraded_db": _mean(degraded),
        "wiener_db": _mean(filtered),
        "restored_db": _mean(restored),
        "gain_db": _mean([r - d for r, d in zip(restored, degraded, strict=True)]),
        "over_wiener_db": _mean([r - w for r, w in zip(restored, filtered, strict=True)]),
        "least_gain_db": round(min(r - d for r, d in zip(restored, degraded, strict=True)), 2),
        "wiener_ratio": tuned,
        "images": len(test),
    }


def _mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("degraded_db", "wiener_db", "restored_db", "gain_db", "over_wiener_db")
    return {"name": "mean of displays", **{k: _mean([r[k] for r in rows]) for k in keys}}


def _prior_row(kodak: Sequence[crops.Photograph], tune: Sequence[crops.Photograph]) -> dict[str, Any]:
    noisy_tune, noisy_test = _noisy(tune), _noisy(kodak)
    classical = {}
    for name, (denoise, grid) in CLASSICAL.items():
        best = _tune(grid, lambda s, f=denoise: [psnr(f(n, s), t) for n, t in noisy_tune])  # type: ignore[misc]  # lambda
        classical[f"{name}_db"] = _mean([psnr(denoise(n, best), t) for n, t in noisy_test])
    prior = _mean([psnr(_one_step(n), t) for n, t in noisy_test])
    return {
        "name": f"prior, one step at sigma {SIGMA}",
        **classical,
        "prior_db": prior,
        "over_best_db": round(prior - max(classical.values()), 2),
        "images": len(noisy_test),
    }


def _noisy(photographs: Sequence[crops.Photograph]) -> list[Pair]:
    found = []
    for photo in photographs:
        truth = centre(photo.image)
        noise = rng.normal(rng.generator(0, photo.name, "quality"), *truth.shape)
        found.append((truth + noise * SIGMA / 255, truth))
    return found


def _one_step(noisy: Tensor) -> Tensor:
    """x0 estimate of the shipped prior from a noisy image, noise not clipped."""
    denoiser = DDIM.build("defence", {}).prepare("cpu")
    schedule = denoiser.schedule
    t = schedule.nearest(SIGMA)
    abar = float(schedule.alpha_bar[t])
    x_t = (noisy * 2 - 1) * abar**0.5
    with torch.no_grad():
        eps = denoiser.network(x_t[None], torch.tensor([t])).sample[0]
    return ((x_t - (1 - abar) ** 0.5 * eps) / abar**0.5 + 1) / 2


def _as_array(image: Tensor) -> NDArray[np.float64]:
    return image.permute(1, 2, 0).double().numpy()


def _as_tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


def _nlm(noisy: Tensor, strength: float) -> Tensor:
    kwargs = {"h": strength * SIGMA / 255, "sigma": SIGMA / 255, "patch_size": 5, "patch_distance": 6}
    return _as_tensor(restoration.denoise_nl_means(_as_array(noisy), channel_axis=-1, fast_mode=True, **kwargs))


def _wavelet(noisy: Tensor, strength: float) -> Tensor:
    sigma = strength * SIGMA / 255
    options = {"method": "BayesShrink", "mode": "soft", "rescale_sigma": True, "convert2ycbcr": False}
    return _as_tensor(restoration.denoise_wavelet(_as_array(noisy), sigma=sigma, channel_axis=-1, **options))


def _tv(noisy: Tensor, weight: float) -> Tensor:
    return _as_tensor(restoration.denoise_tv_chambolle(_as_array(noisy), weight=weight, channel_axis=-1))


CLASSICAL: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "nlm": (_nlm, (0.4, 0.6, 0.8, 1.0)),
    "wavelet": (_wavelet, (0.6, 0.8, 1.0, 1.2)),
    "tv": (_tv, (0.05, 0.075, 0.1, 0.125, 0.15)),
}


def _tune(grid: Sequence[float], scores: Callable[[float], list[float]]) -> float:
    return max(grid, key=lambda value: float(np.mean(scores(value))))


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 2)
