"""cluster/Dockerfile: its files are there, it is nobody's root, and its install lines work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "cluster" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of every line that is no comment; continued lines are joined."""
    text = re.sub(r"\\\n\s*", " ", RECIPE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def copied() -> list[tuple[list[str], str]]:
    """Sources and target of every COPY."""
    words = [argument.split() for name, argument in instructions() if name == "COPY"]
    bare = [[w for w in line if not w.startswith("--")] for line in words]
    return [(line[:-1], line[-1]) for line in bare]


def installs() -> list[str]:
    return [argument for name, argument in instructions() if name == "RUN" and argument.startswith("pip install")]


def test_what_is_copied_is_here() -> None:
    sources = [source for sources, _ in copied() for source in sources]
    assert {"udc_ray", "cli", "cluster", "pyproject.toml", "LICENSE", "NOTICE"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)


def test_runs_as_an_ordinary_user() -> None:
    names = [name for name, _ in instructions()]
    assert [argument for name, argument in instructions() if name == "USER"] == ["ray"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_no_secret_and_no_cache_stay_in_the_image() -> None:
    assert not re.search(r"RAY_AUTH_TOKEN\s*=", RECIPE.read_text())
    assert installs()
    assert all("--no-cache-dir" in line for line in installs())


@pytest.mark.slow
def test_install_lines_in_a_new_environment(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for sources, target in copied():
        if not target.startswith("/"):
            for source in sources:
                place = context / target / (source if target in {".", "./"} else "")
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
                copy(ROOT / source, place, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    inside = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    inside["PATH"] = f"{tmp_path / 'venv' / 'bin'}:{inside['PATH']}"
    for line in installs():
        subprocess.run(["sh", "-ec", line], cwd=context, env=inside, check=True)
    shutil.rmtree(context)
    for command in ("udc-ray --version", "python -c 'import ray, torch, udc_ray_cluster.pool'"):
        subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=inside, check=True)
