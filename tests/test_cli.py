"""The command line: parsing, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import TWO_IMAGES, Answer, call, resume_command
from PIL import Image

from udc_ray import run as run_module
from udc_ray.checks import CheckResult
from udc_ray.config import list_presets
from udc_ray.errors import UserError
from udc_ray.places import with_absolute_paths
from udc_ray.run import Finished
from udc_ray.rundir import RunDirectory
from udc_ray.spec import RunSpec, parse_spec
from udc_ray_cli import manner

ROOT = Path(__file__).parent.parent
VOLATILE = ["seconds", "host", "retries", "queries_reexecuted"]
HEAVY = {"torch", "ray", "numpy", "pydantic", "rich", "yaml", "pyarrow", "diffusers", "PIL", "matplotlib"}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    out = tmp_path_factory.mktemp("cli") / "run"
    return out, call("evaluate", *TWO_IMAGES, "--out", out)


class _Captured(Exception):
    pass


@pytest.fixture
def captured_spec(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The spec that a command would run; it ends with a user error there."""
    specs: list[RunSpec] = []

    def capture(spec: RunSpec) -> None:
        specs.append(spec)
        raise UserError("captured")

    monkeypatch.setattr("udc_ray.prepare.prepare", capture)
    return specs


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom udc_ray_cli.main import main\nsys.argv = ['udc-ray', '--help']\n"
        f"try: main()\nexcept SystemExit: print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("HEAVY []\n")
    assert "evaluate" in result.stdout


def test_help_names_what_works_and_no_more() -> None:
    text = call("evaluate", "--help").out
    for option in ("--preset", "--model", "--attack", "--defense", "--set", "--resume", "--max-hours", "--cluster"):
        assert option in text
    commands = call("--help").out
    assert "campaign" in commands and "verify" in commands and "serve" in commands
    assert "finetune" not in commands and "certify" not in commands


def test_version() -> None:
    answer = call("--version")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("udc-ray 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--atack", "pgd"], "--attack"),
        (["evaluat"], "evaluate"),
        (["evaluate", "--limit", "0"], "--limit"),
        (["evaluate", "--limit", "few"], "--limit"),
        (["list", "colours"], "colours"),
        (["report"], "RUN"),
        (["train", "restorer"], "--photos"),
    ],
)
def test_usage_errors_exit_with_2(words: list[str], said: str) -> None:
    answer = call(*words)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert answer.err.count("Error:") == 1
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attack", "pdg"], "did you mean pgd"),
        (["--defense", "jpg"], "did you mean jpeg"),
        (["--attack", "pgd:step=3"], "did you mean steps"),
        (["--set", "seeds=3"], "did you mean seed"),
        (["--set", "run.thread=3"], "did you mean threads"),
        (["--preset", "everything"], ", ".join(list_presets())),
        (["--preset", "udc-papre"], "did you mean udc-paper"),
        (["--model", "defualt"], "did you mean default"),
        (["--display", "toldt"], "did you mean toled"),
        (["--set", "checks=[budgets]"], "did you mean budget"),
        (["--set", "objective=mze"], "did you mean mse"),
        (["--set", "seed"], "--set key=value"),
        (["--limit", "1", "--set", "limit=-1"], "limit"),
        (["--set", "run.device=tpu"], "run.device"),
    ],
)
def test_misspelt_names_get_a_suggestion(words: list[str], said: str, tmp_path: Path) -> None:
    answer = call("evaluate", "--in-process", *words, "--out", tmp_path / "run")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("udc-ray: ") == 1
    assert said in answer.err
    assert not (tmp_path / "run").exists()


def test_flags_and_sets_reach_the_spec(captured_spec: list[RunSpec]) -> None:
    words = ["--attack", "fgsm", "--attack", "pgd:eps=4/255,steps=3", "--defense", "none", "--defense", "jpeg"]
    words += ["--set", "run.hosts=7", "--set", "success.drop_db=2", "--seed", "5", "--limit", "3"]
    assert call("evaluate", *words).code == 2
    spec = captured_spec[0]
    assert [(a.name, a.params) for a in spec.attacks] == [("fgsm", {}), ("pgd", {"eps": "4/255", "steps": 3})]
    assert [d.name for d in spec.defenses] == ["none", "jpeg"]
    assert (spec.run.hosts, spec.success.drop_db, spec.seed, spec.limit) == (7, 2.0, 5, 3)


def test_paths_become_absolute(captured_spec: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = ("evaluate", "--in-process")
    call(*here, "--model", "nafnet", "--weights", "w.pth", "--data", "photos", "--display", "psf.npy")
    call(*here, "--model", "w.safetensors", "--data", "~/photos", "--no-reference")
    call(*here, "--model", "some.module:make", "--display", "poled", "--defense", "ddim:weights=prior")
    call(*here, "--model", "nafnet", "--weights", "s3://bucket/w.pth", "--data", "s3://bucket/photos", "--no-reference")
    first, second, third, fourth = captured_spec
    assert first.model.name == "nafnet"
    assert first.model.params == {"weights": str(tmp_path / "w.pth")}
    assert (first.data.name, first.data.params["display"]) == (str(tmp_path / "photos"), str(tmp_path / "psf.npy"))
    assert second.model.name == str(tmp_path / "w.safetensors")
    assert second.data.name == str(Path.home() / "photos")
    assert (third.model.name, third.data.name) == ("some.module:make", "shipped")
    assert third.data.params["display"] == "poled"
    assert third.defenses[0].params["weights"] == str(tmp_path / "prior")
    assert (fourth.model.params["weights"], fourth.data.name) == ("s3://bucket/w.pth", "s3://bucket/photos")


def test_making_paths_absolute_changes_nothing_else() -> None:
    spec = parse_spec({"attacks": ["fgsm", {"name": "pgd", "grad_mode": "full"}], "defenses": ["none", "jpeg"]})
    assert with_absolute_paths(spec) == spec


def test_a_run_prints_its_report_on_stdout_alone(finished_run: tuple[Path, Answer]) -> None:
    out, answer = finished_run
    assert answer.code == 0
    assert "fgsm" in answer.out
    assert f"run: {out}" in answer.out.replace("\n", "")
    assert f"writing to {out}" in answer.err.splitlines()
    assert "writing to" not in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100


def test_report_prints_the_same_from_the_files(finished_run: tuple[Path, Answer]) -> None:
    out, answer = finished_run
    again = call("report", out)
    assert (again.code, again.out, again.err) == (0, answer.out, "")


def test_a_pipe_is_100_columns_wide_unless_columns_says_otherwise() -> None:
    for told, width in (({}, 100), ({"COLUMNS": "70"}, 70), ({"COLUMNS": "130"}, 130)):
        assert max(map(len, call("list", "attacks", **told).out.splitlines())) == width


def test_json_prints_the_summary_and_nothing_else(finished_run: tuple[Path, Answer]) -> None:
    out, _ = finished_run
    written = json.loads((out / "summary.json").read_text())
    assert json.loads(call("report", out, "--json").out) == written
    again = call("evaluate", *TWO_IMAGES, "--out", out, "--json")
    assert json.loads(again.out) == written
    assert "everything is done already" in again.err


def test_a_model_that_prints_does_not_spoil_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_model(tmp_path, "chatty_model", 'print("chatter")')
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--in-process", "--model", "chatty_model:make", "--set", "data.size=48", "--limit", "1"]
    answer = call("evaluate", *words, "--attack", "noise", "--defense", "none", "--json", "--out", tmp_path / "run")
    assert answer.code == 0
    assert json.loads(answer.out)["images"] == 1
    assert "chatter" in answer.err


def test_failed_units_exit_with_1_and_resume_tries_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "mended"
    body = f"""
    import pathlib
    self.gradients = getattr(self, "gradients", 0) + x.requires_grad
    if x.requires_grad and self.gradients > 1 and not pathlib.Path({str(flag)!r}).exists():  # the first is the probe
        raise RuntimeError("boom")
    """
    _write_model(tmp_path, "failing_model", body)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--in-process", "--model", "failing_model:make", "--set", "data.size=48", "--limit", "1"]
    words += ["--attack", "noise", "--attack", "fgsm", "--defense", "none", "--out", str(tmp_path / "run")]
    words += ["--set", "run.micro_batch=1"]
    first = call("evaluate", *words)
    assert first.code == 1
    assert "boom" in first.err
    assert "0 of 1 images" in first.out
    command = resume_command(first.err)
    flag.touch()
    again = call("evaluate", *words)  # the same command leaves failed units alone
    assert (again.code, "everything is done already" in again.err) == (1, True)
    resumed = call(*command[1:])
    assert resumed.code == 0
    assert "0 of 1 images" not in resumed.out


def _write_model(folder: Path, name: str, body: str) -> None:
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    text = f"import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n{lines}\n        return x * 1.0\n"
    (folder / f"{name}.py").write_text(f"{text}\ndef make():\n    return Net()\n")


def test_resume_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    photos.mkdir()
    elsewhere.mkdir()
    Image.new("RGB", (48, 48), (90, 120, 30)).save(photos / "a.png")
    monkeypatch.chdir(tmp_path)
    words = ["--in-process", "--model", "identity", "--data", "photos", "--display", "toled"]
    first = call("evaluate", *words, "--attack", "noise", "--defense", "none", "--out", "run")
    assert first.code == 0
    monkeypatch.chdir(elsewhere)
    resumed = call("evaluate", "--resume", "../run", "--in-process", "--json")
    assert (resumed.code, "everything is done already" in resumed.err) == (0, True)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["spec.yaml"], "SPEC"),
        (["--preset", "full"], "--preset"),
        (["--out", "x"], "--out"),
        (["--set", "seed=1"], "--set"),
        (["--seed", "0"], "--seed"),
        (["--attack", "pgd", "--limit", "3"], "--attack, --limit"),
        (["--no-reference"], "--no-reference"),
        (["--data", "x"], "--data"),
    ],
)
def test_resume_refuses_what_it_would_ignore(words: list[str], named: str, finished_run: tuple[Path, Answer]) -> None:
    answer = call("evaluate", *words, "--resume", finished_run[0])
    assert answer.code == 2
    assert set(named.split(", ")) <= set(answer.err.splitlines()[0].replace(",", "").split())


def test_an_explicit_resume_retries_failed_units(
    finished_run: tuple[Path, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(prepared: object, pool: object, listener: object, settings: run_module.Settings) -> Finished:
        assert settings.retry_failed
        assert settings.out == str(finished_run[0])
        raise _Captured

    monkeypatch.setattr("udc_ray.run.execute", check)
    with pytest.raises(_Captured):
        call("evaluate", "--resume", finished_run[0], "--in-process")


@pytest.mark.parametrize(
    ("strict", "verdict", "failed", "complete", "code"),
    [
        (True, "fail", 0, True, 3),
        (True, "fail", 2, False, 3),
        (True, "warn", 0, True, 0),
        (False, "fail", 0, True, 0),
        (True, "pass", 2, False, 1),
        (False, "pass", 0, False, 1),
    ],
)
def test_exit_codes_of_a_run_that_ended(
    strict: bool,
    verdict: str,
    failed: int,
    complete: bool,
    code: int,
    finished_run: tuple[Path, Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_execute = run_module.execute

    def altered(*arguments: object) -> Finished:
        check = CheckResult(check="13-white-box", cell=None, verdict=verdict)
        return replace(true_execute(*arguments), checks=[check], failed=failed, complete=complete)

    monkeypatch.setattr("udc_ray.run.execute", altered)
    answer = call("evaluate", *TWO_IMAGES, "--out", finished_run[0], *(["--strict"] if strict else []))
    assert answer.code == code
    assert ("--resume" in answer.err) == (not complete)
    assert "fgsm" in answer.out


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "HTTP://head:8265"])
def test_an_http_address_is_refused_before_anything_is_loaded(address: str, captured_spec: list[RunSpec]) -> None:
    answer = call("evaluate", RAY_ADDRESS=address)
    assert answer.code == 2
    for word in ("RAY_ADDRESS", "http", "--cluster", "host:port"):
        assert word in answer.err
    assert not captured_spec


def test_report_of_a_run_that_has_not_ended(finished_run: tuple[Path, Answer], tmp_path: Path) -> None:
    out = tmp_path / "run"
    _copy(finished_run[0], out, without={"summary.json", "checks.json", "results.parquet"})
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    answer = call("report", out)
    assert answer.code == 0
    assert "not come to its end" in answer.err
    assert answer.out.split("run:")[0] == finished_run[1].out.split("run:")[0]
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("content", ["{", "[3]", "3", '[{"check": "a"}]'])
def test_report_of_damaged_checks(content: str, finished_run: tuple[Path, Answer], tmp_path: Path) -> None:
    out = tmp_path / "run"
    _copy(finished_run[0], out)
    (out / "checks.json").write_text(content)
    answer = call("report", out)
    assert (answer.code, answer.out) == (2, "")
    assert "checks.json" in answer.err


def test_report_of_what_is_no_run(tmp_path: Path) -> None:
    answer = call("report", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "no run directory" in answer.err


def _copy(source: Path, target: Path, without: frozenset[str] | set[str] = frozenset()) -> None:
    for path in source.rglob("*"):
        if path.is_file() and path.name not in without:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_exit_codes_are_those_of_the_manual() -> None:
    assert (manner.SOME_FAILED, manner.CHECK_FAILED) == (1, 3)


def test_a_run_directory_that_was_resumed_keeps_its_spec(finished_run: tuple[Path, Answer]) -> None:
    spec = RunDirectory.read(str(finished_run[0])).header.spec
    assert [attack.name for attack in spec.attacks] == ["noise", "fgsm"]
    assert spec.data.params["size"] == 48
