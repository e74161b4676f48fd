"""Trees in the layouts of published data sets, evaluated end to end at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import data_trees as trees
import pytest
from command_line import call

from udc_ray.rundir import RunDirectory

RUN = ("--in-process", "--attack", "noise", "--attack", "fgsm", "--defense", "none", "--json")
RGB = ("--model", "doubles:Conv")
PLANES = ("--model", "doubles:Conv", "--set", "model.channels=4")


@pytest.mark.parametrize(
    ("make", "words", "protocol"),
    [
        (trees.synth, RGB, "discnet"),
        (trees.synth, RGB, "udcunet"),
        (trees.udc_2020, RGB, "udc2020"),
        (trees.udc_2020_mat, RGB, "strict"),
        (trees.udc_sit, PLANES, "sit"),
    ],
)
def test_a_tree_is_evaluated(
    make: Callable[[Path], Path], words: tuple[str, ...], protocol: str, tmp_path: Path
) -> None:
    root, out = make(tmp_path / "set"), tmp_path / "run"
    answer = call("evaluate", *RUN, *words, "--data", root, "--set", f"protocol={protocol}", "--out", out)
    assert answer.code == 0, answer.err
    summary = json.loads(answer.out)
    assert summary["protocol"] == protocol
    records = RunDirectory.read(str(out)).records()
    assert len({r.image_id for r in records}) >= 2
    for record in records:
        assert record.error is None and record.protocol == protocol
        assert record.psnr_clean is not None and record.psnr_adv is not None and record.psnr_degraded is not None
        # without its border of 4 px a side of these images is below the window of SSIM
        assert (record.ssim_adv is None) == (protocol == "udcunet")
    attacked = [r for r in records if r.attack == "fgsm"]
    assert sum(r.psnr_adv < r.psnr_clean for r in attacked) > len(attacked) / 2  # type: ignore[operator]  # not None
