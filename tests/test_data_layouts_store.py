"""Published data sets in an object store: recognised and read as on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import data_trees as trees
import pytest
import torch
from store_doubles import Store, running_store
from test_data_layouts import layout_of, opened, truth_of

from udc_ray import location


class TestStore:
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setenv(location.CACHE, str(tmp_path / "cache"))
        with running_store() as running:
            yield running

    @pytest.mark.parametrize("make", [trees.synth, trees.udc_sit, trees.udc_2020, trees.udc_2020_mat])
    def test_a_tree_in_a_store_is_the_local_one(
        self, store: Store, tmp_path: Path, make: Callable[[Path], Path]
    ) -> None:
        root = make(tmp_path / "set")
        uri = store.mirror(root, "set")
        here, there = opened(root), opened(uri)
        assert layout_of(root) == layout_of(uri)
        assert here.image_ids == there.image_ids and here.file_hashes() == there.file_hashes()
        for image_id in here.image_ids:
            assert torch.equal(here.load(image_id).degraded, there.load(image_id).degraded)
            assert torch.equal(truth_of(here.load(image_id)), truth_of(there.load(image_id)))
