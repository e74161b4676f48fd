"""Records for tests: a sound run by default, any column can be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from udc_ray.plan import describe_eps
from udc_ray.records import Record


def make_record(**columns: Any) -> Record:
    """One sound record of PGD on the undefended model."""
    defaults: dict[str, Any] = {
        "run_fingerprint": "f" * 64, "model": "default", "data": "shipped", "image_id": "0000",
        "attack": "pgd", "norm": "linf", "eps": 8 / 255, "budget": None, "defense": "none", "grad_mode": "full",
        "eot": 1, "sample": 0, "restart": 0, "seed": 0, "objective": "mse", "protocol": "strict",
        "psnr_degraded": 22.0, "psnr_clean": 28.0, "psnr_noise": 26.0, "psnr_adv": 15.0,
        "ssim_clean": 0.9, "ssim_adv": 0.4, "linf": 8 / 255, "l2": 2.0, "queries": 0, "queries_harness": 6,
        "grad_evals": 10, "nfe": 0, "success": True, "stop_reason": "iterations", "seconds": 1.5,
    }  # fmt: skip
    values = defaults | columns
    size = "" if values["eps"] is None else f" {values['norm']} {describe_eps(values['eps'])}"
    shield = "none" if values["defense"] == "none" else f"{values['defense']} {values['grad_mode']}"
    values.setdefault("label", f"{values['attack']}{size} | {shield}")
    values.setdefault("cell", f"id of {values['label']}")
    return Record(**values)


def make_cell(psnr_adv: Sequence[float] | Mapping[str, float], **columns: Any) -> list[Record]:
    """One record an image, with these attacked qualities."""
    named = psnr_adv if isinstance(psnr_adv, Mapping) else {f"{i:04d}": v for i, v in enumerate(psnr_adv)}
    return [make_record(image_id=i, psnr_adv=v, **columns) for i, v in named.items()]


QUERY: dict[str, Any] = {"attack": "square", "grad_evals": 0, "queries": 200, "budget": 200, "stop_reason": "budget"}
"""What makes a cell one of a query attack."""
