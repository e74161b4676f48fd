from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udc_ray.fingerprint import fingerprint, fingerprint_document, first_difference, hash_document
from udc_ray.spec import RunSpec, parse_spec

FILES = {"model": "a" * 64, "data:0001": "b" * 64}


def spec(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "attacks": ["fgsm", {"name": "pgd", "eps": "8/255"}, {"name": "square", "budget": 100}],
        "defenses": ["none", {"name": "jpeg", "grad_mode": ["blind", "bpda"]}],
    }
    return parse_spec(values | changes)


def of(run: RunSpec, files: dict[str, str] = FILES, device: str = "cpu") -> str:
    return fingerprint(run, files, device)


def test_it_is_the_sha256_of_the_canonical_json_of_the_document() -> None:
    document = fingerprint_document(spec(), FILES, "cpu")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert of(spec()) == hash_document(document) == hashlib.sha256(text.encode()).hexdigest()
    assert hash_document(json.loads(text)) == of(spec())  # what is read back from disk has the same hash


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {"hosts": 7}},
        {"run": {"chunk": 3}},
        {"run": {"save": "all"}},
        {"run": {"device": "cpu"}},
        {"checks": ["budget"]},
        {"attacks": ["fgsm", {"name": "pgd", "eps": "8/255"}, {"name": "square", "budget": 999}]},
        {"attacks": ["fgsm", "pgd", "square", {"name": "square", "budget": 5}]},
        {"attacks": [{"name": "fgsm", "norm": "linf"}, {"name": "pgd", "eps": 8 / 255, "steps": 10}, "square"]},
        {"defenses": ["none", {"name": "jpeg", "quality": 75, "grad_mode": ["blind", "bpda"]}]},
        {"data": {"name": "shipped", "display": "toled"}},
        {"model": {"name": "default"}, "seed": 0, "success": {"drop_db": 3}},
    ],
)
def test_what_does_not_decide_numbers_is_not_in_it(changes: dict[str, Any]) -> None:
    assert of(spec(**changes)) == of(spec())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"limit": 3}, "limit"),
        ({"objective": "ssim"}, "objective"),
        ({"success": {"drop_db": 2.0}}, "success.drop_db"),
        ({"run": {"threads": 2}}, "run.threads"),
        ({"run": {"micro_batch": 8}}, "run.micro_batch"),
        ({"run": {"micro_batch": "auto"}}, "run.micro_batch"),
        ({"data": {"name": "shipped", "display": "poled"}}, "data.display"),
        ({"data": {"name": "shipped", "size": 64}}, "data.size"),
        ({"model": "nafnet"}, "model.name"),
        ({"attacks": ["fgsm", {"name": "pgd", "eps": "4/255"}, "square"]}, "attacks.1.eps"),
        ({"attacks": ["fgsm", {"name": "pgd", "restarts": 2}, "square"]}, "attacks.1.restarts"),
        ({"attacks": ["fgsm", {"name": "pgd", "grad_mode": "full"}, "square"]}, "attacks.1.grad_mode"),
        ({"attacks": ["fgsm", "pgd", {"name": "square", "stop": "success"}]}, "attacks.2.stop"),
        ({"attacks": ["fgsm", "pgd", {"name": "square", "horizon": 500}]}, "attacks.2.horizon"),
        ({"attacks": ["fgsm", "pgd"]}, "attacks.2"),
        ({"defenses": ["none", "jpeg"]}, "defenses.1.grad_mode.1"),
        ({"defenses": ["none", {"name": "jpeg", "quality": 50, "grad_mode": ["blind", "bpda"]}]}, "defenses.1.quality"),
    ],
)
def test_what_decides_numbers_is_in_it_and_is_named(changes: dict[str, Any], field: str) -> None:
    old, new = (fingerprint_document(s, FILES, "cpu") for s in (spec(), spec(**changes)))
    assert of(spec(**changes)) != of(spec())
    assert first_difference(old, new) == field


def test_file_content_and_device_type_are_in_it() -> None:
    changed = FILES | {"data:0001": "c" * 64}
    assert len({of(spec()), of(spec(), changed), of(spec(), device="cuda")}) == 3
    old, new = (fingerprint_document(spec(), files, "cpu") for files in (FILES, changed))
    assert first_difference(old, new) == "files.data:0001"


@pytest.mark.parametrize("one_many", ["photos", "./photos", "/data/UDC.2020/photos", "a.png", "s3://bucket/photos"])
def test_data_and_weights_given_by_path_count_by_their_content(one_many: str, tmp_path: Path) -> None:
    def by_path(path: str) -> RunSpec:
        return spec(data={"name": path, "display": "toled"}, model={"name": "nafnet", "weights": path})

    assert of(by_path(one_many)) == of(by_path(str(tmp_path)))
    assert one_many not in json.dumps(fingerprint_document(by_path(one_many), FILES, "cpu"))
    psf = [spec(data={"name": "x", "display": p}) for p in (one_many + "/psf.npy", "psf.npy")]
    assert of(psf[0]) == of(psf[1])


def test_a_weights_file_as_the_model_counts_by_its_content_and_a_factory_by_its_name() -> None:
    assert of(spec(model="one/net.safetensors")) == of(spec(model="net.pth"))
    assert of(spec(model="package.module:one")) != of(spec(model="package.module:two"))
    moved = [spec(defenses=[{"name": "ddim", "weights": w}]) for w in ("a/prior", "/else/where")]
    assert of(moved[0]) == of(moved[1])


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(trees, trees)
def test_documents_differ_exactly_when_a_difference_is_named(one: Any, other: Any) -> None:
    wrapped = ({"x": one}, {"x": other})
    named = first_difference(*wrapped)
    assert (named is None) == (json.dumps(wrapped[0], sort_keys=True) == json.dumps(wrapped[1], sort_keys=True))
    assert named is None or named.startswith("x")
