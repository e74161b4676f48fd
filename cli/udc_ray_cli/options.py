"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from udc_ray.config import Overrides

SpecFile = Annotated[Path | None, typer.Argument(metavar="SPEC.yaml", help="Spec of the run; every key is optional.")]
Preset = Annotated[str | None, typer.Option(help="Preset that the spec refines: full, udc-paper.")]
Model = Annotated[str | None, typer.Option(help="Restorer: a name, a weights file, or package.module:factory.")]
Weights = Annotated[str | None, typer.Option(help="Weights of the model: a path or a URI.")]
Data = Annotated[str | None, typer.Option(help="Folder of pairs (HQ/LQ, GT/input), folder or file of images.")]
Display = Annotated[str | None, typer.Option(help="Degrade clean images with: toled, poled, zte, or PSF.npy.")]
NoReference = Annotated[bool, typer.Option("--no-reference", help="The images are degraded ones without truth.")]
Attacks = Annotated[list[str] | None, typer.Option("--attack", help="NAME or NAME:key=value,...; may repeat.")]
Defenses = Annotated[list[str] | None, typer.Option("--defense", help="NAME or NAME:key=value,...; may repeat.")]
Out = Annotated[str | None, typer.Option(help="Run directory [default: runs/UTC-fingerprint].")]
Limit = Annotated[int | None, typer.Option(help="At most so many images.", min=1)]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any key of the spec: key.key=value; may repeat.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all keyed randomness.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the document on stdout, everything else on stderr.")]
Cluster = Annotated[bool, typer.Option("--cluster", help="Run on the cluster that --address names.")]
Address = Annotated[
    str | None,
    typer.Option(help="http://HEAD:8265 submits a job; host:port, ray://... or auto attach [default: RAY_ADDRESS]."),
]
Shared = Annotated[list[str] | None, typer.Option("--shared", help="Folder that is the same on all nodes; may repeat.")]


def overrides(
    model: str | None,
    weights: str | None,
    data: str | None,
    display: str | None,
    no_reference: bool,
    attack: list[str] | None,
    defense: list[str] | None,
    limit: int | None,
    seed: int | None,
) -> Overrides:
    """What the flags that stand for keys of the spec say."""
    from udc_ray.config import Overrides

    return Overrides(
        model=model,
        weights=weights,
        data=data,
        display=display,
        reference=False if no_reference else None,
        attacks=tuple(attack or ()),
        defenses=tuple(defense or ()),
        limit=limit,
        seed=seed,
    )
