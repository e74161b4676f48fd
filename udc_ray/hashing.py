"""SHA-256 of files and of networks, for fingerprints."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from udc_ray.errors import DataError
from udc_ray.location import Place, local


def file_sha256(path: Place) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    try:
        with local(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", change="check the path") from error


def module_sha256(module: nn.Module) -> str:
    """Hexadecimal SHA-256 of a network's values, by name; for networks that come without a file."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
