"""ray-cluster.yaml: Ray's own validation, the options of its commands, and what must not stand in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private import util
from ray.scripts.scripts import cli, start

ROOT = Path(__file__).parents[2]
FILE = ROOT / "ray-cluster.yaml"
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


@pytest.fixture
def prepared(config: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = util.prepare_config(config)
    return made


def commands(config: dict[str, Any]) -> list[str]:
    return [line for kind in COMMANDS for line in config.get(kind, [])]


def starts(config: dict[str, Any], which: str) -> list[list[str]]:
    """Arguments of every ``ray start`` of the head or the workers."""
    words = [shlex.split(line) for line in config[f"{which}_start_ray_commands"]]
    return [w[i + 2 :] for w in words for i in range(len(w) - 1) if w[i].endswith("/ray") and w[i + 1] == "start"]


def given(arguments: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) if "=" in word else (word[2:], "") for word in arguments)


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    util.validate_config(prepared)


def test_ray_would_refuse_a_misspelt_field(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = 5
    with pytest.raises(Exception, match="idle_timeout_minute"):
        util.validate_config(util.prepare_config(config))


def test_node_types(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    assert set(types) == {"head", "gpu_worker", "cpu_worker"}
    assert prepared["head_node_type"] in types
    workers = {name: node for name, node in types.items() if name != prepared["head_node_type"]}
    assert types["head"]["max_workers"] == 0
    assert sum(node["max_workers"] for node in workers.values()) <= prepared["max_workers"]
    assert all(0 <= node["min_workers"] < node["max_workers"] for node in workers.values())
    spot = {name for name, node in types.items() if node["node_config"].get("InstanceMarketOptions")}
    assert spot == set(workers)


def test_every_node_type_is_explained() -> None:
    text = FILE.read_text()
    for name in yaml.safe_load(text)["available_node_types"]:
        assert re.search(rf"^  #[^\n]*\n  {name}:$", text, re.MULTILINE), name


def test_no_work_is_placed_on_the_head(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (arguments,) = starts(config, "head")
    assert given(arguments)["num-cpus"] == "0" and given(arguments)["num-gpus"] == "0"


@pytest.mark.parametrize("which", ["head", "worker"])
def test_start_commands_parse(config: dict[str, Any], which: str) -> None:
    (arguments,) = starts(config, which)
    start.make_context("start", list(arguments))  # what ray does not know raises
    shown = CliRunner().invoke(cli, ["start", "--help"]).output
    assert all(f"--{name} " in shown for name in given(arguments))


def test_dashboard_stays_on_loopback(config: dict[str, Any]) -> None:
    (arguments,) = starts(config, "head")
    assert given(arguments)["dashboard-host"] == "127.0.0.1"
    opened = [rule["FromPort"] for rule in config["provider"]["security_group"]["IpPermissions"]]
    assert opened == [22]
    assert "0.0.0.0/0" not in FILE.read_text()


@pytest.mark.parametrize("which", ["head", "worker"])
def test_token_authentication_is_on(config: dict[str, Any], which: str) -> None:
    for line in config[f"{which}_start_ray_commands"]:
        if "ray start" in line:
            assert "RAY_AUTH_MODE=token" in line.split("ray start")[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_no_secret_stands_in_it() -> None:
    text = FILE.read_text()
    assert not re.search(r"RAY_AUTH_TOKEN\s*=", text)
    assert not re.search(r"\b[0-9a-fA-F]{32,}\b|AKIA[0-9A-Z]{16}", text)


def test_storage_is_shared_by_all(config: dict[str, Any]) -> None:
    roots = {m for line in commands(config) for m in re.findall(r"UDC_RAY_STORAGE=(\S+?);", line)}
    assert roots == {"/shared/runs"}
    assert any("mount -t nfs4" in line and "/shared" in line for line in config["setup_commands"])


def test_shell_commands_parse(config: dict[str, Any]) -> None:
    for line in commands(config):
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_the_files_that_it_uses_are_here(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/udc-ray"] == "."
    used = {name for line in commands(config) for name in re.findall(r"~/udc-ray/(\S+\.sh)", line)}
    assert used
    assert all(os.access(ROOT / name, os.X_OK) for name in used)
