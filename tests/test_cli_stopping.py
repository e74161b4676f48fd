"""Ctrl-C and SIGTERM, from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import SMALL, TWO_IMAGES, Answer, call, resume_command

import udc_ray_cli
import udc_ray_cluster
from udc_ray import run as run_module
from udc_ray.errors import Interrupted, UserError
from udc_ray.run import Finished
from udc_ray.spec import RunSpec

ROOT = Path(__file__).parent.parent
VOLATILE = ["seconds", "host", "retries", "queries_reexecuted"]
HEAVY = {"torch", "ray", "numpy", "pydantic", "rich", "yaml", "pyarrow", "diffusers", "PIL", "matplotlib"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[run_module.Settings] = []

    def interrupted(prepared: object, pool: object, listener: object, settings: run_module.Settings) -> Finished:
        seen.append(settings)
        raise Interrupted(number, settings.out)

    monkeypatch.setattr("udc_ray.run.execute", interrupted)
    monkeypatch.chdir(tmp_path)
    answer = call("evaluate", *TWO_IMAGES, "--out", "my run", "--strict", "--max-hours", "2")
    assert (answer.code, answer.out) == (code, "")
    expected = ["udc-ray", "evaluate", "--resume", str(tmp_path / "my run"), "--in-process", "--strict"]
    assert resume_command(answer.err) == expected
    assert (seen[0].out, seen[0].max_hours, seen[0].retry_failed) == ("my run", 2.0, False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_run_ends_it_quietly(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(spec: RunSpec) -> None:
        try:
            signal.raise_signal(number)
        except Exception:  # as code does that turns any failure into a message about a file
            raise UserError("the file is damaged") from None

    before = signal.getsignal(number)
    monkeypatch.setattr("udc_ray.prepare.prepare", slow)
    answer = call("evaluate", *TWO_IMAGES)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err == f"udc-ray: stopped by {signal.Signals(number).name}\n"
    assert signal.getsignal(number) is before


def test_ctrl_c_drains_and_the_printed_command_completes_the_run(tmp_path: Path) -> None:
    words = [*SMALL, "--limit", "4", "--attack", "noise", "--attack", "square:budget=500", "--defense", "none"]
    words += ["--set", "run.chunk=1", "--set", "run.micro_batch=2"]
    out, whole = tmp_path / "run", tmp_path / "whole"
    stopped = _interrupt_after_a_part([*words, "--out", str(out)], out)
    assert stopped.code == 130, stopped.err
    assert stopped.out == ""
    kept = len(list(out.glob("parts/*.parquet")))
    assert 1 <= kept < 8
    assert call(*resume_command(stopped.err)[1:]).code == 0
    assert call("evaluate", *words, "--out", whole).code == 0
    first, second = (pq.read_table(folder / "results.parquet").drop_columns(VOLATILE) for folder in (out, whole))
    assert first.num_rows == 8
    assert first.equals(second)
    assert len(list(out.glob("parts/*.parquet"))) == 8


def _interrupt_after_a_part(words: list[str], out: Path) -> Answer:
    roots = [ROOT, *(Path(next(iter(p.__path__))).parent for p in (udc_ray_cli, udc_ray_cluster))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots)), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "udc_ray_cli.main", "evaluate", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(out.glob("parts/*.parquet")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return Answer(code=process.returncode, out=output, err=errors)
