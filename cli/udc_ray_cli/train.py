"""``udc-ray train``: the networks that the package ships, from photographs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from udc_ray.errors import SpecError
from udc_ray_cli.stopping import Stopped


class What(StrEnum):
    """What can be trained."""

    RESTORER = "restorer"
    PURIFIER = "purifier"
    GUIDE = "guide"


def train(
    what: Annotated[
        What,
        typer.Argument(
            help="restorer: the default NAFNet; purifier: the diffusion prior; guide: the features that AGDM compares."
        ),
    ],
    photos: Annotated[list[Path], typer.Option(help="Folder of photographs or of HDR .npz files; may repeat.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, weights and card; training resumes there.")],
    steps: Annotated[int, typer.Option(help="Optimisation steps.", min=1)],
    batch: Annotated[int, typer.Option(help="Crops a step.", min=1)] = 8,
    crop: Annotated[int, typer.Option(help="Edge of the crops in pixels.", min=16)] = 96,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    threads: Annotated[int, typer.Option(help="Torch threads.", min=1)] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    max_hours: Annotated[
        float | None, typer.Option(help="Stop after so many hours; the same command goes on.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops and noise.")] = 0,
    beta: Annotated[
        float | None,
        typer.Option(help="guide only: weight of the adversarial term; 6 unless given, 0 trains without it.", min=0),
    ] = None,
) -> None:
    """Train the restorer, the purifier's prior, or the network of its guide, on simulated photographs."""
    if beta is not None and what is not What.GUIDE:
        raise SpecError(
            f"--beta weighs an adversarial term that training a {what.value} has not", change="leave it out"
        )
    from udc_ray.training.guide import GuideSpec
    from udc_ray.training.loop import TrainSpec
    from udc_ray_cli.progress import training_progress

    settings: dict[str, Any] = {"steps": steps, "batch": batch, "crop": crop, "rate": rate, "seed": seed}
    chosen = {} if beta is None else {"beta": beta}
    spec = GuideSpec(**settings, **chosen) if what is What.GUIDE else TrainSpec(**settings)
    from udc_ray.training.entry import TrainRequest, train_network

    request = TrainRequest(what=what.value, folders=tuple(photos), out=out, threads=threads, device=device, spec=spec)
    stop_after = float("inf") if max_hours is None else max_hours * 3600
    try:
        with training_progress(steps) as progress:
            finished = train_network(request, progress, stop_after=stop_after)
    except Stopped:
        typer.echo(f"the same command goes on from the last checkpoint in {out}, if there is one", err=True)
        raise
    typer.echo(f"{'weights and card' if finished else 'checkpoint, not finished yet,'} in {out}")
