"""``udc-ray check-data`` and ``udc-ray psf``: what is this data set, what is this point-spread function?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from udc_ray.errors import DataError
from udc_ray_cli import options

if TYPE_CHECKING:
    from udc_ray.data.findings import DataReport, Side
    from udc_ray.data.psf_facts import PsfFacts

SOME_FAIL = 1
SHOWN = 20
"""Problems that are printed; JSON has them all."""

DataPath = Annotated[str, typer.Argument(metavar="PATH", help="Folder or file of a data set, a path or a URI.")]
PsfPath = Annotated[str, typer.Argument(metavar="PATH", help="A PSF as .npy, or a folder of PSFs.")]


def check_data(
    path: DataPath,
    limit: options.Limit = None,
    sheet: Annotated[Path | None, typer.Option(help="Write the contact sheet here, as PNG.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell what a data set was recognised as, and what is wrong with it."""
    from udc_ray.data.check import check_data as check

    found = check(path, limit=limit)
    if sheet is not None and found.sheet:
        _write(sheet, found.sheet)
    if as_json:
        _json(found.document())
    else:
        _print_report(found)
    if found.problems:
        raise typer.Exit(SOME_FAIL)


def psf(
    path: PsfPath,
    figure: Annotated[Path | None, typer.Option(help="Write the picture on a log scale here, as PNG.")] = None,
    codes: Annotated[Path | None, typer.Option(help="Write the PCA code of every PSF into this folder.")] = None,
    basis: Annotated[str | None, typer.Option(help="Basis of the codes, .npz; computed unless given.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Describe a point-spread function, or the PCA codes of a set of them."""
    from udc_ray.data.psf_codes import encode_psfs, load_basis, psf_set, save_basis, save_codes
    from udc_ray.data.psf_facts import describe_psf
    from udc_ray.places import absolute

    files = psf_set(_source(absolute(path)))
    facts = [describe_psf(file) for file in files.values()] if codes is None else []
    if figure is not None and facts:
        _write(figure, facts[0].figure)
    document: dict[str, Any] = {"psfs": [fact.document() for fact in facts]}
    if codes is not None:
        table = encode_psfs(files, None if basis is None else load_basis(_source(absolute(basis))))
        save_codes(table, codes)
        if basis is None:
            save_basis(table.basis, codes / "basis.npz")
        document = table.document()
    _json(document) if as_json else _print_psfs(facts, document)


def _print_report(found: DataReport) -> None:
    lines = {
        "layout": f"{found.title} ({found.layout}): {found.why}",
        "images": f"{found.images}, {found.truths} with a truth; {found.checked} read",
        "parts": ", ".join(f"{name or '.'} {count}" for name, count in found.parts.items()),
        "channels": f"{found.channels or '-'}, domain {found.domain or '-'}",
        "degraded": _side(found.degraded),
        "truth": _side(found.truth),
        "terms": found.terms,
    }
    for name, value in lines.items():
        typer.echo(f"{name:9} {value}")
    for text in found.notes:
        typer.echo(f"note      {text}")
    for problem in found.problems[:SHOWN]:
        typer.echo(f"problem   {problem.where}: {problem.message}")
    if len(found.problems) > SHOWN:
        typer.echo(f"problem   and {len(found.problems) - SHOWN} more; see --json")


def _side(side: Side | None) -> str:
    if side is None:
        return "-"
    sizes = ", ".join(f"{size} ({count})" for size, count in side.sizes.items())
    return f"{sizes}; {', '.join(side.types)}; {side.low:.4g} to {side.high:.4g}, mean {side.mean:.4g}"


def _print_psfs(facts: list[PsfFacts], document: dict[str, Any]) -> None:
    for fact in facts:
        sums = ", ".join(f"{value:.4g}" for value in fact.sums)
        halo = ", ".join(f"{value:.1%}" for value in fact.halo)
        decades = ", ".join(f"{value:.1f}" for value in fact.decades)
        typer.echo(f"{fact.name}  {fact.height}x{fact.width}  sums {sums}  decades {decades}  halo {halo}")
        for text in fact.warnings:
            typer.echo(f"  warning: {text}")
    if not facts:
        for row in document["psfs"]:
            code = " ".join(f"{value: .6g}" for value in row["code"])
            typer.echo(f"{row['name']}  {code}  residual {row['residual']:.2e}")
        for text in document["warnings"]:
            typer.echo(f"warning: {text}")


def _source(path: str) -> Any:
    from udc_ray.location import place

    return Path(path) if Path(path).is_dir() else place(path, DataError)


def _json(document: dict[str, Any]) -> None:
    from udc_ray.report.summary import dumps

    sys.stdout.write(dumps(document))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}", "a wrong folder or no permission") from error
