"""Base of everything that is its hyper-parameters: attacks, purifiers, objectives."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from udc_ray.errors import SpecError, did_you_mean


def parse_fraction(value: object) -> object:
    """Read ``8/255`` and numbers as a float; leave the rest to the validator."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


Amount = Annotated[float, BeforeValidator(parse_fraction)]
"""A number that may be written as a fraction, such as ``8/255``."""


class Params(BaseModel):
    """A frozen value with a name; its `identity` rebuilds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: ClassVar[str] = ""
    """Registry name."""
    not_identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not belong to the identity (a query budget can be raised)."""

    @classmethod
    def build(cls, kind: str, params: dict[str, Any]) -> Any:
        """Validate parameters from a spec; mistakes become one user error."""
        for key in params:
            if key not in cls.model_fields:
                raise SpecError(
                    f"{kind} {cls.name!r} has no parameter {key!r}", change=did_you_mean(key, cls.model_fields)
                )
        try:
            return cls(**params)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or cls.name
            raise SpecError(f"{kind} {cls.name!r}: {where}: {first['msg']}", f"given: {first['input']!r}") from error

    def identity(self) -> str:
        """Canonical text of name and parameters, used in random keys and cell hashes."""
        values = self.model_dump(mode="json", exclude=set(self.not_identity))
        return f"{self.name}{json.dumps(values, sort_keys=True, separators=(',', ':'))}"
