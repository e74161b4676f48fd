"""Damaged data and weights at the command line: exit code 2, one message, no traceback, nothing left behind."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Answer, call
from safetensors.torch import save
from test_data_malformed import CASES, FORMATS

from udc_ray.models import build

RUN = ("--in-process", "--attack", "noise", "--defense", "none", "--set", "perceptual=none")


def assert_refused(answer: Answer, out: Path) -> None:
    assert (answer.code, answer.out) == (2, ""), answer.err
    assert "Traceback" not in answer.err
    assert answer.err.count("udc-ray: ") == 1
    assert not out.exists()


@pytest.mark.parametrize(("form", "case"), CASES)
def test_damaged_data(tmp_path: Path, form: str, case: str) -> None:
    make, cases = FORMATS[form]
    root, victim = make(tmp_path / "set")
    damage, message = cases[case]
    damage(victim)
    channels = ("--model", "doubles:Conv", "--set", "model.channels=4") if form == "raw" else ("--model", "identity")
    out = tmp_path / "run"
    answer = call("evaluate", *RUN, *channels, "--data", str(root), "--out", out)
    assert_refused(answer, out)
    assert re.search(message, answer.err), answer.err


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def discnet() -> dict[str, torch.Tensor]:
    return dict(build("discnet").state_dict())


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"\0" * 64)
    return buffer.getvalue()


class Payload:
    """Code in a pickle."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("run",)


WEIGHTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zero bytes": ("w.pth", lambda: b""),
    "truncated": ("w.pth", lambda: saved(discnet())[:5000]),
    "truncated safetensors": ("w.safetensors", lambda: save(discnet())[:5000]),
    "text": ("w.pth", lambda: b"this is no checkpoint"),
    "another format": ("w.safetensors", lambda: saved(discnet())),
    "a header of terabytes": ("w.safetensors", lambda: (2**42).to_bytes(8, "little") + b"{}"),
    "code": ("w.pth", lambda: pickle.dumps(Payload())),
    "code in an archive": ("w.pth", lambda: saved(Payload())),
    "a zip that is none of torch's": ("w.pth", lambda: zipped("data/x")),
    "a list": ("w.pth", lambda: saved([torch.zeros(1)])),
    "no tensor": ("w.pth", lambda: saved({"conv_11.0.weight": 1})),
    "empty": ("w.pth", lambda: saved({"params": {}})),
    "another network": ("w.safetensors", lambda: save(dict(build("bnudc").state_dict()))),
    "nan": ("w.pth", lambda: saved(discnet() | {"conv_11.0.bias": torch.full((32,), torch.nan)})),
    "a key less": ("w.pth", lambda: saved({k: v for k, v in discnet().items() if k != "final_conv.0.bias"})),
    "another shape": ("w.pth", lambda: saved(discnet() | {"conv_12.conv1.bias": torch.zeros(7)})),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_damaged_weights(tmp_path: Path, case: str) -> None:
    name, make = WEIGHTS[case]
    (tmp_path / name).write_bytes(make())
    out = tmp_path / "run"
    answer = call("evaluate", *RUN, "--model", "discnet", "--weights", str(tmp_path / name), "--out", out)
    assert_refused(answer, out)
    assert name in answer.err


def test_links_that_lead_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "w.pth").symlink_to(tmp_path / "w.pth")
    out = tmp_path / "run"
    assert_refused(
        call("evaluate", *RUN, "--model", "discnet", "--weights", str(tmp_path / "w.pth"), "--out", out), out
    )


def test_there_are_sixty() -> None:
    assert len(CASES) + len(WEIGHTS) >= 60
