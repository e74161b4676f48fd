"""Priors on disk: written for diffusers, read without it guessing, refused with a reason."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from purifier_doubles import SIDECAR, tiny_prior, tiny_unet
from safetensors.torch import load_file, save_file

from udc_ray.errors import WeightsError
from udc_ray.purifiers import checkpoints
from udc_ray.purifiers.denoiser import DEFAULT_PRIOR, Denoiser, load_denoiser, pad_to, read_sidecar, save_prior
from udc_ray.purifiers.schedule import Schedule

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    return tiny_prior(tmp_path / "prior")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rehash(folder: Path) -> None:
    edit(folder / "prior.json", sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())


def test_diffusers_reads_what_we_write(prior: Path) -> None:
    theirs = UNet2DModel.from_pretrained(prior, local_files_only=True)
    scheduler = DDIMScheduler.from_pretrained(prior)
    ours = load_denoiser(prior, "cpu")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(x, 57), theirs(x, 57).sample)
    torch.testing.assert_close(
        torch.from_numpy(ours.schedule.alpha_bar.copy()), scheduler.alphas_cumprod.double(), rtol=1e-4, atol=0
    )


def test_we_read_what_diffusers_writes(tmp_path: Path) -> None:
    model = tiny_unet()
    model.save_pretrained(tmp_path)
    sidecar = {**SIDECAR.model_dump(), "schedule": dict(DDIMScheduler().config)}
    (tmp_path / "prior.json").write_text(json.dumps(sidecar))
    rehash(tmp_path)
    edit(tmp_path / "config.json", decay=0.999, use_ema_warmup=True)  # as its EMAModel leaves them
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_denoiser(tmp_path, "cpu")(x, 3), model.eval()(x, 3).sample)


def test_the_shipped_prior_answers_as_its_network_does() -> None:
    theirs = UNet2DModel.from_config(UNet2DModel.load_config(DEFAULT_PRIOR)).eval()
    theirs.load_state_dict(load_file(DEFAULT_PRIOR / WEIGHTS))  # copied: from_pretrained leaves it unaligned in memory
    x = torch.randn(1, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_denoiser(DEFAULT_PRIOR, "cpu")(x, 150), theirs(x, 150, return_dict=False)[0])


def test_a_hash_that_is_not_named_is_not_checked(prior: Path) -> None:
    edit(prior / "prior.json", sha256="")
    assert load_denoiser(prior, "cpu").schedule == SIDECAR.schedule


def test_half_precision_files_run_in_single_precision(tmp_path: Path) -> None:
    save_prior(tmp_path, tiny_unet().half(), SIDECAR)
    loaded = load_denoiser(tmp_path, "cpu").network
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


def test_save_takes_channels_last_and_returns_the_hash(tmp_path: Path) -> None:
    model = tiny_unet().to(memory_format=torch.channels_last)
    saved = save_prior(tmp_path / "a" / "b", model, SIDECAR)
    assert saved == read_sidecar(tmp_path / "a" / "b")
    assert saved.sha256 == hashlib.sha256((tmp_path / "a" / "b" / WEIGHTS).read_bytes()).hexdigest()
    loaded = load_denoiser(tmp_path / "a" / "b", "cpu").network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_loaded_network_is_frozen_and_in_evaluation_mode(prior: Path) -> None:
    network = load_denoiser(prior, "cpu").network
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (1, 1), (7, 30)])
def test_any_size_goes_through(prior: Path, size: tuple[int, int]) -> None:
    loaded = load_denoiser(prior, "cpu")
    x = torch.rand(2, 3, *size)
    padded = pad_to(x, 2)
    assert padded.shape[-2] % 2 == 0 and padded.shape[-1] % 2 == 0
    assert torch.equal(padded[..., : size[0], : size[1]], x)
    with torch.no_grad():
        assert torch.equal(loaded(x, 9), loaded.network(padded, 9).sample[..., : size[0], : size[1]])


def test_padding_mirrors_where_it_can() -> None:
    row = torch.arange(5.0).reshape(1, 1, 1, 5).repeat(1, 1, 5, 1)
    assert pad_to(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert pad_to(row[..., :2], 8)[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_size_multiple_counts_the_halvings() -> None:
    model = UNet2DModel(
        sample_size=64,
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    )
    wide = Denoiser(model, SIDECAR.schedule)
    assert wide.size_multiple == 8
    with torch.no_grad():
        assert wide(torch.rand(1, 3, 13, 21), 5).shape == (1, 3, 13, 21)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input_range": [1, -1]}, "input_range: .*lowest value comes first"),
        ({"input_range": [0, float("inf")]}, "input_range"),
        ({"prediction": "v_prediction"}, "different prediction"),
        ({"prediction": "flow"}, "prediction: Input should be"),
        ({"schedule": {"num_train_timesteps": 1000}}, "schedule.beta_start"),
        ({"schedule": {**SIDECAR.schedule.model_dump(), "beta_schedule": "sigmoid"}}, "schedule.beta_schedule"),
        ({"schedule": {**SIDECAR.schedule.model_dump(), "trained_betas": [0.1]}}, "trained_betas"),
        ({"schedule": {**SIDECAR.schedule.model_dump(), "num_train_timesteps": 800}}, "different schedule"),
        ({"schedule": {**SIDECAR.schedule.model_dump(), "prediction_type": "sample"}}, "prediction_type in schedule"),
        ({"colour": "RGB"}, "colour"),
        ({"sha256": "0" * 64}, "is not the file"),
    ],
)
def test_a_sidecar_of_something_else_is_refused(prior: Path, changes: dict[str, Any], message: str) -> None:
    edit(prior / "prior.json", **changes)
    with pytest.raises(WeightsError, match=message):
        load_denoiser(prior, "cpu")


@pytest.mark.parametrize("key", ["input_range", "prediction", "schedule", "training_domain"])
def test_nothing_in_the_sidecar_is_guessed(prior: Path, key: str) -> None:
    values = json.loads((prior / "prior.json").read_text())
    del values[key]
    (prior / "prior.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=f"{key}: Field required"):
        load_denoiser(prior, "cpu")


def test_a_scheduler_of_another_parametrisation_is_refused(prior: Path) -> None:
    edit(prior / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(WeightsError, match="different prediction for the prior: epsilon and sample"):
        read_sidecar(prior)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"widths": [8]}, "no setting 'widths'"),
        ({"norm_num_groups": 3}, "describes no network"),
        ({"out_channels": 5}, "3 channels in, 5 out"),
        ({"out_channels": 6}, "conv_out"),
        ({"num_class_embeds": 10}, "wants a class"),
        ({"time_embedding_type": "fourier"}, "times are noise levels"),
        ({"center_input_sample": True}, "takes images in \\[0, 1\\]"),
        ({"block_out_channels": [16, 32]}, "weights|holds"),
    ],
)
def test_a_config_of_another_network_is_refused(prior: Path, changes: dict[str, Any], message: str) -> None:
    edit(prior / "config.json", **changes)
    with pytest.raises(WeightsError, match=message):
        load_denoiser(prior, "cpu")


@pytest.mark.parametrize("harm", ["missing", "extra", "shape", "nan"])
def test_weights_of_another_network_are_refused_by_their_first_wrong_key(prior: Path, harm: str) -> None:
    state = load_file(prior / WEIGHTS)
    key = {"extra": "extra.weight"}.get(harm, "conv_in.bias")
    if harm == "missing":
        del state[key]
    else:
        state[key] = torch.full((8,) if harm == "nan" else (9,), float("nan"))
    save_file(state, prior / WEIGHTS)
    rehash(prior)
    with pytest.raises(WeightsError, match=key):
        load_denoiser(prior, "cpu")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "prior.json", "scheduler_config.json"])
def test_truncated_files_are_refused(prior: Path, name: str) -> None:
    path = prior / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if name == WEIGHTS:
        with pytest.raises(WeightsError, match="is not the file"):
            load_denoiser(prior, "cpu")
        rehash(prior)
    with pytest.raises(WeightsError, match="cannot (be )?read"):
        load_denoiser(prior, "cpu")


def test_json_of_another_kind_is_refused(prior: Path) -> None:
    (prior / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="not a JSON object"):
        load_denoiser(prior, "cpu")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "prior.json"])
def test_a_missing_file_is_named(prior: Path, name: str) -> None:
    (prior / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        read_sidecar(prior)


def test_a_missing_shipped_prior_blames_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "DEFAULT_PRIOR", tmp_path / "gone")
    with pytest.raises(WeightsError, match="broken installation"):
        read_sidecar(tmp_path / "gone")


def test_a_half_written_prior_is_none(prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "scheduler_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_prior(prior, tiny_unet(), SIDECAR)
    with pytest.raises(WeightsError, match="prior.json is missing"):
        read_sidecar(prior)


def test_diffusers_is_imported_late_and_nothing_is_printed(prior: Path) -> None:
    code = (
        "import sys, pathlib, udc_ray.purifiers.diffusion\n"
        "from udc_ray.purifiers.denoiser import load_denoiser, read_sidecar\n"
        "read_sidecar(pathlib.Path(sys.argv[1]))\n"
        "assert 'diffusers' not in sys.modules\n"
        "load_denoiser(pathlib.Path(sys.argv[1]), 'cpu')\n"
        "assert 'diffusers' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(prior)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
