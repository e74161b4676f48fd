"""Secrets are taken out of everything that is written or printed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

MASK = "***"
SHORTEST = 4
"""Values of the environment below this length would blot out ordinary text."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|KEY|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PLAIN_VALUES = frozenset({"true", "false", "none", "null", "auto", "default"})
_WORD = r"(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credentials?)"
# user:secret@ after the scheme; a secret may hold slashes, but `host:8020/path@x` is none
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/@\s:]*:(?!\d+/)[^@\s\"']+@")
_HEADER = re.compile(r"(?P<name>(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)[^\r\n\"']+", re.IGNORECASE)
_BEARER = re.compile(r"(?P<name>\bbearer\s+)[^\s\"',;]+", re.IGNORECASE)
_QUOTED_OR_WORD = r"(?:\"[^\"]*\"|'[^']*'|[^\s\"'&,;]+)"
_OPTION = re.compile(rf"(?P<name>(?<![\w-])--?[\w-]*{_WORD}[\w-]*[=\s]\s*){_QUOTED_OR_WORD}", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"(?P<name>[\w.-]*{_WORD}[\w-]*[\"']?\s*[=:]\s*){_QUOTED_OR_WORD}", re.IGNORECASE)


def has_credentials(uri: str) -> bool:
    """Whether a URI holds ``user:secret@``."""
    return _USERINFO.search(uri) is not None


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Mask the secrets in a text.

    Masked are the secret of a URI, the values of environment variables whose names speak of a token,
    secret, key or password, such options and assignments, and Authorization headers.

    Args:
        text: anything that is about to be written.
        environment: variables to look for; this process's unless given.
    """
    text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    for value in _secret_values(os.environ if environment is None else environment):
        text = text.replace(value, MASK)
    for pattern in (_HEADER, _BEARER, _OPTION, _ASSIGNMENT):
        text = pattern.sub(rf"\g<name>{MASK}", text)
    return text


def redact_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command line as one text, with its secrets masked."""
    return redact(" ".join(_shell_word(a) for a in arguments), environment)


def redact_values(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Mask the secrets in every text of a JSON value."""
    if isinstance(value, str):
        return redact(value, environment)
    if isinstance(value, Mapping):
        return {str(k): _redact_item(str(k), v, environment) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(v, environment) for v in value]
    return value


def _redact_item(key: str, value: Any, environment: Mapping[str, str] | None) -> Any:
    if isinstance(value, str) and re.search(rf"{_WORD}|authorization", key, re.IGNORECASE):
        return MASK
    return redact_values(value, environment)


def _secret_values(environment: Mapping[str, str]) -> list[str]:
    plain = {
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST and value.lower() not in _PLAIN_VALUES
    }
    return sorted(plain | {quote(v, safe="") for v in plain}, key=len, reverse=True)  # the longest hides its parts


def _shell_word(argument: str) -> str:
    if not argument or re.search(r"\s", argument):
        return '"' + argument.replace('"', "'") + '"'
    return argument
