"""Names for people: what tells two entries of a spec apart is said, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from udc_ray.params import Params

_SIZES = frozenset({"step", "step_size"})


def describe_eps(eps: float) -> str:
    """Write a radius as n/255 where it is one, or as n/256 with a small n."""
    for denominator, largest in ((255, 255), (256, 32)):
        count = round(eps * denominator)
        if 1 <= count <= largest and abs(eps * denominator - count) < 1e-6:
            return f"{count}/{denominator}"
    return f"{eps:g}"


def distinguish(names: Sequence[str], entries: Sequence[Params | None]) -> list[str]:
    """Add to equal names the parameters in which their entries differ.

    Args:
        names: a short name for every entry.
        entries: their parameters; None has none.
    """
    dumps = [entry.model_dump(mode="json") if entry is not None else {} for entry in entries]
    labels = []
    for name, values in zip(names, dumps, strict=True):
        rivals = [dump for other, dump in zip(names, dumps, strict=True) if other == name]
        differing = [key for key in values if any(rival.get(key) != values[key] for rival in rivals)]
        labels.append(" ".join([name, *(f"{key}={_write(key, values[key])}" for key in differing)]))
    return labels


def _write(key: str, value: object) -> str:
    if isinstance(value, float):
        return describe_eps(value) if key in _SIZES else f"{value:g}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
