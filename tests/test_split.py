"""Photographs are in one part of the split only, and training never sees a shipped or a test one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_ray.data import shipped, simulate
from udc_ray.data.images import index_images
from udc_ray.training import crops

SPLIT = json.loads((simulate.HERE / "split.json").read_text())
PARTS = ("shipped", "test", "tune", "train")


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(PARTS, 2)))
def test_parts_share_no_photograph(one: str, other: str) -> None:
    for source in SPLIT[one].keys() & SPLIT[other].keys():
        assert not set(SPLIT[one][source]) & set(SPLIT[other][source])
    assert not crops.split_names(one) & crops.split_names(other)  # files are told apart by stem alone


def test_no_name_is_listed_twice() -> None:
    for part in PARTS:
        for names in SPLIT[part].values():
            assert len(names) == len(set(names))


def test_the_lists_are_complete() -> None:
    assert len(SPLIT["test"]["kodak24"]) == 24
    assert len(SPLIT["shipped"]["gb82"]) == 12
    assert len(SPLIT["shipped"]["openexr"]) == 5
    counts = {"gb82": 23, "openexr": 11, "cid22": 184}  # GB82 without its two portraits
    for source, count in counts.items():
        assert sum(len(SPLIT[part].get(source, [])) for part in PARTS) == count


@pytest.mark.parametrize(("folder", "source"), [("ldr", "gb82"), ("hdr", "openexr")])
def test_shipped_files_are_the_shipped_list(folder: str, source: str) -> None:
    assert set(index_images(shipped.SAMPLES / folder)) == set(SPLIT["shipped"][source])


def test_training_reads_train_only(tmp_path: Path) -> None:
    names = [n for part in PARTS for listed in SPLIT[part].values() for n in listed][::5] + ["unlisted"]
    for part in PARTS:
        names.append(next(iter(SPLIT[part].values()))[0])
    for name in sorted(set(names)):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / f"{name}.png")
    np.savez(tmp_path / f"{SPLIT['shipped']['openexr'][0]}.npz", rgb=np.zeros((2, 2, 3), np.float16))
    read = {part: {p.name for p in crops.read_part([tmp_path], part)} for part in PARTS}
    elsewhere = crops.split_names("shipped") | crops.split_names("test") | crops.split_names("tune")
    assert read["train"] and not read["train"] & elsewhere
    assert "unlisted" in read["train"]
    assert read["tune"] and read["tune"] <= crops.split_names("tune")
    for one, other in itertools.combinations(PARTS, 2):
        assert not read[one] & read[other]
