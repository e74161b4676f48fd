"""YAML as a spec may use it: plain values, text keys, no key twice."""

from __future__ import annotations

import json
from typing import Any

import yaml

from udc_ray.errors import SpecError


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses what would silently lose a value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is no text; put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, where: str) -> Any:
    """Read YAML, safely.

    Args:
        text: the YAML.
        where: what is being read, for the message.

    Raises:
        SpecError: it is no YAML, or says something twice.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        json.dumps(value, default=str)  # refuses a document that contains itself
        return value
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: {_describe(error)}", "not the YAML that was meant", "see the README") from error
    except (RecursionError, ValueError) as error:  # nested without end; a date or number that cannot be
        raise SpecError(f"{where}: {error}", "not the YAML that was meant", "see the README") from error


def _describe(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark is not None else problem
