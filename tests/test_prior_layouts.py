"""Priors in every layout that diffusers and its training script leave behind, and what has to be said beside them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from purifier_doubles import LINEAR, SIDECAR, tiny_unet
from safetensors.torch import load_file, save_file
from store_doubles import running_store
from torch import nn

from udc_ray import location
from udc_ray.errors import WeightsError
from udc_ray.purifiers import priors
from udc_ray.purifiers.checkpoints import WEIGHTS, find_layout, layout_of
from udc_ray.purifiers.denoiser import Denoiser, load_denoiser, read_sidecar, save_prior
from udc_ray.purifiers.sidecar import Declared

SCHEDULER = DDPMScheduler(num_train_timesteps=800)
DECLARED = Declared(input_range=(-1, 1), training_domain="random weights")
WITH_SCHEDULE = DECLARED.model_copy(
    update={"schedule": LINEAR.model_copy(update={"num_train_timesteps": 800}), "prediction": "epsilon"}
)


@cache
def averaged_unet() -> UNet2DModel:
    other = tiny_unet()
    other.load_state_dict({key: value * 0.9 for key, value in tiny_unet().state_dict().items()})
    return other


def save_average(folder: Path) -> None:
    average = EMAModel(averaged_unet().parameters(), model_cls=UNet2DModel, model_config=averaged_unet().config)
    average.save_pretrained(folder)


def root(folder: Path) -> UNet2DModel:
    tiny_unet().save_pretrained(folder)
    SCHEDULER.save_pretrained(folder)
    return tiny_unet()


def pipeline(folder: Path) -> UNet2DModel:
    DDPMPipeline(unet=tiny_unet(), scheduler=SCHEDULER).save_pretrained(folder)
    return tiny_unet()


def pipeline_of_pickles(folder: Path) -> UNet2DModel:
    DDPMPipeline(unet=tiny_unet(), scheduler=SCHEDULER).save_pretrained(folder, safe_serialization=False)
    assert not list(folder.rglob("*.safetensors"))
    return tiny_unet()


def pipeline_over_root_files(folder: Path) -> UNet2DModel:
    """google/ddpm-*: everything at the root, with a model_index.json."""
    root(folder)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return tiny_unet()


def only_averaged(folder: Path) -> UNet2DModel:
    save_average(folder / "unet_ema")
    SCHEDULER.save_pretrained(folder)
    return averaged_unet()


def checkpoint_of_a_training(folder: Path) -> UNet2DModel:
    tiny_unet().save_pretrained(folder / "unet")
    save_average(folder / "unet_ema")
    (folder / "scheduler.bin").write_bytes(b"of the learning rate, and none of ours")
    return averaged_unet()


LAYOUTS = [root, pipeline, pipeline_of_pickles, pipeline_over_root_files, only_averaged, checkpoint_of_a_training]


def answers_alike(ours: Denoiser, theirs: nn.Module) -> bool:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(ours(x, 57), theirs.eval()(x, 57).sample)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, layout: Callable[[Path], UNet2DModel]) -> None:
    network = layout(tmp_path)
    declared = WITH_SCHEDULE if layout is checkpoint_of_a_training else DECLARED
    sidecar = read_sidecar(tmp_path, declared)
    assert (sidecar.schedule.num_train_timesteps, sidecar.prediction) == (800, "epsilon")
    ours = load_denoiser(tmp_path, "cpu", declared)
    assert answers_alike(ours, network)
    assert ours.schedule == sidecar.image_schedule == sidecar.schedule
    files = priors.files(str(tmp_path))
    assert all(Path(path).is_file() for path in files.values())
    assert {"prior/config.json"} < files.keys()
    if declared is DECLARED:
        assert "prior/scheduler_config.json" in files
    hashed = priors.hashes(str(tmp_path))
    assert hashed.keys() == files.keys() and all(len(value) == 64 for value in hashed.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_guessed_of_a_folder_without_prior_json(
    tmp_path: Path, layout: Callable[[Path], UNet2DModel]
) -> None:
    layout(tmp_path)
    unsaid = ["input_range", "training_domain"]
    if layout is checkpoint_of_a_training:
        unsaid[1:1] = ["prediction", "schedule"]
    with pytest.raises(WeightsError) as refused:
        read_sidecar(tmp_path)
    assert f"prior.json is missing, and {tmp_path} does not say: {', '.join(unsaid)}" in str(refused.value)
    assert "prior: {input_range: [-1, 1]" in str(refused.value)


def test_the_raw_weights_of_a_checkpoint_are_those_of_its_folder_unet(tmp_path: Path) -> None:
    checkpoint_of_a_training(tmp_path)
    assert answers_alike(load_denoiser(tmp_path / "unet", "cpu", WITH_SCHEDULE), tiny_unet())


@pytest.mark.parametrize("place", ["", "unet"])
def test_prior_json_may_lie_at_the_root_or_beside_the_network(tmp_path: Path, place: str) -> None:
    pipeline(tmp_path)
    said = {**SIDECAR.model_dump(mode="json", exclude={"sha256"}), "schedule": dict(SCHEDULER.config)}
    (tmp_path / place / "prior.json").write_text(json.dumps(said))
    assert answers_alike(load_denoiser(tmp_path, "cpu"), tiny_unet())
    assert sorted(priors.files(str(tmp_path))) == [f"prior/{n}" for n in ("config.json", WEIGHTS, "prior.json")]


def test_old_names_of_attention_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4,
            "add_attention": True,
        }
        network = UNet2DModel(**{**tiny_unet().config, **blocks})
    network.save_pretrained(tmp_path)
    new = load_file(tmp_path / WEIGHTS)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in new.items():
        for now, before in names.items():
            key = key.replace(f".{now}.", f".{before}.")
        old[key] = value
    assert len(old.keys() - new.keys()) == 8 * sum(key.endswith("to_q.weight") for key in new) > 0
    save_file(old, tmp_path / WEIGHTS, metadata={"format": "pt"})
    theirs = UNet2DModel.from_pretrained(tmp_path, local_files_only=True)
    ours = load_denoiser(tmp_path, "cpu", WITH_SCHEDULE)
    assert all(torch.equal(value, ours.network.state_dict()[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    "declared, message",
    [
        ({"input_range": (0, 1)}, r"the spec and prior.json name a different input_range.*\(0.0, 1.0\) and \(-1.0, 1"),
        ({"prediction": "sample"}, "different prediction for the prior: sample and epsilon"),
        ({"schedule": LINEAR.model_copy(update={"num_train_timesteps": 800})}, "0.02 over 800 times and linear"),
        ({"training_domain": "faces"}, "different training_domain"),
    ],
)
def test_what_the_spec_declares_is_asserted(tmp_path: Path, declared: dict[str, Any], message: str) -> None:
    save_prior(tmp_path, tiny_unet(), SIDECAR)
    with pytest.raises(WeightsError, match=message):
        load_denoiser(tmp_path, "cpu", Declared(**declared))
    same = Declared(**{key: getattr(SIDECAR, key) for key in declared})
    assert load_denoiser(tmp_path, "cpu", same).schedule == LINEAR


def test_a_whole_scheduler_config_also_says_the_prediction() -> None:
    config = dict(DDPMScheduler(prediction_type="v_prediction").config)
    for said in ({}, {"prediction": None}, {"prediction": "v_prediction"}):
        assert Declared.model_validate({"schedule": config, **said}).prediction == "v_prediction"
    with pytest.raises(ValueError, match="prediction is 'epsilon', and prediction_type in schedule 'v_prediction'"):
        Declared.model_validate({"schedule": config, "prediction": "epsilon"})


def test_a_checkpoint_behind_a_uri_is_the_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_of_a_training(tmp_path / "checkpoint-9")
    monkeypatch.setenv(location.CACHE, str(tmp_path / "cache"))
    with running_store() as store:
        uri = store.mirror(tmp_path / "checkpoint-9", "out/checkpoint-9")
        assert priors.hashes(uri) == priors.hashes(str(tmp_path / "checkpoint-9"))
        assert answers_alike(priors.load(uri, "cpu", WITH_SCHEDULE), averaged_unet())
        assert not store.asked("GET", "scheduler.bin") and not store.asked("GET", f"/unet/{WEIGHTS}")
        with pytest.raises(WeightsError, match="is a file, where a folder is wanted"):
            priors.describe(f"{uri}/unet/config.json")


def test_what_the_scheduler_says_is_asserted_too(tmp_path: Path) -> None:
    pipeline(tmp_path)
    with pytest.raises(WeightsError, match="the spec and scheduler_config.json name a different prediction"):
        read_sidecar(tmp_path, DECLARED.model_copy(update={"prediction": "v_prediction"}))


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("input_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_a_prior_of_another_kind_is_written_and_read(
    tmp_path: Path, prediction: Any, input_range: tuple[float, float]
) -> None:
    kind = SIDECAR.model_copy(update={"prediction": prediction, "input_range": input_range})
    saved = save_prior(tmp_path, tiny_unet(), kind)
    assert read_sidecar(tmp_path) == saved
    ours = load_denoiser(tmp_path, "cpu")
    direct = Denoiser(tiny_unet(), LINEAR, prediction=prediction, input_range=input_range)
    x = torch.randn(1, 3, 9, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(x, 200), direct(x, 200))
    assert ours.schedule == saved.image_schedule
    assert DDPMScheduler.from_pretrained(tmp_path).config.prediction_type == prediction


def test_a_learned_variance_needs_its_channels(tmp_path: Path) -> None:
    pipeline(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "variance_type": "learned_range"}))
    with pytest.raises(WeightsError, match="'learned_range', but the network predicts no variance"):
        read_sidecar(tmp_path, DECLARED)


def test_a_scheduler_of_another_family_is_refused(tmp_path: Path) -> None:
    pipeline(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 1348.0}))
    with pytest.raises(WeightsError, match="scheduler_config.json: schedule.*: Field required"):
        read_sidecar(tmp_path, DECLARED)


def test_a_latent_prior_is_refused(tmp_path: Path) -> None:
    pipeline_over_root_files(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(WeightsError, match="latent codes, not images"):
        read_sidecar(tmp_path, DECLARED)


def test_a_folder_of_checkpoints_says_which_to_take(tmp_path: Path) -> None:
    for step in ("checkpoint-500", "checkpoint-1000"):
        (tmp_path / step).mkdir()
    with pytest.raises(
        WeightsError, match="config.json is missing(.|\n)*give one of its checkpoints, such as .*/checkpoint-"
    ):
        layout_of(tmp_path)


def test_weights_with_code_in_them_are_refused(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(tiny_unet(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds code"):
        load_denoiser(tmp_path, "cpu", WITH_SCHEDULE)


@pytest.mark.parametrize(
    "present, config, weights",
    [
        ({"config.json", WEIGHTS}, "config.json", WEIGHTS),
        ({"config.json", "unet/config.json", f"unet/{WEIGHTS}"}, "unet/config.json", f"unet/{WEIGHTS}"),
        (
            {"unet/config.json", f"unet/{WEIGHTS}", "unet_ema/config.json"},
            "unet_ema/config.json",
            f"unet_ema/{WEIGHTS}",  # not there: an average that was cut off is not replaced by the raw weights
        ),
        (
            {"config.json", "diffusion_pytorch_model.bin", WEIGHTS},
            "config.json",
            WEIGHTS,
        ),
        (set(), "config.json", WEIGHTS),
    ],
)
def test_what_is_preferred(present: set[str], config: str, weights: str) -> None:
    found = find_layout(present.__contains__)
    assert (found.config, found.weights) == (config, weights)
    assert len({Path(name).name for name in found.names}) == len(found.names)
