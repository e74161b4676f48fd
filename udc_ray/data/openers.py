"""From a recognised source to a data set; one function for each way in which images lie on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from udc_ray.data import folder, labelled, pairs, parts, simulate, stacks, synth, tree
from udc_ray.data.source import Source
from udc_ray.errors import DataError
from udc_ray.location import RemoteFile

AnyData = (
    folder.SimulatedFolder
    | folder.DegradedFolder
    | pairs.FolderPairs
    | synth.SynthFolder
    | stacks.StackPairs
    | labelled.LabelledImages
)
"""Every data set; see `udc_ray.data.base.Dataset`."""


def require_rgb(channels: int, why: str) -> None:
    """Refuse a model of raw planes where images are RGB."""
    if channels != 3:
        raise DataError(f"the model takes {channels} channels, {why}", change="give raw data (.npy, H x W x 4)")


def open_parts(source: Source, channels: int) -> AnyData:
    """One or several pairs of folders; the degraded sides alone with ``reference: false``."""
    if not source.params.reference:
        return _degraded(source, source.parts, channels)
    matched = parts.match(source.parts, source.params.part)
    _require_some(source, matched)
    without = [p.put(p.degraded.name) for p in source.parts if p.truth is None]
    found = pairs.open_matched(source.where, matched, channels, source.params.size)
    return replace(found, notes=(*found.notes, *(f"{name} has no truths and is left out" for name in without)))


def _degraded(source: Source, found: tuple[parts.Part, ...], channels: int) -> AnyData:
    only, size = source.params.part, source.params.size
    if only is None and len(found) == 1 and not found[0].prefix:
        return folder.open_degraded(found[0].degraded, channels, size)
    files = {p.put(i): f for p in found for i, f in folder.index_source(p.degraded).items()}
    chosen = {i: files[i] for i in sorted(files) if parts.lies_in(i, only)}
    if not chosen:
        raise _nothing(source, tuple(files))
    return folder.degraded_of(folder.name_of(source.where), chosen, channels, size)


def _require_some(source: Source, matched: parts.Matched) -> None:
    if not matched.degraded:
        raise _nothing(source, tuple(parts.match(source.parts).degraded))


def _nothing(source: Source, ids: tuple[str, ...]) -> DataError:
    folders = sorted({part for i in ids for part in i.split("/")[:-1]})
    return DataError(
        f"no image of {source.where} lies in {source.params.part!r}",
        f"its folders are {', '.join(folders[:12])}" if folders else "it has no folders",
        "give one of them as --set data.part=NAME, or leave it out",
    )


def patches(source: Source, only: str | None = None) -> parts.Matched:
    """Files whose paths differ in one word, ``LQ_patch`` and ``HQ_patch``."""
    return parts.match_words(source.files, "LQ_patch", "HQ_patch", only)


def open_patches(source: Source, channels: int) -> AnyData:
    """MPGNet's patches by the names of the files."""
    matched = patches(source, source.params.part)
    if not matched.degraded:
        raise _nothing(source, tuple(patches(source).degraded))
    if not source.params.reference:
        return folder.degraded_of(folder.name_of(source.where), matched.degraded, channels, source.params.size)
    return pairs.open_matched(source.where, matched, channels, source.params.size)


def open_synth(source: Source, channels: int) -> AnyData:
    """SYNTH: the degraded images on disk, or computed as they are read."""
    require_rgb(channels, "the SYNTH images are RGB")
    stored = stored_psfs(source)
    psf, part = source.params.psf, source.params.part
    wanted = f"ZTE_new_{psf}" if psf not in (None, "all") else None
    if stored and (wanted is None or wanted in stored):
        found = open_parts(source, channels)
        kept = tuple(i for i in found.image_ids if wanted is None or i.startswith(f"{wanted}/"))
        return found.take(kept)
    return synth.open_synth(source.where, psf, part=part, size=source.params.size)


def stored_psfs(source: Source) -> tuple[str, ...]:
    """Names of the folders of degraded SYNTH images that lie on disk: ``ZTE_new_5``."""
    pair = next((p for p in source.parts if p.truth is not None and p.degraded.name.lower() == "input"), None)
    return () if pair is None else tuple(n for n in tree.subfolders(pair.degraded) if n.startswith("ZTE_new_"))


def open_stacks(source: Source, channels: int) -> AnyData:
    """MATLAB stacks."""
    require_rgb(channels, "UDC-2020 images are RGB")
    found = stacks.open_stacks(source.where, reference=source.params.reference, size=source.params.size)
    return _only(source, found)


def open_folder(source: Source, channels: int) -> AnyData:
    """One folder or file: clean images behind a display, or degraded images without truth."""
    params = source.params
    if not params.reference:
        return _only(source, folder.open_degraded(source.where, channels, params.size))
    if params.display is None:
        folder.index_source(source.where)  # that there is no image at all comes first
        raise DataError(
            f"{source.where} is no pair (LQ and HQ, or input and GT), so what its images are is not known",
            "clean images need a display that degrades them; degraded images have no truth to compare with",
            "add --display toled|poled|zte|PSF.npy for clean images, or --no-reference for degraded ones",
        )
    require_rgb(channels, "the simulator makes RGB images")
    display = simulate.get_display(params.display)
    return _only(source, folder.open_simulated(source.where, display, seed=params.seed, size=params.size))


def open_labels(source: Source, channels: int) -> AnyData:
    """Labelled images, which need neither a display nor a reference."""
    require_rgb(channels, "labelled images are RGB")
    if not isinstance(source.where, (Path, RemoteFile)):
        raise DataError(f"{source.where} is a folder", change="give the .npz file of the labelled images")
    given = [key for key in ("display", "part", "psf", "degraded", "truth") if getattr(source.params, key) is not None]
    given += [] if source.params.reference else ["reference: false"]
    if given:
        raise DataError(
            f"{source.where} holds labelled images; {', '.join(given)} does not go with them",
            "that is for images to restore; labelled images are classified as they are",
            "leave it out",
        )
    return labelled.open_labelled(source.where, source.params.size)


def _only(source: Source, found: AnyData) -> AnyData:
    kept = tuple(i for i in found.image_ids if parts.lies_in(i, source.params.part))
    if not kept:
        raise _nothing(source, found.image_ids)
    return found if source.params.part is None else found.take(kept)
