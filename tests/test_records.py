from __future__ import annotations

from dataclasses import fields

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_record

from udc_ray.records import SCHEMA, VOLATILE, Record, from_table, to_table

# the columns that the design names, written out here a second time on purpose
COLUMNS = [
    "run_fingerprint", "cell", "label", "model", "data", "image_id", "attack", "norm", "eps", "budget",
    "defense", "grad_mode", "eot", "sample", "restart", "seed", "objective", "protocol", "perceptual", "psnr_degraded",
    "psnr_clean", "psnr_noise", "psnr_adv", "ssim_clean", "ssim_adv", "lpips_clean", "lpips_adv", "linf",
    "l2", "queries", "queries_harness", "queries_reexecuted", "grad_evals", "nfe", "success", "stop_reason",
    "seconds", "host", "retries", "error",
    # added for random victims and for the checks of an attack
    "psnr_mean_output_clean", "psnr_mean_output_adv", "psnr_median_output_clean", "psnr_median_output_adv",
    "guide_calls", "grad_zero_share", "grad_dead_steps", "loss_move", "lost",
]  # fmt: skip


def test_the_columns_are_those_of_the_design() -> None:
    assert set(COLUMNS) <= set(SCHEMA.names)
    assert set(VOLATILE) == {"seconds", "host", "retries", "queries_reexecuted"}
    assert SCHEMA.field("lost").type == pa.bool_()
    assert SCHEMA.field("guide_calls").type == SCHEMA.field("grad_dead_steps").type == pa.int64()
    assert SCHEMA.field("success").type == pa.bool_()
    assert SCHEMA.field("psnr_adv").type == pa.float64()
    assert SCHEMA.field("queries").type == pa.int64()


@settings(deadline=None)
@given(
    psnr=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    queries=st.none() | st.integers(0, 2**60),
    image_id=st.text(max_size=30).filter(lambda s: s.isprintable()),
    success=st.none() | st.booleans(),
)
def test_a_table_gives_its_records_back(
    psnr: float | None, queries: int | None, image_id: str, success: bool | None
) -> None:
    record = make_record(psnr_adv=psnr, queries=queries, image_id=image_id, success=success)
    assert from_table(to_table([record])) == [record]


def test_unknown_is_null_and_never_zero() -> None:
    table = to_table([make_record(psnr_degraded=None, queries=None, success=None)])
    assert table.column("psnr_degraded").to_pylist() == [None]
    assert table.column("queries").to_pylist() == [None]
    assert table.column("success").to_pylist() == [None]


def test_columns_of_a_later_version_are_left_out() -> None:
    record = make_record()
    table = to_table([record]).append_column("of_the_future", pa.array([1]))
    assert from_table(table) == [record]


def test_the_key_is_cell_image_restart_sample() -> None:
    assert make_record(cell="c", image_id="i", restart=2, sample=3).key == ("c", "i", 2, 3)
    assert {f.name for f in fields(Record)} == set(SCHEMA.names)
