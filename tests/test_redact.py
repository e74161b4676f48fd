from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udc_ray.redact import has_credentials, redact, redact_command, redact_values

PLANTED = "pl4nt3d/S3cr3t+x="


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIA:{PLANTED}@bucket/run",
        f"cannot open https://user:{PLANTED}@host:8080/a?b=1, because",
        f"udc-ray evaluate --token {PLANTED} --limit 2",
        f"--api-key={PLANTED}",
        f'--hf-token "{PLANTED}" rest',
        f"Authorization: Bearer {PLANTED}",
        f"{{'Authorization': 'Basic {PLANTED}'}}",
        f'{{"authorization": "{PLANTED}"}}',
        f"curl -H 'authorization: token {PLANTED}'",
        f"bearer {PLANTED}",
        f"AWS_SECRET_ACCESS_KEY={PLANTED}",
        f's3://bucket/run?access_key=AK&secret_key="{PLANTED}"',
        f'"password": "{PLANTED}"',
    ],
)
def test_a_planted_secret_is_masked(text: str) -> None:
    assert PLANTED not in redact(text, {})
    assert "***" in redact(text, {})


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "my_password", "WANDB_API_KEY", "ray_token"])
def test_values_of_the_environment_are_masked_wherever_they_stand(name: str) -> None:
    text = f"GET /x?q={PLANTED} and pl4nt3d%2FS3cr3t%2Bx%3D"
    assert redact(text, {name: PLANTED}) == "GET /x?q=*** and ***"


def test_other_variables_and_short_values_are_left() -> None:
    environment = {"HOME": "/home/ada", "DEBUG_KEY": "1", "USE_TOKEN": "true"}
    text = "true story: 1 image in /home/ada"
    assert redact(text, environment) == text


@pytest.mark.parametrize(
    "text",
    [
        "udc-ray evaluate --model nafnet --set run.threads=2",
        "hdfs://namenode:8020/runs/a@b",
        "http://127.0.0.1:8265/api/jobs/",
        "s3://bucket/a:b@c",
        "image 0001: 22.3 dB at 8/255",
    ],
)
def test_ordinary_text_is_left(text: str) -> None:
    assert redact(text, {}) == text


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("s3://AKIA:abc@bucket/run", True),
        ("s3://AKIA:ab/c+d@bucket/run", True),
        ("ftp://:secret@host/run", True),
        ("s3://bucket/run", False),
        ("abfs://container@account.dfs.core.windows.net/run", False),
        ("hdfs://namenode:8020/runs/a@b", False),
        ("/local/a:b@c", False),
    ],
)
def test_a_uri_with_a_secret_is_recognised(uri: str, secret: bool) -> None:
    assert has_credentials(uri) is secret


@settings(deadline=None)
@given(st.text(alphabet="abcXYZ0189+_.", min_size=4, max_size=20))
def test_masking_twice_is_masking_once(secret: str) -> None:
    once = redact(f"https://u:{secret}@h/ --token {secret} Authorization: Bearer {secret}", {"A_TOKEN": secret})
    assert redact(once, {"A_TOKEN": secret}) == once


def test_a_command_line_is_masked_word_by_word() -> None:
    command = redact_command(["udc-ray", "evaluate", "--out", "a b", "--token", PLANTED], {})
    assert command == 'udc-ray evaluate --out "a b" --token ***'


def test_values_are_masked_at_every_depth() -> None:
    values = {"a": [{"api_key": PLANTED, "n": 3}], "b": (f"s3://u:{PLANTED}@x", None, 1.5)}
    masked = redact_values(values, {})
    assert PLANTED not in json.dumps(masked)
    assert masked["a"][0]["n"] == 3
    assert masked["b"][1:] == [None, 1.5]
