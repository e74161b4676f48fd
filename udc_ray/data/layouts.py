"""The layouts of data sets that are recognised by what lies on disk; the first that fits is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from udc_ray.data import labelled, openers, synth
from udc_ray.data.source import Source

INPUT, LQ = "input", "lq"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A way in which images lie on disk.

    Attributes:
        name: for reports.
        title: what the data are.
        expects: what has to lie on disk.
        terms: on which terms its owners give it out; empty for the user's own.
        recognise: why a source has this layout; empty where it has not.
        open: makes the data set, given the channels of the model.
        degraded: its images are degraded already, so that no display fits.
    """

    name: str
    title: str
    expects: str
    terms: str = ""
    recognise: Callable[[Source], str]
    open: Callable[[Source, int], openers.AnyData] = openers.open_parts
    degraded: bool = True


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A layout, and why it was taken."""

    layout: Layout
    why: str


def recognise(source: Source) -> Recognised:
    """The layout of a source; one folder or file of images where it has no other."""
    fitting = ((layout, layout.recognise(source)) for layout in LAYOUTS)
    layout, why = next((layout, why) for layout, why in fitting if why)  # the last one always fits
    return Recognised(layout=layout, why=why)


def rows() -> list[dict[str, str]]:
    """Name, summary and parameters of every layout, for ``udc-ray list data``."""
    return [
        {
            "name": f"layout {layout.name}",
            "summary": layout.title + (f" ({layout.terms})" if layout.terms else ""),
            "parameters": layout.expects,
        }
        for layout in LAYOUTS
    ]


def _named(source: Source) -> str:
    named = [text for text in (source.params.degraded, source.params.truth) if text is not None]
    return f"the folders are named: {' and '.join(named)}" if named else ""


def _synth(source: Source) -> str:
    stored = openers.stored_psfs(source)
    if stored:
        return f"{source.pairs(INPUT)}; degraded by {', '.join(stored)}"
    if source.params.psf is not None and not source.parts:
        return f"the formula of SYNTH was asked for with psf {source.params.psf}"
    if source.parts or source.params.display is not None or not source.params.reference:
        return ""
    if synth.truths_of(source.where) is None:
        return ""
    found = synth.find_psfs(source.where)
    return f"GT without input, and {len(found)} PSFs: the images are degraded as they are read" if found else ""


def _srudc(source: Source) -> str:
    return source.pairs("lq_syn", "lq_syn_new")


def _mpgnet(source: Source) -> str:
    return source.pairs("lq_patch")


def _mpgnet_names(source: Source) -> str:
    if source.parts or not openers.patches(source).truths:
        return ""
    return "LQ_patch and HQ_patch in the names of the files"


def _sit(source: Source) -> str:
    why = source.pairs(INPUT)
    return f"{why}; arrays of 4 planes" if why and source.first and source.first.planes == 4 else ""


def _mipi(source: Source) -> str:
    why, first = source.pairs(INPUT), source.first
    linear = first is not None and first.planes == 3 and first.type.startswith("float")
    return f"{why}; arrays of 3 linear colours ({first.type})" if why and linear and first is not None else ""


def _udc_2020(source: Source) -> str:
    why, first = source.pairs(LQ), source.first
    if not why or (first is not None and first.type != "uint8"):
        return ""
    if first is not None and (first.height, first.width) == (1024, 2048):
        return f"{why}; pictures of 1024 x 2048"
    named = [p.prefix for p in source.parts if "oled" in p.prefix.lower()]
    return why if named or "oled" in source.where.name.lower() else ""


def _pairs(source: Source) -> str:
    return source.pairs(*(p.degraded.name.lower() for p in source.parts))


def _labelled(source: Source) -> str:
    return "the arrays x and y in a .npz file" if labelled.is_labelled(source.where) else ""


def _stacks(source: Source) -> str:
    if not source.stacks or source.files:
        return ""
    return f"{len(source.stacks)} .mat file{'s' if len(source.stacks) > 1 else ''}"


def _folder(source: Source) -> str:
    return "no pair of folders, so one folder or file of images"


LAYOUTS = (
    Layout(
        name="labelled",
        title="Labelled images, for classifiers",
        expects="FILE.npz with x, uint8 N x H x W x 3, and y, N classes counted from 0",
        recognise=_labelled,
        open=openers.open_labels,
        degraded=False,
    ),
    Layout(
        name="named",
        title="Two folders that the data entry names",
        expects="--data PATH --set data.degraded=LQ_pre --set data.truth=HQ",
        recognise=_named,
    ),
    Layout(
        name="synth",
        title="SYNTH (DISCNet): linear HDR; degraded images from disk, or computed by the published formula",
        expects="synthetic_data/GT/test/*.npy, and input/ZTE_new_5/test/*.npy or PSF/ZTE_new/*_psf_5.npy; psf part",
        terms="academic use only",
        recognise=_synth,
        open=openers.open_synth,
    ),
    Layout(
        name="srudc",
        title="SRUDC: synthetic pairs",
        expects="train|test/{HQ_syn,LQ_syn}/*.png, or HQ_syn_new and LQ_syn_new; part",
        terms="no terms stated",
        recognise=_srudc,
    ),
    Layout(
        name="mpgnet",
        title="MPGNet: patches of UDC-2020",
        expects="Train|Val|Test/{Poled,Toled}/{HQ_patch,LQ_patch}/*.png; part",
        recognise=_mpgnet,
    ),
    Layout(
        name="mpgnet-names",
        title="MPGNet: patches of UDC-2020 with LQ_patch and HQ_patch in the names of the files",
        expects="*LQ_patch*.png and *HQ_patch*.png; part",
        recognise=_mpgnet_names,
        open=openers.open_patches,
    ),
    Layout(
        name="udc-sit",
        title="UDC-SIT, four raw planes (GR, R, B, GB) of 0 to 1023; needs a model of 4 channels",
        expects="training|validation|test/{input,GT}/*.npy, H x W x 4; part",
        terms="CC BY-NC-SA 4.0",
        recognise=_sit,
    ),
    Layout(
        name="mipi-2022",
        title="MIPI-2022 under-display camera track, or other linear HDR pairs",
        expects="training|validation|test/{input,GT}/*.npy, H x W x 3 float; part",
        terms="academic use only",
        recognise=_mipi,
    ),
    Layout(
        name="udc-2020",
        title="UDC-2020 challenge (T-OLED, P-OLED): pictures, as stored",
        expects="Poled_val/{HQ,LQ}/*.png, 8 bit; part",
        terms="research use only",
        recognise=_udc_2020,
    ),
    Layout(
        name="pairs",
        title="Any pair of folders",
        expects="{HQ,LQ} or {GT,input}, in the folder or up to 3 levels below; part",
        recognise=_pairs,
    ),
    Layout(
        name="udc-2020-mat",
        title="UDC-2020 challenge: stacks of validation and test images",
        expects="*.mat with val_display and val_gt, uint8 N x H x W x 3 (MATLAB 5, not 7.3)",
        terms="research use only",
        recognise=_stacks,
        open=openers.open_stacks,
    ),
    Layout(
        name="folder",
        title="One folder or file: clean images behind a display, or degraded ones without truth",
        expects="images, with --display or --no-reference",
        recognise=_folder,
        open=openers.open_folder,
        degraded=False,
    ),
)
