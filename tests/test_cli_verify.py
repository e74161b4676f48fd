"""``udc-ray verify``: exit codes, the table, the document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from audited_runs import change_records, copy_of, honest_run
from typer.testing import CliRunner, Result

from udc_ray.errors import RunDirectoryError
from udc_ray_cli.verify import SHOWN, verify

APP = typer.Typer()
APP.command("verify")(verify)


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(APP, [str(word) for word in words])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    run = copy_of(honest_run(), tmp_path)
    change_records(run / "results.parquet", lambda r: r.__class__(**vars(r) | {"psnr_noise": 1.0, "nfe": 7, "seed": 5}))
    return run


def test_an_honest_run_ends_with_0_and_a_table_of_what_was_recomputed() -> None:
    answer = call(honest_run())
    assert answer.exit_code == 0
    assert "every one holds" in answer.stdout and "Not recomputed" in answer.stdout
    assert "saved adversarial images" in answer.stdout and "give --rescore" in answer.stdout
    assert max(map(len, answer.stdout.replace(str(honest_run()), "RUN").splitlines())) <= 100


def test_a_mismatch_ends_with_1_and_names_the_place(damaged: Path) -> None:
    answer = call(damaged)
    assert answer.exit_code == 1
    text = " ".join(answer.stdout.split())
    assert "results.parquet:" in text and "published 1.0, recomputed" in text
    assert answer.stdout.count("! results.parquet") == SHOWN and "more; --json has them all" in text


def test_the_document_holds_every_mismatch_and_every_gap(damaged: Path) -> None:
    answer = call(damaged, "--json")
    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    assert document["holds"] is False and document["schema_version"] == 1
    found = {f["name"]: f for f in document["findings"]}
    wrong = found["parts and results.parquet"]["mismatches"]
    assert {m["where"].rpartition(", ")[2] for m in wrong} == {"psnr_noise", "nfe", "seed"}
    assert all(m["published"] != m["recomputed"] for m in wrong)
    assert found["scores"]["not_recomputed"][0]["count"] > 0
    honest = json.loads(call(honest_run(), "--json").stdout)
    assert honest["holds"] is True and honest["numbers"] == sum(f["numbers"] for f in honest["findings"])


def test_rescore_leaves_no_score_out() -> None:
    answer = call(honest_run(), "--rescore", "--json")
    assert answer.exit_code == 0
    [scores] = [f for f in json.loads(answer.stdout)["findings"] if f["name"] == "scores"]
    assert scores["numbers"] > 200 and scores["not_recomputed"] == []


def test_what_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    answer = call(tmp_path)
    assert isinstance(answer.exception, RunDirectoryError) and "is no run directory" in str(answer.exception)
