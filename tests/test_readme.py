"""The README's commands parse and its Python compiles."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import call
from typer.main import get_command

import udc_ray
from udc_ray_cli.main import app

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(udc-ray [^`]+)`")
SHELLS = {"", "bash", "sh", "shell", "console"}


def blocks(languages: set[str]) -> list[str]:
    return [body for language, body in FENCE.findall(README.read_text(encoding="utf-8")) if language in languages]


def commands(text: str) -> list[list[str]]:
    """Every ``udc-ray`` command of a shell block; ``a && b`` are two."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                found.append(words)
                words = []
            else:
                words.append(word)
    named = (words[words.index("udc-ray") + 1 :] for words in found if "udc-ray" in words)
    return [words for words in named if words]


def parse(words: list[str]) -> None:
    """Parse a command without running it; what does not parse raises."""
    group: Any = get_command(app)
    if words[0].startswith("--"):
        assert call(*words).code == 0
        return
    assert words[0] in group.commands, f"there is no command {words[0]!r}"
    command = group.commands[words[0]]
    with typer.Context(group, info_name="udc-ray") as parent:
        command.make_context(words[0], list(words[1:]), parent=parent)


def test_the_readme_shows_the_two_commands_that_matter() -> None:
    text = "\n".join(blocks(SHELLS))
    assert "pip install . && udc-ray evaluate" in text
    assert "pip install '.[test]' && pytest" in text


def test_every_command_of_the_readme_parses() -> None:
    texts = [*blocks(SHELLS), *INLINE.findall(FENCE.sub("", README.read_text(encoding="utf-8")))]
    found = [words for text in texts for words in commands(text)]
    assert ["evaluate"] in found
    for words in found:
        parse(words)


def test_every_python_block_of_the_readme_compiles() -> None:
    found = blocks({"python", "py"})
    assert found
    for body in found:
        compile(body, "README.md", "exec")


def test_names_that_the_readme_takes_from_udc_ray_exist() -> None:
    for body in blocks({"python", "py"}):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "udc_ray":
                assert hasattr(udc_ray, node.attr), node.attr


def test_commands_are_found_and_bad_ones_refused() -> None:
    text = "$ pip install . && udc-ray evaluate  # four minutes\nudc-ray report \\\n  RUN --json\n# udc-ray nothing\n"
    assert commands(text) == [["evaluate"], ["report", "RUN", "--json"]]
    for words in commands(text):
        parse(words)
    with pytest.raises(AssertionError, match="no command"):
        parse(["evaluat"])
    with pytest.raises(Exception, match="--atack"):
        parse(["evaluate", "--atack", "pgd"])
