"""Trial images: what a noise level is chosen on; no pixel of them is evaluated."""

from __future__ import annotations

import hashlib
from itertools import islice, zip_longest

from torch import Tensor

from udc_ray import rng
from udc_ray.data.base import Dataset, Sample
from udc_ray.data.open import open_dataset
from udc_ray.errors import SpecError
from udc_ray.spec import RunSpec

Window = tuple[int, int]
"""Top and left of a square."""


def trial_samples(spec: RunSpec, evaluated: Dataset, count: int, edge: int) -> list[Sample]:
    """Images that are not evaluated, of the data that are.

    Squares of the images that the limit did not pick; where these are fewer than `count`, also squares of what lies
    around the centre crops that are evaluated. Of every image one square first, then a second one, and so on;
    squares overlap one another only where there are too few others. Labelled images are taken whole.

    Args:
        spec: the run.
        evaluated: its images.
        count: how many are wanted.
        edge: edge of the squares in px.

    Raises:
        SpecError: there are too few.
    """
    data = _whole(spec, evaluated, count)
    ranked = sorted(data.image_ids, key=lambda i: hashlib.sha256(f"trials/{i}".encode()).digest())
    picked = set(evaluated.image_ids)
    fresh = [i for i in ranked if i not in picked]
    sources = fresh[:count] if len(fresh) >= count else [*fresh, *(i for i in ranked if i in picked)]
    chosen: dict[tuple[str, Window], None] = {}
    for stride in (edge, max(1, edge // 2)):
        windows = {i: _windows(spec, data, i, (edge, stride), evaluated=i in picked) for i in sources}
        turns = zip_longest(*([(i, window) for window in windows[i]] for i in sources))
        chosen |= dict.fromkeys(pair for turn in turns for pair in turn if pair is not None)
        if len(chosen) >= count:
            return [_cut(data.load(image_id), window, edge) for image_id, window in islice(chosen, count)]
    raise SpecError(
        f"there are {len(chosen)} trial images of {edge} px outside those that are evaluated; {count} are wanted",
        "the run evaluates nearly all of its data, and a level must not be chosen on what is evaluated",
        "set a limit or a smaller data.size, or give the selector fewer trials or a smaller edge",
    )


def squares(image_CHW: Tensor, edge: int) -> list[Tensor]:
    """The squares of a grid over an image; the image itself where it is smaller."""
    height, width = image_CHW.shape[-2:]
    if min(height, width) < edge:
        return [image_CHW]
    return [
        image_CHW[..., top : top + edge, left : left + edge].contiguous()
        for top, left in _grid(height, width, edge, edge)
    ]


def _grid(height: int, width: int, edge: int, stride: int) -> list[Window]:
    tops, lefts = range(0, height - edge + 1, stride), range(0, width - edge + 1, stride)
    return [(top, left) for top in tops for left in lefts]


def _whole(spec: RunSpec, evaluated: Dataset, count: int) -> Dataset:
    """The data of the run at their full size: what is evaluated, and up to `count` images more."""
    params = {key: value for key, value in spec.data.params.items() if key != "size"}
    entry = spec.data.model_copy(update={"params": params})
    limit = None if spec.limit is None else spec.limit + count
    return open_dataset(entry, limit, spec.seed, channels=evaluated.channels)


def _windows(spec: RunSpec, data: Dataset, image_id: str, grid: tuple[int, int], *, evaluated: bool) -> list[Window]:
    """Squares of one image that share no pixel with what is evaluated of it, in a keyed order.

    Args:
        spec: the run.
        data: its images at full size.
        image_id: the image.
        grid: edge of the squares, and the step between them.
        evaluated: whether its centre crop is evaluated, or all of it where the run takes none.
    """
    edge, stride = grid
    size: int | None = spec.data.params.get("size")
    if evaluated and size is None:
        return []
    sample = data.load(image_id)
    if _is_labelled(sample):
        return [] if evaluated else [(0, 0)]
    height, width = sample.degraded.shape[-2:]
    found = _grid(height, width, edge, stride)
    if evaluated and size is not None:
        top, left = (height - size) // 2, (width - size) // 2
        found = [(t, s) for t, s in found if not (-edge < t - top < size and -edge < s - left < size)]
    order = rng.generator(spec.seed, image_id, "select/trials", step=stride).permutation(len(found))
    return [found[n] for n in order]


def _cut(sample: Sample, window: Window, edge: int) -> Sample:
    """One square of an image and of its truth, under an id of its own."""
    top, left = window
    image_id = f"{sample.image_id}@{top},{left}"
    if _is_labelled(sample):
        return Sample(image_id=image_id, degraded=sample.degraded, truth=sample.truth)

    def crop(image: Tensor) -> Tensor:
        return image[..., top : top + edge, left : left + edge].contiguous()

    truth = None if sample.truth is None else crop(sample.truth)
    return Sample(image_id=image_id, degraded=crop(sample.degraded), truth=truth)


def _is_labelled(sample: Sample) -> bool:
    return sample.truth is not None and sample.truth.dim() == 0
