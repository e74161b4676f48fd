"""Where a long command is carried out: in this process, on a Ray that starts here, attached, or as a job."""

from __future__ import annotations

import os
from dataclasses import dataclass

from udc_ray.errors import SpecError

RAY_ADDRESS = "RAY_ADDRESS"


def is_http(address: str | None) -> bool:
    """Whether jobs can be submitted to an address."""
    return (address or "").lower().startswith(("http://", "https://"))


def known_address(address: str | None) -> str | None:
    """The address that was given, else RAY_ADDRESS."""
    return address or os.environ.get(RAY_ADDRESS, "").strip() or None


def required_address(address: str | None) -> str:
    """The cluster that ``--cluster`` means."""
    found = known_address(address)
    if found is None:
        raise SpecError(
            "--cluster is given, but no cluster is named",
            "neither --address nor RAY_ADDRESS is set",
            "give --address http://HEAD:8265 to submit a job, or host:port on one of the cluster's nodes",
        )
    return found


def required_http_address(address: str | None) -> str:
    """The door of a cluster's jobs."""
    found = known_address(address)
    if found is None or not is_http(found):
        raise SpecError(
            f"jobs need the http address of a cluster{f', not {found}' if found else ''}",
            "neither --address nor RAY_ADDRESS names the dashboard of its head",
            "give --address http://HEAD:8265",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Way:
    """What the command line says of where; contradictions are refused.

    Raises:
        SpecError: words that exclude each other, or one that is missing.
    """

    in_process: bool = False
    cluster: bool = False
    address: str | None = None
    detach: bool = False
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cluster and self.in_process:
            raise SpecError("--cluster and --in-process exclude each other", change="leave one of them away")
        if self.cluster:
            required_address(self.address)
        elif is_http(self.where):
            raise SpecError(
                f"{'--address' if self.address else RAY_ADDRESS} is an http address, and --cluster is not given",
                "jobs are submitted to such an address",
                "add --cluster, or give host:port to attach, or unset RAY_ADDRESS to run on this machine",
            )
        if not self.submits and (self.detach or self.shared):
            raise SpecError(
                f"{'--detach' if self.detach else '--shared'} is about a job, and none is submitted",
                "the run is carried out from here",
                "add --cluster and --address http://HEAD:8265",
            )

    @property
    def where(self) -> str | None:
        """Address of the cluster; None where there is none."""
        return None if self.in_process else known_address(self.address)

    @property
    def submits(self) -> bool:
        """Whether the command becomes a job."""
        return self.cluster and is_http(self.where)

    @property
    def words(self) -> list[str]:
        """The words that say so again."""
        said = {"--in-process": self.in_process, "--cluster": self.cluster}
        address = ["--address", self.address] if self.address else []
        return [*(word for word, wanted in said.items() if wanted), *address]
