"""One small honest run that several tests look at, and ways to damage copies of it."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udc_ray import partfiles
from udc_ray.checks import run_checks
from udc_ray.config import Overrides, build_spec
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.plan import RecordKey
from udc_ray.prepare import prepare
from udc_ray.records import Record
from udc_ray.report.build import summarise
from udc_ray.run import Settings, execute
from udc_ray.rundir import RunDirectory
from udc_ray.setup import HostSetup
from udc_ray.verify import verify
from udc_ray.verify.base import Finding

SQUARE, SIMBA = "square:budget=24", "simba:budget=16,depth=8,restarts=2"
IMAGES = 2


class Silent:
    """A listener that is told and says nothing."""

    def note(self, text: str) -> None: ...

    def begin(self, units: int) -> None: ...

    def unit(self, outcome: object) -> None: ...

    def end(self) -> None: ...


@cache
def honest_run() -> Path:
    """A finished run of two query attacks and noise, undefended and behind JPEG; not to be changed."""
    torch.set_num_threads(1)
    flags = Overrides(
        attacks=("noise", SQUARE, "square:budget=10", SIMBA), defenses=("none", "jpeg"), model="doubles:Conv"
    )
    sets = ("data.size=32", f"limit={IMAGES}", "run.hosts=1", "run.save=all", "run.chunk=1", "perceptual=none")
    prepared = prepare(build_spec(flags=flags, sets=sets))

    def make_pool(setup: HostSetup) -> InProcessPool:
        return InProcessPool(Host(setup, restorer=prepared.restorer))

    folder = tempfile.mkdtemp(prefix="udc-ray-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    out = Path(folder) / "run"
    execute(prepared, make_pool, Silent(), Settings(out=str(out)))
    shutil.rmtree(out / "figures")
    return out


def copy_of(run: Path, to: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(run, to / "run"))


def as_campaign(run: Path) -> Path:
    """The same run with the report of a campaign."""
    text = (run / "spec.yaml").read_text()
    assert "campaign: false" in text
    (run / "spec.yaml").write_text(text.replace("campaign: false", "campaign: true"))
    publish(run)
    return run


def failing(run: Path, **options: Any) -> dict[str, Finding]:
    """The parts of the audit that find something, by name."""
    found = verify(RunDirectory.read(str(run)), **options)
    assert found.holds is not any(f.mismatches for f in found.findings)
    return {f.name: f for f in found.findings if f.mismatches}


def change_json(run: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = run / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def parts(run: Path) -> list[Path]:
    return sorted((run / "parts").iterdir())


def change_records(path: Path, change: Callable[[Record], Record]) -> None:
    """Rewrite the records of a part or of results.parquet under the same name."""
    records = [change(r) for r in partfiles.decode_records(path.read_bytes())]
    path.write_bytes(partfiles.encode_records(records))


def publish(run: Path) -> None:
    """Write results, summary and checks anew from the parts, as a forger would."""
    opened = RunDirectory.read(str(run))
    records = opened.records()
    checks = run_checks(records, opened.header.spec)
    summary = summarise(opened, records, checks)
    (run / "results.parquet").write_bytes(partfiles.encode_records(records))
    (run / "summary.json").write_text(json.dumps(summary.to_json()))
    (run / "checks.json").write_text(json.dumps([c.to_json() for c in checks]))


def forge(run: Path, wanted: Callable[[Record], bool], **columns: Any) -> Record:
    """Change columns of the first record that is wanted, everywhere it is published; returns it as it was."""
    for path in parts(run):
        records = partfiles.decode_records(path.read_bytes())
        found = next((r for r in records if wanted(r)), None)
        if found is not None:
            change_records(path, partial(_changed, found.key, columns))
            publish(run)
            return found
    raise AssertionError("no such record")


def _changed(key: RecordKey, columns: dict[str, Any], record: Record) -> Record:
    return replace(record, **columns) if record.key == key else record


def change_image(run: Path, attack: str, change: Callable[[np.ndarray, np.ndarray], None]) -> tuple[Path, str]:
    """Change the first saved image of an attack in place: gets x and x_adv; returns its part and image id."""
    for path in parts(run):
        records: Sequence[Record] = partfiles.decode_records(path.read_bytes())
        artifact = run / "artifacts" / f"{path.stem}.npz"
        if records[0].attack == attack and artifact.exists():
            with np.load(artifact) as file:
                arrays = {name: file[name].copy() for name in file.files}
            change(arrays["x"][0], arrays["x_adv"][0])
            np.savez(artifact, **arrays)
            return path, str(arrays["image_id"][0])
    raise AssertionError("no saved image of this attack")


def change_curve(run: Path, attack: str, change: Callable[[list[list[float]]], list[list[float]] | None]) -> None:
    """Change the first curve of an attack; None removes it."""
    for path in parts(run):
        file = run / "state" / f"curves-{path.stem}.json"
        if partfiles.decode_records(path.read_bytes())[0].attack == attack and file.exists():
            curves = json.loads(file.read_text())
            name = sorted(curves)[0]
            changed = change(curves.pop(name))
            file.write_text(json.dumps(curves if changed is None else {**curves, name: changed}))
            return
    raise AssertionError("no curve of this attack")
