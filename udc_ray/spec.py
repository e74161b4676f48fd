"""The spec of a run: one frozen value from the command line to the report."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from udc_ray.errors import SpecError, did_you_mean


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Frozen):
    """A registry name and its parameters: ``pgd`` or ``{name: pgd, steps: 10}`` in YAML."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    grad_mode: tuple[str, ...] | None = None
    """Gradient modes of a defence, or the modes to which an attack is confined."""


def _read_entry(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "params" not in value:
        if "name" not in value:
            raise ValueError("an entry is a name, or a mapping with a 'name'")
        modes = value.get("grad_mode")
        rest = {k: v for k, v in value.items() if k not in {"name", "grad_mode"}}
        return {
            "name": value["name"],
            "params": rest,
            "grad_mode": (modes,) if isinstance(modes, str) else modes,
        }
    return value


AnyEntry = Annotated[Entry, BeforeValidator(_read_entry)]


class Success(_Frozen):
    """When an image counts as harmed."""

    drop_db: float = Field(default=3.0, gt=0)
    """PSNR drop in dB from the victim's own clean output quality."""
    psnr_below: float | None = None
    """Absolute PSNR level in dB, in place of the drop; needed without reference images."""


class RunSettings(_Frozen):
    """How the run is executed; only `micro_batch` and `threads` are in the fingerprint."""

    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = 4
    """Images per forward pass; every pass has exactly this many slots."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of a host."""
    hosts: int = Field(default=2, ge=1)
    """Hosts that are started at once."""
    max_hosts: int | None = Field(default=None, ge=1)
    """Hosts at most. Unless given: `hosts` on one machine, on a cluster as many as there is work and room for."""
    host_gpus: float = Field(default=1.0, gt=0)
    """Share of a GPU that a host takes where the device is cuda; 0.5 puts two hosts on a GPU."""
    host_cpus: float | None = Field(default=None, ge=0)
    """CPUs that a host takes on an existing cluster; `threads` unless given."""
    silence_minutes: float = Field(default=10.0, gt=0)
    """Minutes without a finished forward pass after which a host at work is taken for hung, and replaced."""
    chunk: int | None = Field(default=None, ge=1)
    """Images per unit of work; the micro-batch unless given."""
    memory: bool = False
    """Whether a candidate that was answered before is not sent again, where the target is deterministic. It counts
    against the attack's budget all the same, and stands in a column of its own."""
    max_queries: int | None = Field(default=None, ge=1)
    """Queries that all attacks together may ask."""
    max_queries_per_cell: int | None = Field(default=None, ge=1)
    """Queries that the attacks of one cell may ask."""
    max_queries_per_target: int | None = Field(default=None, ge=1)
    """Queries that one victim (the model with one defence) may be asked."""
    resubmissions: int | None = Field(default=None, ge=1)
    """How often an attacker may submit an image; check 24 wants as many evaluations of victims that draw noise."""
    save: Literal["all", "best", "none"] = "best"
    """Which attacked images are kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("host_gpus")
    @classmethod
    def _whole_or_share(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("a host takes a share of one GPU (up to 1), or whole GPUs")
        return value


class RunSpec(_Frozen):
    """All that decides the numbers of a run, and how to get them."""

    model: AnyEntry = Entry(name="default")
    data: AnyEntry = Entry(name="shipped")
    attacks: tuple[AnyEntry, ...]
    defenses: tuple[AnyEntry, ...] = (Entry(name="none"),)
    objective: str = "mse"
    protocol: str = "strict"
    perceptual: AnyEntry = Entry(name="stlpips")
    """Perceptual distance of the LPIPS columns; ``none`` leaves them empty."""
    success: Success = Success()
    seed: int = 0
    limit: int | None = Field(default=None, ge=1)
    """At most so many images, picked by a keyed rule."""
    checks: tuple[str, ...] = ()
    """Checks that are made on request only: ``budget`` (15) and ``unbounded`` (18)."""
    campaign: bool = False
    """A campaign of query attacks: its report reads their curves."""
    run: RunSettings = RunSettings()


_NESTED: dict[str, type[BaseModel]] = {"run": RunSettings, "success": Success}


def parse_spec(values: dict[str, Any]) -> RunSpec:
    """Validate a mapping, as read from YAML; mistakes become one user error."""
    for key in values:
        if key not in RunSpec.model_fields:
            raise SpecError(f"unknown key {key!r} in the spec", change=did_you_mean(key, RunSpec.model_fields))
    try:
        return RunSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden" and first["loc"][0] in _NESTED:
            section, key = str(first["loc"][0]), str(first["loc"][-1])
            change = did_you_mean(key, _NESTED[section].model_fields)
            raise SpecError(f"unknown key {key!r} in {section!r} of the spec", change=change) from error
        raise SpecError(f"spec: {where}: {first['msg']}", f"given: {first['input']!r}", "see the README") from error


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; the text that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
