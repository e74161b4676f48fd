from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rundir_doubles import FILES, FINGERPRINT, SESSION, document, image_of, open_run, record, spec, tree, unit

from udc_ray import environment, partfiles
from udc_ray.errors import RunDirectoryError
from udc_ray.fingerprint import fingerprint_document
from udc_ray.records import from_table
from udc_ray.rundir import RunDirectory, default_out


def test_a_new_run_has_its_spec_fingerprint_and_environment(tmp_path: Path) -> None:
    with open_run(tmp_path / "a/run") as run:
        assert (run.resumed, run.message) == (False, f"writing to {tmp_path}/a/run")
        run.resolve({"micro_batch": 4, "notes": ("changed",)})
    values = yaml.safe_load((tmp_path / "a/run/spec.yaml").read_text())
    assert values["fingerprint"] == FINGERPRINT
    assert values["attacks"] == [{"name": "square", "budget": 100}]
    assert values["resolved"] == {"micro_batch": 4, "notes": ["changed"]}
    assert json.loads((tmp_path / "a/run/environment.json").read_text())["versions"]["torch"] == "2.13.0"
    assert not (tmp_path / "a/run/lock").exists()
    header = RunDirectory.read(str(tmp_path / "a/run")).header
    assert (header.spec, header.fingerprint) == (spec(), FINGERPRINT)


def test_the_same_fingerprint_resumes_says_so_and_keeps_what_was_resolved(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.resolve({"threads": 1})
        run.append(unit(record()))
    raised = [{"name": "square", "budget": 500}]
    with open_run(tmp_path, attacks=raised, run={"hosts": 9}) as run:
        assert (run.resumed, run.message) == (True, f"resuming {tmp_path}")
        assert run.header.resolved == {"threads": 1}
        assert run.records() == [record()]
    header = RunDirectory.read(str(tmp_path)).header
    assert header.spec.attacks[0].params["budget"] == 500  # a resume without a spec goes on from here
    assert (header.resolved, header.spec.run.hosts) == ({"threads": 1}, 9)


@pytest.mark.parametrize(
    ("changes", "field"), [({"seed": 4}, "seed"), ({"attacks": [{"name": "square", "eps": 0.1}]}, "attacks.0.eps")]
)
def test_another_run_is_refused_naming_the_first_field_and_left_alone(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    open_run(tmp_path).close()
    before = tree(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"differs in {field}"):
        open_run(tmp_path, **changes)
    assert tree(tmp_path) == before


def test_another_device_type_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    with pytest.raises(RunDirectoryError, match="differs in device_type"):
        RunDirectory.open(str(tmp_path), spec(), fingerprint_document(spec(), FILES, "cuda"), SESSION)


def test_what_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match="not empty and no run: it holds 'thesis.tex'"):
        open_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="is a file"):
        open_run(tmp_path / "thesis.tex")
    with pytest.raises(RunDirectoryError, match="no run directory"):
        RunDirectory.read(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text('{"half')
    (tmp_path / ".spec.yaml.1-abc.tmp").write_text("half")
    with open_run(tmp_path) as run:
        assert not run.resumed
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("text", ["", "{", "attacks: 3\nfingerprint: x\n", "attacks: [square]\n", "[]"])
def test_a_spoilt_spec_is_a_message(tmp_path: Path, text: str) -> None:
    open_run(tmp_path).close()
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(RunDirectoryError, match="spec.yaml cannot be read"):
        open_run(tmp_path)


def test_a_second_live_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        with pytest.raises(RunDirectoryError, match="being written"):
            open_run(tmp_path)
        run.append(unit(record()))
    open_run(tmp_path).close()


def test_the_first_answer_wins(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        first = run.append(unit(record(psnr_adv=10.0, host="one")))
        assert run.append(unit(record(psnr_adv=11.0, host="two"))) == first
        assert [r.psnr_adv for r in run.records()] == [10.0]


def test_a_failure_does_not_stand_in_the_way_of_a_later_success(tmp_path: Path) -> None:
    key = ("c", "0001", 0, 0)
    with open_run(tmp_path) as run:
        run.append(unit(record(stop_reason="error", error="s3://me:planted-secret@x is gone", psnr_adv=None)))
        assert (run.done_keys({}), run.quarantined({})) == (set(), {key})
        assert "planted-secret" not in str(run.records()[0].error)
        run.append(unit(record(psnr_adv=10.0)))
        assert (run.done_keys({}), run.quarantined({})) == ({key}, set())
        assert [r.psnr_adv for r in run.compact()] == [10.0]


def test_damaged_and_foreign_parts_are_reported_and_made_again(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        torn, sound = run.append(unit(record("0001"))), run.append(unit(record("0002")))
        path = tmp_path / "parts" / f"{torn}.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        (tmp_path / "parts/notes.txt").write_text("not ours")
        foreign = record("0003", run_fingerprint="another")
        (tmp_path / "parts/foreign.parquet").write_bytes(partfiles.encode_records([foreign]))
        pq.write_table(
            pq.read_table(tmp_path / "parts" / f"{sound}.parquet").select(["cell"]), tmp_path / "parts/x.parquet"
        )
        assert [r.image_id for r in run.records()] == ["0002"]
        assert set(run.damaged) == {f"{torn}.parquet", "foreign.parquet", "x.parquet"}
        assert "another run" in run.damaged["foreign.parquet"]
        assert run.append(unit(record("0001"))) == torn
        assert [r.image_id for r in run.records()] == ["0001", "0002"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, code: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with open_run(tmp_path) as run:
        run.append(unit(record("0001")))
        before = tree(tmp_path)
        with monkeypatch.context() as broken:
            if moment == "write":
                broken.setattr(Path, "open", fails)
            else:
                broken.setattr(os, moment, fails)
            with pytest.raises(RunDirectoryError) as caught:
                run.append(unit(record("0002"), images=[image_of(record("0002"))]))
        assert caught.value.cause in {"the disk is full", "the disk is read-only"}
        assert caught.value.change
        assert tree(tmp_path) == before
        run.append(unit(record("0002")))
        assert len(run.records()) == 2


@pytest.mark.parametrize("successes", range(4))
def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successes: int) -> None:
    done, real = 0, os.replace

    def fails_later(*arguments: Any) -> None:
        nonlocal done
        if done >= successes:
            raise OSError(errno.ENOSPC, "No space left on device")
        done += 1
        real(*arguments)

    monkeypatch.setattr(os, "replace", fails_later)
    with pytest.raises(RunDirectoryError, match="No space left"):
        open_run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="cannot"):
        open_run(tmp_path / "file" / "run")


def test_being_killed_between_temp_and_rename_leaves_no_torn_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path)
    run.append(unit(record("0001")))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", killed)
        broken.setattr(Path, "unlink", killed)  # a real kill cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            run.append(unit(record("0002")))
    run.close()
    assert list((tmp_path / "parts").glob(".*.tmp"))
    with open_run(tmp_path) as again:
        assert not list((tmp_path / "parts").glob(".*.tmp"))
        assert ([r.image_id for r in again.records()], again.damaged) == (["0001"], {})


def test_results_are_the_compacted_parts_sorted_by_key(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        for name in ("0003", "0001", "0002"):
            run.append(unit(record(name, sample=1), record(name)))
        compacted = run.compact()
    stored = from_table(pq.read_table(tmp_path / "results.parquet"))
    assert stored == compacted
    assert [r.key for r in stored] == sorted(r.key for r in stored)
    assert len(stored) == 6


def test_images_and_curves_are_those_of_the_records_that_count(tmp_path: Path) -> None:
    small = record(budget=100, stop_reason="budget", queries=100, psnr_adv=20.0)
    large = replace(small, budget=200, queries=200, psnr_adv=15.0)
    with open_run(tmp_path) as run:
        for r in (large, small):
            curve = {"c/0001/0": [(1, 0.1), (r.budget or 0, 0.5)]}
            run.append(unit(r, images=[image_of(r)], curves=curve))
        images = list(run.images())
        assert [float(i.x_adv[0, 0, 0]) for i in images] == [15.25]
        assert run.curves() == {"c/0001/0": [(1, 0.1), (200, 0.5)]}


def test_artifacts_are_as_the_contract_says_one_size_a_file(tmp_path: Path) -> None:
    records = [record("a/1", restart=0), record("a/2", restart=0), record("a/3", restart=0)]
    images = [image_of(records[0]), image_of(records[1]), image_of(records[2], size=6)]
    with open_run(tmp_path) as run:
        part = run.append(unit(*records[:2], images=images[:2]))
        run.append(unit(record("b"), records[2], images=[image_of(record("b")), images[2]]))
        assert {i.image_id for i in run.images()} == {"a/1", "a/2", "a/3", "b"}
    with np.load(tmp_path / f"artifacts/{part}.npz", allow_pickle=False) as file:
        assert set(file) == {"x", "x_adv", "cell", "image_id", "restart"}
        assert (file["x_adv"].shape, file["x"].dtype, file["x_adv"].dtype) == ((2, 3, 4, 4), np.float32, np.float32)
        assert file["image_id"].tolist() == ["a/1", "a/2"]
    shapes = {np.load(p)["x"].shape[2:] for p in (tmp_path / "artifacts").glob("*.npz")}
    assert shapes == {(4, 4), (6, 6)}


histories = st.lists(
    st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.sampled_from([100, 200]), st.booleans()), max_size=8
)


@settings(deadline=None, max_examples=8)
@given(histories)
def test_any_history_of_parts_reads_back_and_done_is_stable_over_reopening(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[set[str], int, bool]]
) -> None:
    folder, seen = tmp_path_factory.mktemp("run"), set()
    for images, budget, fails in history:
        fresh = sorted(i for i in images if fails or (i, budget) not in seen)
        seen |= {(i, budget) for i in fresh if not fails}
        stop = {"stop_reason": "error", "error": "x"} if fails else {"stop_reason": "budget"}
        with open_run(folder) as run:
            if fresh:
                run.append(unit(*(record(i, budget=budget, **stop) for i in fresh)))
            done = run.done_keys({"c": 200})
            assert {k[1] for k in done} == {i for i, b in seen if b == 200}
            kept = {r.image_id: r.budget for r in run.compact() if r.error is None}
            assert kept == {i: max(b for j, b in seen if j == i) for i, _ in seen}


def test_a_reader_writes_no_parts(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    run = RunDirectory.read(str(tmp_path))
    with pytest.raises(RunDirectoryError, match="opened to be read"):
        run.append(unit(record()))
    run.write_json("summary.json", {"rows": []})
    assert run.read_json("summary.json") == {"rows": []}
    assert run.read_json("none.json") is None


def test_a_writer_that_lost_its_lock_writes_no_more(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    lock = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(lock | {"token": "another"}))
    assert run._lock is not None
    run._lock.heartbeat()
    with pytest.raises(RunDirectoryError, match="another writer"):
        run.append(unit(record()))
    run.close()


def test_sessions_are_kept_and_other_versions_are_warned_of(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    later = {"versions": {"udc-ray": "0.2.0", "torch": "2.13.0"}, "command_line": "x --token planted-secret"}
    with RunDirectory.open(str(tmp_path), spec(), document(spec()), later) as run:
        assert run.warnings == ["udc-ray was 0.1.0 when this run began and is 0.2.0 now"]
        run.update_environment(end="now", devices={"host-0": {"device": "cpu"}})
    stored = json.loads((tmp_path / "environment.json").read_text())
    assert [s["versions"]["udc-ray"] for s in stored["earlier"]] == ["0.1.0"]
    assert (stored["end"], stored["versions"]["udc-ray"]) == ("now", "0.2.0")
    assert "planted-secret" not in (tmp_path / "environment.json").read_text()


def test_a_session_says_with_what_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "planted-secret")
    session = environment.describe_session(["udc-ray", "evaluate", "--out", "planted-secret"])
    assert {"schema_version", "versions", "devices", "command_line", "git_commit", "start", "end"} <= set(session)
    assert session["versions"]["torch"].startswith("2.")
    assert session["command_line"] == "udc-ray evaluate --out ***"


def test_no_secret_of_the_environment_reaches_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_SECRET_KEY", "planted-secret")
    session = environment.describe_session(["udc-ray", "--set", "x=planted-secret"])
    with RunDirectory.open(str(tmp_path), spec(), document(spec()), session) as run:
        run.append(unit(record(stop_reason="error", error="planted-secret was refused")))
        run.update_environment(probes={"note": "planted-secret"})
        run.compact()
    parts = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    errors = [r.error or "" for r in from_table(pq.read_table(tmp_path / "results.parquet"))]
    assert b"planted-secret" not in parts
    assert errors == ["*** was refused"]


def test_git_commit_is_that_of_the_own_checkout_only(tmp_path: Path) -> None:
    (tmp_path / "site-packages/udc_ray").mkdir(parents=True)
    assert environment.git_commit(tmp_path / "site-packages/udc_ray") is None


def test_the_default_place_has_the_time_and_the_fingerprint() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert default_out("0123456789abcdef", time=moment) == "runs/20260304T050607Z-01234567"
