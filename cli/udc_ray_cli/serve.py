"""``udc-ray serve``: put a model behind HTTP, to have a real endpoint to attack."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from udc_ray.spec import Entry
    from udc_ray_cluster.serving import Stand

SHORTEST_TOKEN = 16


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a weights file, or package.module:factory.")],
    weights: Annotated[str | None, typer.Option(help="Weights of the model: a path or a URI.")] = None,
    defense: Annotated[str | None, typer.Option(help="Purifier before it: NAME or NAME:key=value,...")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 8000,
    hosts: Annotated[int, typer.Option(help="Copies of the model.", min=1)] = 1,
    micro_batch: Annotated[int, typer.Option(help="Images per forward pass, always exactly.", min=1)] = 4,
    threads: Annotated[int, typer.Option(help="Torch threads of a copy.", min=1)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    token_env: Annotated[
        str | None, typer.Option(help="Ask for the token that this environment variable holds.")
    ] = None,
) -> None:
    """Serve a restorer or a classifier over HTTP until Ctrl-C."""
    from udc_ray.service import Served, Service
    from udc_ray.spec import Entry
    from udc_ray_cluster.serving import Stand, serving

    served = Served(
        model=Entry(name=model, params={} if weights is None else {"weights": weights}),
        defense=None if defense is None else _entry(defense),
        micro_batch=micro_batch,
        device=device,
    )
    stand = Stand(
        served=served, host=host, port=port, hosts=hosts, threads=threads, token_sha256=_token_hash(token_env)
    )
    info = Service(served).info()  # whatever is wrong with the model is said before Ray starts
    if stand.open:
        typer.echo(
            f"warning: everyone who reaches {host}, port {port}, can use the model; there is no authentication. "
            "Give --token-env VARIABLE, or leave --host away",
            err=True,
        )
    with serving(stand) as url:
        _say(stand, info, url, token_env)
        while True:
            time.sleep(1.0)


def _entry(text: str) -> Entry:
    from udc_ray.config import parse_entry
    from udc_ray.spec import Entry

    values = parse_entry(text)
    return Entry(name=str(values.pop("name")), params=values)


def _token_hash(variable: str | None) -> str:
    """SHA-256 of the token; the token itself goes no further."""
    from udc_ray.errors import SpecError

    if variable is None:
        return ""
    token = os.environ.get(variable, "").strip()
    if len(token) < SHORTEST_TOKEN:
        raise SpecError(
            f"the environment variable {variable} holds no token of {SHORTEST_TOKEN} letters or more",
            "it is not set here, or too short to be a secret",
            f'export {variable}="$(openssl rand -hex 32)"',
        )
    return hashlib.sha256(token.encode()).hexdigest()


def _say(stand: Stand, info: dict[str, Any], url: str, token_env: str | None) -> None:
    """Where it is, and how to use it."""
    target = f"{url}{info['path']}"
    before = f" behind {info['defense']}" if info["defense"] else ""
    copies = f"{stand.hosts} {'copy' if stand.hosts == 1 else 'copies'}"
    options = [] if info["task"] == "restoration" else ["--set model.task=classification"]
    options += ["--set model.random=true"] if info["random"] else []
    options += ["--set model.format=npy"] if info["formats"] == ["npy"] else []
    options += ["--set model.header=Authorization=HEADER"] if token_env else []
    typer.echo(f"{info['name']}{before} at {target} ({copies}, micro-batches of {info['micro_batch']})")
    typer.echo(f"  what it is:  curl {url}/info")
    typer.echo(f"  ask it:      curl --data-binary @IMAGE.png {target} --output ANSWER")
    typer.echo(f"  attack it:   {' '.join(['udc-ray campaign --target', target, *options])}")
    if token_env:
        typer.echo(f'               with export HEADER="Bearer ${token_env}"')
    typer.echo("Ctrl-C ends it.")
    sys.stdout.flush()  # a script that reads the address through a pipe waits for it
