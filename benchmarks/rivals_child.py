"""Other tools' Square attack on the same classifier, in an interpreter that has them and need not have this package.

``PYTHON rivals_child.py FOLDER``: FOLDER holds what `benchmarks.rivals` wrote. A line of the answer is a row in JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Measured = dict[str, float]
"""What `timed` found: useful queries, rows that the model was given, seconds, and bare rows a second."""


class Beside(nn.Module):
    """A model that times a full bare batch between the calls of an attack, now and then.

    So the bare rate is that of the same seconds, the same process and the same thread; its time is no part of the
    attack's.

    Args:
        model: the model, in evaluation mode.
        x_BCHW: the bare batch.
        every: rows after which the next bare batch is due.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], x_BCHW: Tensor, every: int) -> None:
        super().__init__()
        self.model, self.x_BCHW, self.every = model, x_BCHW, every
        self.rows, self.due = 0, 0
        self.bare_rows, self.bare_seconds = 0, 0.0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The model's answer."""
        if self.rows >= self.due:
            self.due = self.rows + self.every
            self.bare()
        self.rows += len(x_BCHW)
        return self.model(x_BCHW)

    def bare(self) -> None:
        """One bare batch."""
        started = time.perf_counter()
        with torch.no_grad():
            self.model(self.x_BCHW)
        self.bare_seconds += time.perf_counter() - started
        self.bare_rows += len(self.x_BCHW)


def timed(beside: Beside, attack: Callable[[], int]) -> Measured:
    """Carry out an attack that returns how many queries it needed."""
    beside.model(beside.x_BCHW)  # the first pass of a process is slow
    started = time.perf_counter()
    useful = attack()
    seconds = time.perf_counter() - started - beside.bare_seconds
    bare_rate = beside.bare_rows / beside.bare_seconds
    return {"useful": useful, "rows": beside.rows, "seconds": seconds, "bare_per_s": bare_rate}


def torchattacks_square(beside: Beside, x_NCHW: Tensor, y_N: Tensor, settings: dict[str, Any]) -> int:
    """Square of torchattacks, a group of images at a time."""
    import torchattacks  # type: ignore[import-not-found]  # the other interpreter has it

    class Counting(torchattacks.Square):  # type: ignore[misc]  # its base is Any here
        """Counts what the search asks; every image that it asks for is not finished."""

        useful = 0

        def margin_and_loss(self, x: Tensor, y: Tensor) -> Any:
            self.useful += len(x)
            return super().margin_and_loss(x, y)

    budget, eps, p = settings["budget"], settings["eps"], settings["p"]
    # its first query is not one of the iterations
    attack = Counting(beside, eps=eps, n_queries=budget - 1, p_init=p, seed=settings["seed"])
    for start in range(0, len(x_NCHW), settings["slots"]):
        attack(x_NCHW[start : start + settings["slots"]], y_N[start : start + settings["slots"]])
    return int(attack.useful)


def art_square(beside: Beside, x_NCHW: Tensor, y_N: Tensor, settings: dict[str, Any]) -> int:
    """Square of the Adversarial Robustness Toolbox, a group of images at a time."""
    import numpy as np
    from art.attacks.evasion import SquareAttack  # type: ignore[import-not-found]  # the other interpreter has it
    from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]  # as above

    np.random.seed(settings["seed"])
    classifier = PyTorchClassifier(
        beside, nn.CrossEntropyLoss(), tuple(x_NCHW.shape[1:]), settings["classes"], clip_values=(0.0, 1.0)
    )
    asked: list[int] = []

    def loss(x: Any, y: Any) -> Any:
        asked.append(len(x))
        return attack._get_logits_diff(x, y)

    attack = SquareAttack(
        classifier,
        loss=loss,
        max_iter=settings["budget"] - 1,
        eps=settings["eps"],
        p_init=settings["p"],
        batch_size=settings["slots"],
        verbose=False,
    )
    for start in range(0, len(x_NCHW), settings["slots"]):
        group = slice(start, start + settings["slots"])
        attack.generate(x_NCHW[group].numpy(), y_N[group].numpy())
    return sum(asked[1::2])  # of each pair the first is the loss of the best image so far, which is known


Attack = Callable[[Beside, Tensor, Tensor, dict[str, Any]], int]
ATTACKS: dict[str, Attack] = {"torchattacks": torchattacks_square, "adversarial-robustness-toolbox": art_square}


def main(folder: Path) -> None:
    """Carry out every attack in turn, `rounds` times, and say what each took."""
    torch.set_num_threads(1)
    settings = json.loads((folder / "settings.json").read_text())
    model = load_network(Path(settings["network"]), folder / "weights.pt")
    given = torch.load(folder / "images.pt", weights_only=True)
    for number in range(settings["rounds"]):
        for name, attack in ATTACKS.items():
            print(json.dumps({"name": name, **_round(attack, model, given, {**settings, "seed": number})}), flush=True)


def _round(
    attack: Attack, model: nn.Module, given: dict[str, Tensor], settings: dict[str, Any]
) -> Measured | dict[str, str]:
    x_NCHW, y_N = given["x_NCHW"], given["y_N"]
    beside = Beside(model, x_NCHW[: settings["slots"]], settings["every"])
    try:
        return timed(beside, lambda: attack(beside, x_NCHW, y_N, settings))
    except ImportError as error:
        return {"missing": str(error)}


def load_network(source: Path, weights: Path) -> nn.Module:
    """The classifier, from the file of its class."""
    found = importlib.util.spec_from_file_location("network", source)
    if found is None or found.loader is None:
        raise ImportError(f"{source} is no module")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    network: nn.Module = module.CifarResNet()
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().requires_grad_(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
