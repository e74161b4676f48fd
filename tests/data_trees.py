"""Small trees in the layouts of published UDC data sets, made of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image


def pixels(seed: int, height: int = 18, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def light(seed: int, height: int = 18, width: int = 20) -> np.ndarray:
    """Linear HDR: mostly dim, some lamps up to 500."""
    values = np.random.default_rng(seed).random((height, width, 3)) ** 8 * 500
    return values.astype(np.float32)


def raw(seed: int, height: int = 18, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (height, width, 4)).astype(np.uint16)


def kernel(seed: int, edge: int = 9) -> np.ndarray:
    """A PSF, edge x edge x 3, every colour sums to 1; nothing about it is symmetric."""
    values = np.random.default_rng(seed).random((edge, edge, 3)) ** 6
    values[edge // 2, edge // 2] += 2
    return values / values.sum((0, 1))


def put(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


def udc_2020(root: Path, names: tuple[str, ...] = ("1", "2")) -> Path:
    for n, part in enumerate(("Poled_val", "Toled_val")):
        for m, name in enumerate(names):
            put(root / part / "LQ" / f"{name}.png", pixels(10 * n + m))
            put(root / part / "HQ" / f"{name}.png", pixels(100 + 10 * n + m))
    return root


def udc_2020_mat(root: Path, count: int = 3) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for n, display in enumerate(("poled", "toled")):
        for m, role in enumerate(("display", "gt")):
            stack = np.stack([pixels(50 * n + 10 * m + k) for k in range(count)])
            scipy.io.savemat(
                root / f"{display}_val_{role}.mat", {f"val_{role}": stack}, do_compression=bool(n), appendmat=False
            )
    return root


def synth(root: Path, psfs: tuple[int, ...] = (1, 5), edge: int = 9) -> Path:
    """The truths, PSFs and codes of SYNTH, as they are downloaded; nothing is degraded yet."""
    for split, names in (("train", ("a", "b")), ("test", ("c",))):
        for name in names:
            put(root / "synthetic_data" / "GT" / split / f"{name}.npy", light(ord(name)))
    for k in psfs:
        put(root / "PSF" / "ZTE_new" / f"ZTE_new_psf_{k}.npy", kernel(k, edge))
        put(root / "PSF" / "kernel_code" / f"ZTE_new_code_{k}.npy", np.arange(5, dtype=np.float32) * k)
    return root


def synth_reference(linear: np.ndarray, psf: np.ndarray) -> np.ndarray:
    """The published formula, written down once more with complex transforms, colour by colour; H x W x 3."""
    out = np.empty(linear.shape)
    for c in range(3):
        padded = np.pad(linear[..., c].astype(np.float64), 200)
        framed = np.zeros_like(padded)
        there, here = np.array(psf.shape[:2]), np.array(padded.shape)
        corner = here // 2 - there // 2
        (t, s), (u, v) = np.maximum(corner, 0), np.maximum(-corner, 0)
        h, w = np.minimum(there, here)
        framed[t : t + h, s : s + w] = psf[u : u + h, v : v + w, c]
        mixed = np.fft.ifft2(np.fft.fft2(padded) * np.fft.fft2(framed))
        centred = np.roll(np.abs(mixed), (-(here[0] // 2), -(here[1] // 2)), (0, 1))
        out[..., c] = np.clip(centred[200:-200, 200:-200], 0, 500)
    return out


def synth_stored(root: Path) -> Path:
    """SYNTH after its own script: the degraded images on disk."""
    for k in (1, 5):
        psf = np.load(root / "PSF" / "ZTE_new" / f"ZTE_new_psf_{k}.npy")
        for path in sorted((root / "synthetic_data" / "GT").rglob("*.npy")):
            degraded = synth_reference(np.load(path), psf).astype(np.float32)
            put(root / "synthetic_data" / "input" / f"ZTE_new_{k}" / path.parent.name / path.name, degraded)
    return root


def udc_sit(root: Path, *, withheld: bool = True) -> Path:
    for n, part in enumerate(("training", "validation", "test")):
        for k in (1, 2):
            put(root / part / "input" / f"{k}.npy", raw(10 * n + k))
            if part != "test" or not withheld:
                put(root / part / "GT" / f"{k}.npy", raw(100 + 10 * n + k))
    return root


def mipi(root: Path) -> Path:
    for k in (1, 2):
        put(root / "training" / "input" / f"{k:03}.npy", light(k))
        put(root / "training" / "GT" / f"{k:03}.npy", light(100 + k))
        put(root / "validation" / "input" / f"{k:03}.npy", light(200 + k))
    return root


def srudc(root: Path, ending: str = "") -> Path:
    for n, part in enumerate(("train", "test")):
        put(root / part / f"LQ_syn{ending}" / "1.png", pixels(n))
        put(root / part / f"HQ_syn{ending}" / "1.png", pixels(10 + n))
        (root / part / f"LQ_syn{ending}" / "haze_coef.txt").write_text("1 0.5\n")
    return root


def mpgnet(root: Path) -> Path:
    for n, part in enumerate(("Train/Poled", "Train/Toled", "Test/Poled")):
        put(root / part / "LQ_patch" / "1.png", pixels(n))
        put(root / part / "HQ_patch" / "1.png", pixels(10 + n))
    return root
