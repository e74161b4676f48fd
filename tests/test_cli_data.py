"""``show``, ``check-data`` and ``psf`` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
import torch
from command_line import call
from safetensors.torch import load_file

from udc_ray.models import build

PSF = Path(__file__).parent.parent / "udc_ray" / "data" / "psf_zte_axon20_estimated_113.npy"


def test_show_tells_what_a_checkpoint_is_and_exports_it(tmp_path: Path) -> None:
    state = build("srudc_l").state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "net.pth")
    answer = call("show", tmp_path / "net.pth", "--export", tmp_path / "net.safetensors")
    assert answer.code == 0 and "SRUDC-l" in answer.out and "fits      yes" in answer.out
    assert load_file(tmp_path / "net.safetensors").keys() == state.keys()
    again = call("show", tmp_path / "net.safetensors", "--json")
    found = json.loads(again.out)
    assert (found["network"], found["difference"], found["keys"]) == ("srudc_l", None, 2082)
    refused = call("show", tmp_path / "net.pth", "--export", tmp_path / "net.safetensors")
    assert refused.code == 2 and "is there already" in refused.err


def test_show_names_the_first_key_that_does_not_fit(tmp_path: Path) -> None:
    state = build("discnet").state_dict()
    del state["final_conv.0.bias"]
    torch.save(state, tmp_path / "net.pth")
    assert "no: final_conv.0.bias is missing" in call("show", tmp_path / "net.pth").out
    torch.save({"a": torch.zeros(2)}, tmp_path / "net.pth")
    assert "none that is known here" in call("show", tmp_path / "net.pth").out


def test_check_data_tells_layout_and_problems(tmp_path: Path) -> None:
    root = trees.udc_2020(tmp_path / "set")
    sound = call("check-data", root, "--sheet", tmp_path / "sheet.png")
    assert sound.code == 0 and "udc-2020" in sound.out and "problem" not in sound.out
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    next(root.rglob("LQ/*.png")).unlink()
    answer = call("check-data", root, "--json")
    assert answer.code == 1 and any(p["kind"] == "unpaired" for p in json.loads(answer.out)["problems"])
    assert call("check-data", tmp_path / "nothing").code == 2


def test_psf_describes_one_and_codes_many(tmp_path: Path) -> None:
    answer = call("psf", PSF, "--figure", tmp_path / "psf.png")
    assert answer.code == 0 and "113x113" in answer.out
    assert (tmp_path / "psf.png").read_bytes().startswith(b"\x89PNG")
    base, folder = np.load(PSF), tmp_path / "set"
    folder.mkdir()
    for number in range(7):
        np.save(folder / f"a_psf_{number}.npy", np.roll(base, number, axis=number % 2))
    coded = call("psf", folder, "--codes", tmp_path / "codes")
    assert coded.code == 0 and "warning" in coded.out
    assert sorted(p.name for p in (tmp_path / "codes").iterdir())[:2] == ["a_code_0.npy", "a_code_1.npy"]
    later = call("psf", folder, "--codes", tmp_path / "again", "--basis", tmp_path / "codes" / "basis.npz", "--json")
    first, second = (np.load(tmp_path / where / "a_code_3.npy") for where in ("codes", "again"))
    assert np.allclose(first, second) and len(json.loads(later.out)["psfs"]) == 7


@pytest.mark.parametrize("command", [["show", "nowhere.pth"], ["psf", "nowhere.npy"], ["check-data", "nowhere"]])
def test_what_is_not_there_is_one_message(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(*command)
    assert (answer.code, answer.out) == (2, "") and "Traceback" not in answer.err
