"""The published networks as entries of a spec: ``{name: discnet, weights: PATH}``."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from udc_ray.errors import SpecError, WeightsError
from udc_ray.models.adapter import PublishedRestorer, load_published
from udc_ray.models.published import PUBLISHED, Published
from udc_ray.models.zoo import ZooModel


class PublishedModel(ZooModel):
    """A published network with weights of one's own."""

    tile: int | None = Field(default=None, ge=32)
    """Edge of tiles in px for large images."""
    overlap: int = Field(default=32, ge=0)
    """Px that tiles share."""
    code: tuple[float, ...] | None = None
    """PCA code of the display's PSF, for networks that take one (DISCNet); the public centre code unless given."""

    def load(self) -> PublishedRestorer:
        """Read the weights into the network that they are of."""
        path = self._file()
        if path is None:
            entry = PUBLISHED[self.name]
            raise WeightsError(
                f"the model {self.name!r} needs weights",
                "published networks come without theirs",
                f"add --weights PATH; its users get them from {entry.source}",
            )
        restorer = load_published(path, self.name, tile=self.tile, overlap=self.overlap)
        if self.code is not None:
            restorer.entry = replace(restorer.entry, code=self._fitting(restorer.entry))
        return restorer

    def _fitting(self, entry: Published) -> tuple[float, ...]:
        if entry.code is None or self.code is None or len(self.code) != len(entry.code):
            wants = "takes no PSF code" if entry.code is None else f"takes a PSF code of {len(entry.code)} numbers"
            raise SpecError(
                f"{entry.title} {wants}", change="leave model.code out, or give what `udc-ray psf` computes"
            )
        return self.code


def _model(key: str) -> type[PublishedModel]:
    facts = {"name": key, "__doc__": f"{PUBLISHED[key].title}.", "__annotations__": {"name": ClassVar[str]}}
    return type(f"{key}_model", (PublishedModel,), {**facts, "__module__": __name__})


_MODELS = {key: _model(key) for key in PUBLISHED}


def __getattr__(name: str) -> type[PublishedModel]:
    """The model of that name, for the registry."""
    if name in _MODELS:
        return _MODELS[name]
    raise AttributeError(name)
