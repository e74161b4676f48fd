"""Diffusion purifiers: what they ask of the prior, and that an image's result is its own."""

from pathlib import Path

import pytest
import torch
from purifier_doubles import LINEAR, SIDECAR, tiny_denoiser, tiny_prior, tiny_unet
from torch import Tensor

from udc_ray.errors import DataError, SpecError, WeightsError
from udc_ray.purifiers import denoiser
from udc_ray.purifiers.chain import Noise, make_segments, run_chain
from udc_ray.purifiers.denoiser import save_prior
from udc_ray.purifiers.diffusion import DDIM, DDPM
from udc_ray.purifiers.plan import Round
from udc_ray.purifiers.sampler import eps_of_x0
from udc_ray.tape import Tape

SLOTS = 4
PURIFIERS = [DDIM(), DDIM(steps=4, eta=1.0, variance="fixed_large", clip_x0=False), DDPM(sigma=4.0)]


def tape(*ids: str) -> Tape:
    return Tape(seed=0, image_ids=ids, stream="eval", sample=2)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 13, 16, generator=torch.Generator().manual_seed(1))


def test_default_processes() -> None:
    t = LINEAR.nearest(25)
    assert abs(LINEAR.sigma(t) - 25) < 0.25
    (ddim,) = DDIM().rounds(LINEAR)
    assert ddim == Round(timesteps=LINEAR.timesteps(t, 5), eta=0.0, clip_x0=True)
    (ddpm,) = DDPM().rounds(LINEAR)
    assert ddpm.timesteps == tuple(range(LINEAR.nearest(15), -1, -1))
    assert (ddpm.eta, ddpm.variance) == (1.0, "fixed_small")
    assert len(DDPM(steps=5).rounds(LINEAR)[0].timesteps) == 5


@pytest.mark.parametrize("purifier", PURIFIERS, ids=lambda p: p.identity())
def test_purification_is_the_chain_with_the_keyed_noise(purifier: DDIM | DDPM) -> None:
    x, keyed, prior = images(2), tape("a", "b"), tiny_denoiser()
    purified, trace = purifier.purify(x, keyed, prior)
    plan = purifier.plan(prior)
    expected = run_chain(make_segments(plan, prior, LINEAR, Noise(tape=keyed, name=purifier.noise_key)), x)
    assert torch.equal(purified, expected)
    assert trace.nfe == len(plan.rounds[0].timesteps) and trace.seconds > 0


@pytest.mark.parametrize("purifier", PURIFIERS, ids=lambda p: p.identity())
def test_an_image_has_the_same_bits_alone_and_in_any_company(purifier: DDIM | DDPM) -> None:
    """Alone means padded into the same micro-batch shape."""
    x, ids, prior = images(6), list("abcdef"), tiny_denoiser()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, _ = purifier.purify(x[:1].repeat(SLOTS, 1, 1, 1), tape(*["a"] * SLOTS), prior)
        for company in ([1, 2, 3], [5, 3, 4]):
            for place in range(SLOTS):
                order = [*company[:place], 0, *company[place:]]
                mixed, _ = purifier.purify(x[order], tape(*[ids[n] for n in order]), prior)
                assert torch.equal(mixed[place], alone[0])
    finally:
        torch.set_num_threads(before)


def test_every_part_of_the_key_changes_the_noise() -> None:
    x, prior, keyed = images(1), tiny_denoiser(), tape("a")
    reference, _ = DDIM().purify(x, keyed, prior)
    others = [tape("b"), keyed.at(sample=3), keyed.at(step=1), keyed.at(stream="attack")]
    for other in others:
        assert not torch.equal(DDIM().purify(x, other, prior)[0], reference)


class Oracle:
    """A prior that knows the clean image."""

    channels, schedule = 3, LINEAR

    def __init__(self, clean_BCHW: Tensor) -> None:
        self.clean = clean_BCHW * 2 - 1

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        return eps_of_x0(x_t, self.clean, float(LINEAR.alpha_bar[t]))


@pytest.mark.parametrize("purifier", [DDIM(), DDIM(eta=1.0), DDPM()], ids=lambda p: p.identity())
def test_a_perfect_prior_undoes_an_attack(purifier: DDIM | DDPM) -> None:
    clean = images(2)
    attacked = (clean + 8 / 255 * torch.sign(clean - 0.5)).clamp(0, 1)
    purified, _ = purifier.purify(attacked, tape("a", "b"), Oracle(clean))  # type: ignore[arg-type]  # a double
    torch.testing.assert_close(purified, clean, atol=2e-6, rtol=0)


def test_more_noise_leaves_less_of_the_image() -> None:
    """With a prior that predicts no noise at all, the change is that of the forward noise."""

    class Nothing(Oracle):
        def __call__(self, x_t: Tensor, t: int) -> Tensor:
            return torch.zeros_like(x_t)

    x = torch.full((1, 3, 32, 32), 0.5)
    changes = [
        (DDIM(sigma=s, clip_x0=False).purify(x, tape("a"), Nothing(x))[0] - x).std().item() * 255  # type: ignore[arg-type]  # a double
        for s in (5, 10, 20)
    ]
    assert changes == pytest.approx([5, 10, 20], rel=0.06)


def test_prior_files_are_named_and_loaded(tmp_path: Path) -> None:
    folder = tiny_prior(tmp_path / "prior")
    purifier = DDIM(weights=str(folder))
    files = purifier.weight_files()
    assert sorted(files) == ["prior/config.json", "prior/diffusion_pytorch_model.safetensors", "prior/prior.json"]
    assert all(Path(path).is_file() for path in files.values())
    x = images(1)
    assert torch.equal(
        purifier.purify(x, tape("a"), purifier.prepare("cpu"))[0], purifier.purify(x, tape("a"), tiny_denoiser())[0]
    )


def test_the_shipped_prior_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "DEFAULT_PRIOR", tiny_prior(tmp_path / "shipped"))
    assert DDPM().folder == tmp_path / "shipped"
    assert DDPM().prepare("cpu").schedule == LINEAR


@pytest.mark.parametrize(
    "purifier, message",
    [
        (DDIM(sigma=25 / 255), "sigma is in /255 units"),
        (DDIM(sigma=5, steps=30), "30 steps do not fit"),
        (DDPM(sigma=1e6), "outside the schedule"),
    ],
    ids=str,
)
def test_settings_that_the_schedule_does_not_admit_are_refused_early(
    tmp_path: Path, purifier: DDIM | DDPM, message: str
) -> None:
    placed = purifier.model_copy(update={"weights": str(tiny_prior(tmp_path / "prior"))})
    for early in (placed.weight_files, lambda: placed.prepare("cpu")):
        with pytest.raises(SpecError) as refused:
            early()
        assert message in str(refused.value)


def test_a_missing_prior_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is missing"):
        DDIM(weights=str(tmp_path / "nowhere")).weight_files()


def test_channels_are_those_of_the_prior(tmp_path: Path) -> None:
    save_prior(tmp_path, tiny_unet(channels=4), SIDECAR)
    raw = DDIM(weights=str(tmp_path)).prepare("cpu")
    x = torch.rand(1, 4, 8, 8)
    assert DDIM().purify(x, tape("a"), raw)[0].shape == x.shape
    with pytest.raises(DataError, match="takes 3 channels, the images have 4"):
        DDIM().purify(x, tape("a"), tiny_denoiser())


@pytest.mark.parametrize(
    "params", [{"steps": 0}, {"sigma": 0}, {"eta": 1.5}, {"variance": "learned"}, {"sigmas": 3}], ids=str
)
def test_senseless_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=next(iter(params))):
        DDIM.build("defence", params)
