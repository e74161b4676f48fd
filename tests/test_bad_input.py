"""Bad input: one message, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import SMALL, TWO_IMAGES, Answer, call, files_below
from PIL import Image
from safetensors.torch import save_file

Words = list[str | Path]
GREY, RGB, RGBA = (48, 48), (48, 48, 3), (48, 48, 4)
CLEAN = ("--in-process", "--model", "identity", "--display", "toled", "--attack", "noise", "--defense", "none")


def pixels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def assert_refused(answer: Answer, *said: str) -> None:
    """One message: what, then the likely cause or what to change; nothing else."""
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert lines[0].startswith("udc-ray: ")
    assert [line.split(":")[0] for line in lines[1:]] in (
        ["likely cause", "what to change"],
        ["likely cause"],
        ["what to change"],
    )
    assert "Traceback" not in answer.err
    for text in said:
        assert text in answer.err


def missing_image(folder: Path) -> Words:
    return ["--data", folder / "no-such.png"]


def missing_folder(folder: Path) -> Words:
    return ["--data", folder / "no-such"]


def dead_link(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels(RGB))
    (folder / "photos" / "b.png").symlink_to(folder / "gone.png")
    return ["--data", folder / "photos"]


def truncated_image(folder: Path) -> Words:
    path = save(folder / "photos" / "a.png", pixels(RGB))
    path.write_bytes(path.read_bytes()[:2000])
    return ["--data", folder / "photos"]


def empty_image(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels(RGB)).write_bytes(b"")
    return ["--data", folder / "photos"]


def text_as_image(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels(RGB)).write_text("no picture")
    return ["--data", folder / "photos"]


def transparent_image(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels(RGBA))
    return ["--data", folder / "photos"]


def empty_folder(folder: Path) -> Words:
    (folder / "photos").mkdir()
    return ["--data", folder / "photos"]


def nan_in_array(folder: Path) -> Words:
    values = np.ones(RGB, dtype=np.float32)
    values[3, 4, 1] = np.nan
    (folder / "photos").mkdir()
    np.save(folder / "photos" / "a.npy", values)
    return ["--data", folder / "photos"]


def pickled_array(folder: Path) -> Words:
    (folder / "photos").mkdir()
    np.save(folder / "photos" / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return ["--data", folder / "photos"]


def tiny_image(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels((8, 9, 3)))
    return ["--data", folder / "photos"]


def crop_beyond_image(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels(RGB))
    return ["--data", folder / "photos", "--set", "data.size=64"]


def unknown_display(folder: Path) -> Words:
    save(folder / "photos" / "a.png", pixels(RGB))
    return ["--data", folder / "photos", "--display", "poledd"]


def spec_that_is_no_yaml(folder: Path) -> Words:
    (folder / "spec.yaml").write_text("attacks: [pgd\nseed: 3")
    return [folder / "spec.yaml"]


def missing_spec(folder: Path) -> Words:
    return [folder / "no-such.yaml"]


def weights_without_file(folder: Path) -> Words:
    return ["--model", "nafnet", "--weights", folder / "no-such.pth"]


def weights_of_another_network(folder: Path) -> Words:
    save_file({"conv_first.weight": torch.zeros(4, 3, 3, 3)}, folder / "w.safetensors")
    return ["--model", "default", "--weights", folder / "w.safetensors"]


def weights_file_of_another_network(folder: Path) -> Words:
    torch.save({"params": {"conv_first.weight": torch.zeros(4, 3, 3, 3)}}, folder / "w.pth")
    return ["--model", folder / "w.pth"]


class Payload:
    """Code in a pickle: writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickle_with_code(folder: Path) -> Words:
    (folder / "w.pth").write_bytes(pickle.dumps({"params": Payload(folder / "executed")}, protocol=2))
    return ["--model", folder / "w.pth"]


def torch_file_with_code(folder: Path) -> Words:
    torch.save({"params": Payload(folder / "executed")}, folder / "w.pth")
    return ["--model", folder / "w.pth"]


def truncated_weights(folder: Path) -> Words:
    save_file({"intro.weight": torch.zeros(4, 3, 3, 3)}, folder / "w.safetensors")
    (folder / "w.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:60])
    return ["--model", folder / "w.safetensors"]


def unknown_attack(folder: Path) -> Words:
    return ["--attack", "sqare"]


def secret_in_uri(folder: Path) -> Words:
    return ["--data", "https://me:planted-secret@example.org/x"]


CASES: list[tuple[Callable[[Path], Words], list[str]]] = [
    (missing_image, ["no-such.png", "a wrong path"]),
    (missing_folder, ["no-such", "a wrong path"]),
    (dead_link, ["b.png"]),
    (truncated_image, ["a.png", "cut off"]),
    (empty_image, ["a.png", "empty"]),
    (text_as_image, ["a.png", "not what its name says"]),
    (transparent_image, ["a.png", "transparent"]),
    (empty_folder, ["no images in"]),
    (nan_in_array, ["a.npy", "1 values that are NaN"]),
    (pickled_array, ["a.npy", "never loaded"]),
    (tiny_image, ["9x8", "too small"]),
    (crop_beyond_image, ["a.png", "64"]),
    (unknown_display, ["did you mean poled"]),
    (spec_that_is_no_yaml, ["spec.yaml", "line 2"]),
    (missing_spec, ["no-such.yaml"]),
    (weights_without_file, ["no-such.pth"]),
    (weights_of_another_network, ["intro.weight is missing"]),
    (weights_file_of_another_network, ["w.pth", "another network", "SwinIR"]),
    (pickle_with_code, ["w.pth", "code"]),
    (torch_file_with_code, ["w.pth", "code"]),
    (truncated_weights, ["w.safetensors", "cut off"]),
    (unknown_attack, ["did you mean square"]),
    (secret_in_uri, ["secret", "environment"]),
]


@pytest.mark.parametrize(("make", "said"), CASES, ids=lambda v: v.__name__ if callable(v) else "")
def test_bad_input(make: Callable[[Path], Words], said: list[str], tmp_path: Path) -> None:
    words = make(tmp_path)
    before = files_below(tmp_path)
    base = CLEAN if "--model" not in words else CLEAN[:1] + CLEAN[3:]
    answer = call("evaluate", *base, *words, "--out", tmp_path / "runs" / "run")
    assert_refused(answer, *said)
    assert files_below(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "executed").exists()
    assert "planted-secret" not in answer.err


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def test_sizes_that_differ_within_a_pair(tmp_path: Path) -> None:
    save(tmp_path / "pair" / "LQ" / "a.png", pixels(RGB))
    save(tmp_path / "pair" / "HQ" / "a.png", pixels((48, 50, 3)))
    words = ["--in-process", "--model", "identity", "--data", tmp_path / "pair", "--attack", "noise"]
    answer = call("evaluate", *words, "--out", tmp_path / "run")
    assert_refused(answer, "48 x 48 and 48 x 50", "HQ/a.png")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_says_nothing_about_itself(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png", pixels(RGB))
    words = ["--in-process", "--model", "identity", "--data", tmp_path / "photos", "--attack", "noise"]
    assert_refused(call("evaluate", *words, "--out", tmp_path / "run"), "--display", "--no-reference")


def test_grey_16_bit_and_opaque_images_are_accepted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    save(photos / "grey.png", pixels(GREY))
    save(photos / "deep.png", pixels(GREY).astype(np.uint16) * 257)
    opaque = pixels(RGBA)
    opaque[..., 3] = 255
    save(photos / "opaque.png", opaque)
    save(photos / "grey-alpha.png", opaque[..., [0, 3]])
    answer = call("evaluate", *CLEAN, "--data", photos, "--json", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert '"images": 4' in answer.out


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bad") / "run"
    assert call("evaluate", *TWO_IMAGES, "--out", out).code == 0
    return out


def test_a_run_directory_of_another_spec_is_refused_and_unchanged(finished_run: Path) -> None:
    before = files_below(finished_run)
    answer = call("evaluate", *TWO_IMAGES, "--seed", "1", "--out", finished_run)
    assert_refused(answer, "another run", "seed")
    assert files_below(finished_run) == before


def test_an_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert_refused(call("evaluate", *TWO_IMAGES, "--out", tmp_path / "run"), "is a file")
    assert_refused(call("evaluate", *TWO_IMAGES, "--out", tmp_path / "run" / "below"), "cannot")
    assert (tmp_path / "run").read_text() == "mine"


def test_an_out_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert_refused(call("evaluate", *TWO_IMAGES, "--out", tmp_path), "thesis.txt")
    assert files_below(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("command", ["--resume", "report"])
def test_what_is_no_run_directory(command: str, tmp_path: Path) -> None:
    words = ["report", tmp_path] if command == "report" else ["evaluate", "--resume", tmp_path]
    assert_refused(call(*words), "no run directory")
    assert not list(tmp_path.iterdir())


def test_a_spec_in_the_run_directory_that_was_spoilt(finished_run: Path) -> None:
    spec = finished_run / "spec.yaml"
    good = spec.read_bytes()
    try:
        spec.write_bytes(good.replace(b"seed:", b"sed:"))
        assert_refused(call("report", finished_run), "spec.yaml")
        assert_refused(call("evaluate", "--resume", finished_run, "--in-process"), "spec.yaml")
    finally:
        spec.write_bytes(good)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "no permission"),
    ],
)
def test_a_disk_that_refuses(number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(os, "replace", refuse)
    assert_refused(call("evaluate", *TWO_IMAGES, "--out", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, replace = tmp_path / "run", os.replace

    def refuse_second_part(source: str | Path, target: str | Path) -> None:
        if Path(target).suffix == ".parquet" and list(out.glob("parts/*.parquet")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_second_part)
    answer = call(
        "evaluate", *SMALL, "--limit", "1", "--attack", "noise", "--attack", "fgsm", "--defense", "none", "--out", out
    )
    monkeypatch.undo()
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("udc-ray: ") == 1
    assert "the disk is full" in answer.err
    assert "Traceback" not in answer.err
    assert len(list(out.glob("parts/*.parquet"))) == 1
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp") or p.name == "lock"]
    assert call("evaluate", "--resume", out, "--in-process").code == 0
