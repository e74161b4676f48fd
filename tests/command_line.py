"""Calls the command line in this process, as a shell would."""

from __future__ import annotations

import io
import os
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from udc_ray_cli.main import main

SMALL = ("--in-process", "--model", "identity", "--set", "data.size=48")
"""Enough for a run of a second or two."""
TWO_IMAGES = (*SMALL, "--limit", "2", "--attack", "noise", "--attack", "fgsm", "--defense", "none")


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


def call(*words: str | Path, **environment: str) -> Answer:
    """Run ``udc-ray WORDS`` through a pipe, without COLUMNS and RAY_ADDRESS unless given."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    kept = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "RAY_ADDRESS"}}
    with (
        mock.patch.dict(os.environ, kept | environment, clear=True),
        mock.patch.object(sys, "argv", ["udc-ray", *map(str, words)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Answer(code=code, out=out.getvalue(), err=err.getvalue())


def files_below(folder: Path) -> dict[str, bytes]:
    """All files below a folder, with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def resume_command(err: str) -> list[str]:
    """The command that a stopped run says to go on with, as words."""
    line = next(text for text in err.splitlines() if "--resume" in text)
    return shlex.split(line)
