"""The commands beside evaluate, and how trouble is told."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import TWO_IMAGES, call
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from udc_ray.errors import DeviceMemoryError, SpecError
from udc_ray.spec import RunSpec
from udc_ray.training.crops import split_names
from udc_ray.trouble import explain

ROOT = Path(__file__).parent.parent
VOLATILE = ["seconds", "host", "retries", "queries_reexecuted"]
HEAVY = {"torch", "ray", "numpy", "pydantic", "rich", "yaml", "pyarrow", "diffusers", "PIL", "matplotlib"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", {"default", "identity", "nafnet"}),
        ("attacks", {"noise", "fgsm", "pgd", "cw", "ssim-pgd", "simba", "square"}),
        ("defenses", {"none", "jpeg", "median", "ddim", "ddpm", "gaussian-noise", "identity"}),
        ("data", {"shipped", "PATH", "display toled", "display poled", "display zte"}),
    ],
)
def test_list(kind: str, names: set[str]) -> None:
    entries = json.loads(call("list", kind, "--json").out)
    assert names <= {entry["name"] for entry in entries}
    table = call("list", kind)
    assert (table.code, table.err) == (0, "")
    for name in names:
        assert name in table.out


def test_simulate(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48), (90, 120, 30)).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", tmp_path / "out", "--display", "poled", "--psf", tmp_path / "psf.png"]
    answer = call("simulate", *words)
    assert (answer.code, answer.err) == (0, "")
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (48, 48)
    assert (tmp_path / "psf.png").read_bytes().startswith(b"\x89PNG")
    again = call("simulate", *words)
    assert (again.code, again.out) == (2, "")
    refused = call("simulate", tmp_path / "a.png", tmp_path / "halo", "--light-source")
    assert refused.code == 2
    assert not (tmp_path / "halo").exists()


def test_train(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    tune = sorted(split_names("tune"))[0]
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for name in (tune, "own"):
        Image.fromarray(noise).save(photos / f"{name}.png")
    words = ["train", "restorer", "--photos", photos, "--out", out, "--batch", "1", "--crop", "16", "--threads", "1"]
    paused = call(*words, "--steps", "2", "--max-hours", "0")
    assert paused.code == 0
    assert "not finished" in paused.out
    answer = call(*words, "--steps", "2")
    assert answer.code == 0
    assert json.loads((out / "card.json").read_text())["steps"] == 2
    assert (out / "restorer.safetensors").stat().st_size > 1e6
    refused = call(*words, "--steps", "3")
    assert (refused.code, refused.out) == (2, "")
    nowhere = call("train", "restorer", "--photos", tmp_path / "none", "--out", tmp_path / "new", "--steps", "1")
    assert (nowhere.code, nowhere.out) == (2, "")
    assert "none" in nowhere.err
    assert call(*words, "--steps", "2", "--rate", "-1").code == 2


def test_explained_errors() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(dict[str, int]).validate_python({"a": "x"})
    wrapped = RuntimeError("a remote traceback")
    wrapped.cause = SpecError("inner", "because", "that")  # type: ignore[attr-defined]  # as Ray does
    cases: list[tuple[BaseException, str]] = [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device"),
        (OSError("cannot identify image file"), "cannot identify image file"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"), "gone: No such file"),
        (MemoryError(), "out of memory"),
        (ModuleNotFoundError("No module named 'ray'"), "No module named 'ray'"),
        (DeviceMemoryError("batches of 2 fit"), "batches of 2 fit"),
        (refused.value, "a: Input should be a valid integer"),
        (SpecError("mine", "c", "d"), "mine"),
        (wrapped, "inner"),
    ]
    for error, said in cases:
        explained = explain(error)
        assert explained is not None
        assert said in explained.what
        assert explained.cause or isinstance(error, DeviceMemoryError)
    assert explain(ValueError("a defect")) is None


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied", "/x"), MemoryError("8 GB"), OSError("odd")]
)
def test_errors_of_the_machine_exit_with_2(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: RunSpec) -> None:
        raise error

    monkeypatch.setattr("udc_ray.prepare.prepare", fail)
    answer = call("evaluate", *TWO_IMAGES)
    assert (answer.code, answer.out) == (2, "")
    assert [line.split(":")[0] for line in answer.err.splitlines()] == ["udc-ray", "likely cause", "what to change"]


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: RunSpec) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("udc_ray.prepare.prepare", fail)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        call("evaluate", *TWO_IMAGES)


def test_notes_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from udc_ray_cli.progress import RunProgress

    text = "writing to runs/[bold]x[/bold]/" + "long/" * 60
    RunProgress().note(text)
    assert capsys.readouterr().err == f"{text}\n"
