"""What a spec can name."""

from __future__ import annotations

from udc_ray.attacks.registry import ATTACKS
from udc_ray.data import layouts
from udc_ray.data.simulate import load_displays
from udc_ray.models.zoo import MODELS
from udc_ray.params import Params
from udc_ray.purifiers.registry import PURIFIERS

Row = dict[str, str]


def catalogue(kind: str) -> list[Row]:
    """Rows of name, summary and parameters for ``models``, ``attacks``, ``defenses`` or ``data``."""
    if kind == "attacks":
        return [_params_row(name, ATTACKS.get(name)) for name in ATTACKS]
    if kind == "defenses":
        none = {"name": "none", "summary": "The undefended model.", "parameters": ""}
        return [none, *(_params_row(name, PURIFIERS.get(name)) for name in PURIFIERS)]
    if kind == "models":
        return [_params_row(name, MODELS.get(name)) for name in MODELS]
    displays = [
        {"name": f"display {d.name}", "summary": d.title, "parameters": f"domain={d.domain}"}
        for d in load_displays().values()
    ]
    shipped = {
        "name": "shipped",
        "summary": "12 photographs and 5 HDR scenes of the package, behind a display.",
        "parameters": "display=toled size=256 which=ldr seed=0",
    }
    path = {
        "name": "PATH",
        "summary": "A folder of pairs (HQ/LQ or GT/input), a folder or a file.",
        "parameters": "display size reference seed part psf degraded truth",
    }
    return [shipped, path, *layouts.rows(), *displays]


def _params_row(name: str, params: type[Params]) -> Row:
    fields = " ".join(f"{key}={field.default}" for key, field in params.model_fields.items())
    summary = (params.__doc__ or "").strip().splitlines()[0]
    return {"name": name, "summary": summary, "parameters": fields}
