"""The published networks as entries of a spec: ``{name: discnet, weights: PATH}``."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from udc_ray.errors import WeightsError
from udc_ray.models.adapter import PublishedRestorer, load_published
from udc_ray.models.published import PUBLISHED
from udc_ray.models.zoo import ZooModel


class PublishedModel(ZooModel):
    """A published network with weights of one's own."""

    tile: int | None = Field(default=None, ge=32)
    """Edge of tiles in px for large images."""
    overlap: int = Field(default=32, ge=0)
    """Px that tiles share."""

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
        return load_published(path, self.name, tile=self.tile, overlap=self.overlap)


def _model(key: str) -> type[PublishedModel]:
    facts = {"name": key, "__doc__": f"{PUBLISHED[key].title}.", "__annotations__": {"name": ClassVar[str]}}
    return type(f"{key}_model", (PublishedModel,), {**facts, "__module__": __name__})


_MODELS = {key: _model(key) for key in PUBLISHED}


def __getattr__(name: str) -> type[PublishedModel]:
    """The model of that name, for the registry."""
    if name in _MODELS:
        return _MODELS[name]
    raise AttributeError(name)
