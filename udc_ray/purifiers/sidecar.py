"""What has to be known of a prior beside its weights: said in prior.json, by diffusers' files, or in the spec.

diffusers records neither the range of the training images nor what they were; feeding [0, 1] to a
[-1, 1] network doubles the noise without a word, so both have to be said, and whatever is said twice has to agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from udc_ray.errors import WeightsError
from udc_ray.purifiers.schedule import Prediction, Schedule

_HOW = (
    "write them into prior.json beside the network (input_range, prediction, schedule, training_domain), or declare "
    "what is missing in the spec, such as prior: {input_range: [-1, 1], training_domain: faces}"
)
_Said = TypeVar("_Said", bound=BaseModel)


class Declared(BaseModel):
    """What somebody says of a prior: the spec, a file of its folder, or a user's own network; None is unsaid.

    Attributes:
        input_range: lowest and highest value of the training images; (-1, 1) or (0, 1) as a rule.
        prediction: what the network predicts.
        schedule: the noise schedule in the network's own range; a diffusers scheduler config is read.
        training_domain: what the prior was trained on, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input_range: tuple[float, float] | None = None
    prediction: Prediction | None = None
    schedule: Schedule | None = None
    training_domain: str | None = None

    @field_validator("input_range")
    @classmethod
    def _goes_up(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("the lowest value comes first, and the highest is above it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_prediction(cls, values: Any) -> Any:
        """A whole scheduler config also says what the network predicts."""
        schedule = values.get("schedule") if isinstance(values, dict) else None
        beside = schedule.get("prediction_type") if isinstance(schedule, dict) else None
        if beside is None:
            return values
        if values.get("prediction", beside) not in (beside, None):
            raise ValueError(f"prediction is {values['prediction']!r}, and prediction_type in schedule {beside!r}")
        return {**values, "prediction": beside}


class Sidecar(Declared):
    """All that has to be known of a prior beside its weights; the form of prior.json.

    Attributes:
        sha256: of the weights file, checked at load; "" where it is not known.
    """

    input_range: tuple[float, float] = Field(examples=[(-1, 1)])
    prediction: Prediction
    schedule: Schedule
    training_domain: str
    sha256: str = ""

    @property
    def image_schedule(self) -> Schedule:
        """The schedule in terms of images in [-1, 1], whatever the range of the network is."""
        return self.schedule.for_images(self.input_range)

    @property
    def said(self) -> Declared:
        """The same without the hash."""
        return Declared(**{key: getattr(self, key) for key in Declared.model_fields})


def agree(said: Mapping[str, Declared], where: str) -> Sidecar:
    """What several say of one prior, together.

    Args:
        said: by who says it.
        where: the prior, for messages.

    Raises:
        WeightsError: two contradict one another, or nobody says something.
    """
    known: dict[str, Any] = {}
    for key in Declared.model_fields:
        told = [(who, getattr(says, key)) for who, says in said.items() if getattr(says, key) is not None]
        for who, value in told[1:]:
            if not _same(told[0][1], value):
                raise WeightsError(
                    f"{told[0][0]} and {who} name a different {key} for the prior: {told[0][1]} and {value}",
                    "files of two priors in one folder, or a spec for another prior",
                    "keep what the prior was trained with",
                )
        known |= {key: told[0][1]} if told else {}
    unsaid = [key for key in Declared.model_fields if key not in known]
    if unsaid:
        raise WeightsError(
            f"{where} does not say: {', '.join(unsaid)}",
            "a checkpoint as diffusers writes it: range and kind of the training images are not in it",
            _HOW,
        )
    return Sidecar(**known)


def parse(kind: type[_Said], path: Path, values: dict[str, Any]) -> _Said:
    """Validate what a file says; mistakes become one user error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsError(
            f"{path}: {where}: {first['msg']}",
            f"given: {first['input']!r}"[:200],
            "priors that predict epsilon, sample or v_prediction under a linear, scaled_linear or squaredcos_cap_v2 "
            "schedule, or one with trained_betas, can be used",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "a truncated file, or not JSON") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object", "another file of the same name")
    return values


def _same(one: Any, other: Any) -> bool:
    return one.is_like(other) if isinstance(one, Schedule) else bool(one == other)
