"""The CIFAR-10 classifier: the published weights, key by key, and the paper's architecture written out again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, linear, one_hot

from udc_ray.errors import WeightsError
from udc_ray.models import zoo
from udc_ray.models.loading import load
from udc_ray.models.networks.resnet_cifar import CifarResNet
from udc_ray.probe import position_invariant

IMAGES = Path(__file__).parent / "data" / "cifar10_test20.npz"


def images() -> tuple[Tensor, Tensor]:
    with np.load(IMAGES) as stored:
        return torch.from_numpy(stored["x"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(stored["y"]).long()


def written_out(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """Section 4.2 of the paper with option A, in float64, on the bare values of a state dict."""
    values = {key: value.double() for key, value in state.items()}

    def convolve(x: Tensor, number: str, name: str, stride: int = 1) -> Tensor:
        key = name.replace("?", f"bn{number}")
        norm = [values[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = conv2d(x, values[name.replace("?", f"conv{number}") + ".weight"], stride=stride, padding=1)
        return batch_norm(x, *norm)

    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
    x = (x.double() - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    x = convolve(x, "1", "?").relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"layer{stage}.{block}.?"
            learnt = convolve(convolve(x, "1", name, stride).relu(), "2", name)
            if stride == 2:
                zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (learnt + x).relu()
    return linear(x.flatten(2).mean(dim=2), values["linear.weight"], values["linear.bias"])


def test_all_twenty_images_are_classified_correctly_from_raw_values() -> None:
    x, labels = images()
    model = load("cifar-resnet20")
    assert (model.descriptor.task, model.descriptor.classes, model.descriptor.parameters) == (
        "classification",
        10,
        269_722,
    )
    with torch.no_grad():
        logits = model(x)
    assert logits.argmax(dim=1).equal(labels)
    expected = written_out(load_file(zoo.CIFAR_WEIGHTS), x, blocks=3)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)


def test_deeper_networks_of_the_family_are_the_papers_too() -> None:
    network = CifarResNet(blocks=5)
    assert sum(p.numel() for p in network.parameters()) == 464_154  # 0.46 M in table 6 of the paper
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.1 + (0.5 if value.dim() == 1 else -0.05))
        x = torch.rand(2, 3, 24, 32, generator=generator)
        found = network.double().eval()(x.double())
    expected = written_out(network.state_dict(), x, blocks=5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # the network's constants are float32


def test_keys_are_strict_and_batch_counters_are_optional(tmp_path: Path) -> None:
    state = load_file(zoo.CIFAR_WEIGHTS)
    assert len(state) == 97
    counted = state | {"bn1.num_batches_tracked": torch.tensor(7)}
    save_file(counted, tmp_path / "counted.safetensors")
    x = images()[0][:2]
    with torch.no_grad():
        assert load("cifar-resnet20", tmp_path / "counted.safetensors")(x).equal(load("cifar-resnet20")(x))
    lacking = {key: value for key, value in state.items() if key != "layer3.2.bn2.running_var"}
    for wrong, reason in (
        (lacking, "layer3.2.bn2.running_var is missing"),
        (state | {"layer4.weight": torch.zeros(1)}, "layer4.weight is unexpected"),
        (state | {"linear.bias": torch.zeros(100)}, "linear.bias is 100 instead of 10"),
    ):
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(WeightsError, match=reason):
            load("cifar-resnet20", tmp_path / "wrong.safetensors")


def test_the_card_and_the_licence_lie_beside_the_weights() -> None:
    card = json.loads((zoo.CIFAR_WEIGHTS.parent / "card.json").read_text())
    assert card["sha256"] == hashlib.sha256(zoo.CIFAR_WEIGHTS.read_bytes()).hexdigest()
    assert load("cifar-resnet20").descriptor.sha256 == card["sha256"]
    assert len(card["classes"]) == 10
    licence = (zoo.CIFAR_WEIGHTS.parent / "LICENSE").read_text()
    assert "Yerlan Idelbayev" in licence and "Redistributions in binary form" in licence


def test_missing_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "CIFAR_WEIGHTS", tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match="weights of cifar-resnet20 are missing"):
        load("cifar-resnet20")


def test_places_in_a_batch_change_no_bit_and_gradients_are_finite_differences() -> None:
    assert position_invariant(load("cifar-resnet20"), (3, 32, 32), 4)
    x, labels = images()
    network = CifarResNet()
    network.load_state_dict(load_file(zoo.CIFAR_WEIGHTS), strict=False)  # but for the counters
    network.double().eval()
    leaf = x[:2].double().requires_grad_(True)
    weights = one_hot(labels[:2], 10).double()
    (gradient,) = torch.autograd.grad((network(leaf) * weights).sum(), leaf)
    direction = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = [(network(leaf + step * direction) * weights).sum() for step in (1e-7, -1e-7)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-7, rel=1e-4)
