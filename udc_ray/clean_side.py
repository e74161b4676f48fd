"""The clean side of a selection: what a network makes of images that nobody attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from udc_ray.data.folder import index_source
from udc_ray.data.source import find_source
from udc_ray.data.tree import is_folder
from udc_ray.errors import DataError, SpecError, WeightsError
from udc_ray.features import Layer, Matrix
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place, RemoteFolder, local
from udc_ray.models.base import Restorer

SHIPPED = Path(__file__).parent / "weights" / "restorer" / "clean_features.npz"
"""Features of the default restorer on training crops behind the shipped displays."""
_GIVE = "give clean: a folder of unattacked degraded images, or a .npz with their features under the key `features`"


@dataclass(frozen=True, kw_only=True)
class CleanSide:
    """Features of unattacked images.

    Attributes:
        features: N x width, float32.
        layer: where they were read; None where a file does not say.
        model: sha256 of the network's weights; None where a file does not say.
        displays: display of every row; empty where they are not known.
    """

    features: Matrix
    layer: str | None = None
    model: str | None = None
    displays: Sequence[str] = ()

    def behind(self, display: str | None, at_least: int) -> CleanSide:
        """The rows of one display, where there are enough of them; all of them otherwise.

        Displays differ more than purified images do, and would drown the difference that is looked for.
        """
        rows = [n for n, name in enumerate(self.displays) if name == display]
        if len(rows) < at_least:
            return self
        return replace(self, features=self.features[rows], displays=[self.displays[n] for n in rows])

    def of(self, restorer: Restorer, layer: Layer, where: str) -> CleanSide:
        """The same, once it is known to be of this network and layer.

        Raises:
            WeightsError: features of another network, layer or width.
        """
        digest = restorer.descriptor.sha256
        wrong = ""
        if self.model is not None and digest is not None and self.model != digest:
            wrong = f"another network than {restorer.descriptor.name}"
        elif self.layer not in (None, layer.name):
            wrong = f"the layer {self.layer}, not {layer.name}"
        elif self.features.shape[1] != layer.width:
            wrong = f"{self.features.shape[1]} values an image, not {layer.width}"
        if wrong:
            raise WeightsError(f"{where} holds features of {wrong}", "they were made with other weights", _GIVE)
        return self


def save_clean_side(path: Path, side: CleanSide) -> Path:
    """Write features as float16 beside what is known of them; the same features make the same bytes."""
    values = side.features.astype(np.float16)
    if not np.isfinite(values).all():
        raise WeightsError("features are not finite in half precision", "a layer with very large values")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        features=values,
        layer=np.array(side.layer or ""),
        model=np.array(side.model or ""),
        displays=np.array(list(side.displays), dtype=np.str_),
    )
    return path


def load_clean_side(path: Path) -> CleanSide:
    """Read features N x width of a .npz; only `features` has to be there.

    Raises:
        WeightsError: no such matrix, or values that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except Exception as error:  # NumPy raises all sorts of things on foreign bytes; each is the file's fault
        raise WeightsError(f"{path} cannot be read: {error}", "a truncated file, or no .npz", _GIVE) from error
    values = found.get("features")
    if values is None or values.ndim != 2 or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise WeightsError(f"{path} holds no finite matrix `features` of N x width", "another kind of .npz", _GIVE)
    displays = tuple(str(name) for name in found.get("displays", ()))
    return CleanSide(
        features=values.astype(np.float32),
        layer=str(found.get("layer", "")) or None,
        model=str(found.get("model", "")) or None,
        displays=displays if len(displays) == len(values) else (),
    )


def find_clean(clean: str | None) -> Folder | Place:
    """The file of features, or the folder of images, that a selector's `clean` names; the shipped file unless given.

    Raises:
        DataError: nothing that can be read is there.
    """
    if clean is None:
        return SHIPPED
    found = find_source(clean)
    if not is_folder(found) and PurePosixPath(found.name).suffix.lower() != ".npz":
        raise DataError(f"clean: {found} is neither a folder nor a .npz", "one image is no clean side", _GIVE)
    return found


def clean_hashes(clean: str | None) -> dict[str, str]:
    """sha256 of what `clean` names, by names that are no paths, for the fingerprint."""
    found = find_clean(clean)
    if isinstance(found, RemoteFolder) or is_folder(found):
        return {f"clean/{name}": file_sha256(path) for name, path in index_source(found).items()}
    return {"clean": file_sha256(found)}


def read_clean(clean: Place, restorer: Restorer, layer: Layer) -> CleanSide:
    """Features of a file, which has to be of this network and layer.

    Raises:
        SpecError: the shipped features are of another network than the run's.
        WeightsError: features that cannot be used.
    """
    side = load_clean_side(local(clean, WeightsError))
    if clean == SHIPPED and side.model != restorer.descriptor.sha256:
        raise SpecError(
            f"the clean features of the model {restorer.descriptor.name} are not known",
            "they come with the package for the default restorer only",
            _GIVE,
        )
    return side.of(restorer, layer, str(clean))
