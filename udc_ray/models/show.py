"""What a checkpoint is: ``udc-ray show FILE``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from udc_ray.errors import WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import place
from udc_ray.models.adapter import AVERAGED
from udc_ray.models.checkpoints import first_difference, read_state_dict
from udc_ray.models.published import PUBLISHED, build
from udc_ray.models.recognise import plain_keys, recognise


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is known of a weights file.

    Attributes:
        path: the file.
        sha256: of its bytes.
        keys: number of entries.
        values: numbers in them.
        dtypes: their types.
        network: name of the published network that it is of, or None.
        title: that network and its sizes, or None.
        difference: the first key in which it differs from that network; None if it fits.
        upstream: where that network comes from, and its licence.
    """

    path: str
    sha256: str
    keys: int
    values: int
    dtypes: tuple[str, ...]
    network: str | None
    title: str | None
    difference: str | None
    upstream: str | None


def show(path: str) -> Checkpoint:
    """Look into a weights file; nothing is run from it.

    Raises:
        WeightsError: a file that cannot be read.
    """
    file = place(path, WeightsError)
    state = plain_keys(read_state_dict(file))
    found = recognise(state)
    difference = None
    if found is not None:
        difference = first_difference(build(found.name, **found.options), state)
    return Checkpoint(
        path=str(path),
        sha256=file_sha256(file),
        keys=len(state),
        values=sum(value.numel() for value in state.values()),
        dtypes=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})),
        network=found.name if found is not None else None,
        title=found.title if found is not None else None,
        difference=difference,
        upstream=f"{PUBLISHED[found.name].source} ({PUBLISHED[found.name].licence})" if found is not None else None,
    )


def export(path: str, target: Path) -> int:
    """Write the weights of a checkpoint as .safetensors, with the published keys.

    Returns:
        The number of entries.

    Raises:
        WeightsError: a file that cannot be read, or a target that is there already or cannot be written.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target} is no .safetensors file", change="give a name that ends in .safetensors")
    if target.exists():
        raise WeightsError(f"{target} is there already", change="give another name, or remove it")
    file = place(path, WeightsError)
    state = plain_keys(read_state_dict(file))
    found = recognise(state)
    if found is not None and found.family == "udcunet":  # the published configuration evaluates the running average
        state = plain_keys(read_state_dict(file, AVERAGED))
    try:
        save_file(_unshared(state), target)
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error}", "a wrong folder or no permission") from error
    return len(state)


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of their own: tensors that share memory are refused by the format."""
    return {key: value.detach().clone().contiguous() for key, value in state.items()}
