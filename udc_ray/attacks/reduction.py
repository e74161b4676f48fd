"""From the image that a target returned to what an attack wanted to know of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_ray.attacks.objectives import Objective
from udc_ray.attacks.oracle import Row
from udc_ray.attacks.query import Answer


def tile_sums(output_CHW: Tensor, reference_CHW: Tensor, tile: int) -> NDArray[np.float64]:
    """Squared differences of the clamped output, summed over channels and tiles.

    Args:
        output_CHW: what came back, unclamped.
        reference_CHW: what it is compared with.
        tile: side of a tile in pixels; the last row and column of tiles may be smaller.

    Returns:
        Rows x columns of sums in float64; all of them together are C*H*W times the mean squared error.
    """
    squares = (output_CHW.clamp(0, 1).double() - reference_CHW.double()).square().sum(dim=0).cpu().numpy()
    height, width = squares.shape
    rows = np.add.reduceat(squares, range(0, height, tile), axis=0)
    sums: NDArray[np.float64] = np.add.reduceat(rows, range(0, width, tile), axis=1)
    return sums


def reduce_rows(
    output_NCHW: Tensor, rows: tuple[Row, ...], references: list[Tensor], objectives: dict[str, Objective]
) -> list[Answer]:
    """What each row wanted of its output.

    Every score is computed over the whole batch, so that its bits do not depend on who else is in it.

    Args:
        output_NCHW: outputs, one a row at least; those beyond the rows are padding.
        rows: whose they are.
        references: what each output is compared with, those of the padding too.
        objectives: by name.
    """
    reference_NCHW = torch.stack(references).to(output_NCHW.device)
    names = dict.fromkeys(row.objective for row in rows if row.wanted.kind != "tile-sums")
    scores = {name: objectives[name].score(output_NCHW, reference_NCHW).tolist() for name in names}
    return [_answer(row, output_NCHW[n], references[n], scores, n) for n, row in enumerate(rows)]


def _answer(row: Row, output_CHW: Tensor, reference_CHW: Tensor, scores: dict[str, list[float]], n: int) -> Answer:
    if row.wanted.kind == "tile-sums":
        return tile_sums(output_CHW, reference_CHW.to(output_CHW.device), row.wanted.tile)
    score = float(scores[row.objective][n])
    return float(score >= row.goal) if row.wanted.kind == "event" else score
