"""A metered target in the place of a model: what a run may ask of it, and what it must be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from udc_ray.data.base import Dataset
from udc_ray.data.gridded import Gridded
from udc_ray.errors import SpecError
from udc_ray.metered.endpoint import Endpoint, is_target, read_endpoint
from udc_ray.models.base import Descriptor
from udc_ray.spec import Entry, RunSpec

if TYPE_CHECKING:
    from udc_ray.plan import Plan


class Unasked:
    """Stands for a target before there is a ledger; it is never asked."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.descriptor = endpoint, describe(endpoint)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        raise TypeError("a metered target is asked through its ledger only")

    def to(self, device: str) -> Unasked:
        """It lives elsewhere."""
        return self


def describe(endpoint: Endpoint) -> Descriptor:
    """What is known of a target before it is asked."""
    return Descriptor(
        name=endpoint.host, parameters=0, source=endpoint.url, licence="metered", task=endpoint.task, channels=3
    )


def endpoint_of(spec: RunSpec) -> Endpoint | None:
    """The metered target of a run, or None where its model is our own."""
    return read_endpoint(spec.model) if is_target(spec.model.name) else None


def with_depth(spec: RunSpec) -> RunSpec:
    """The spec with every attack at the storage depth of its metered target.

    Raises:
        SpecError: an attack that asks for another depth.
    """
    endpoint = endpoint_of(spec)
    if endpoint is None or endpoint.storage_depth == "float":
        return spec
    return spec.model_copy(update={"attacks": tuple(_at_depth(entry, endpoint) for entry in spec.attacks)})


def as_sent(dataset: Dataset, endpoint: Endpoint | None) -> Dataset:
    """The images as the target receives them."""
    if endpoint is None or endpoint.storage_depth == "float":
        return dataset
    return Gridded(dataset, endpoint.storage_depth)


def check_target(spec: RunSpec, plan: Plan) -> None:
    """Refuse what cannot be done with a metered target.

    Raises:
        SpecError: attacks that need gradients, or a purifier whose images are off the target's grid.
    """
    endpoint = endpoint_of(spec)
    if endpoint is None:
        return
    for entry in plan.attacks:
        if entry.attack.kind == "gradient":
            raise SpecError(
                f"{entry.name} needs gradients, and an HTTP target has none",
                change="list query attacks only, such as square or tile-square",
            )
    if endpoint.storage_depth != "float" and any(d.purifier is not None for d in plan.defences):
        raise SpecError(
            "a purifier cannot stand before a target that takes PNG",
            "its images are no 8-bit images, and rounding them would be another defence",
            "give format: npy with the target, or serve the purifier with it: udc-ray serve --defense",
        )


def _at_depth(entry: Entry, endpoint: Endpoint) -> Entry:
    asked = entry.params.get("depth", endpoint.storage_depth)
    if asked != endpoint.storage_depth:
        raise SpecError(
            f"{entry.name} asks for depth {asked}, and the target takes {endpoint.storage_depth} bits",
            "what is sent is a PNG",
            "leave depth away, or give format: npy with the target",
        )
    return entry.model_copy(update={"params": {**entry.params, "depth": asked}})
