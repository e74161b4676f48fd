"""The shape of the code: layers, sizes, exported names, errors that cross processes."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import udc_ray
from udc_ray import errors

ROOT = Path(__file__).parent.parent
SOURCES = {
    "udc_ray": sorted((ROOT / "udc_ray").rglob("*.py")),
    "udc_ray_cluster": sorted((ROOT / "cluster").rglob("*.py")),
    "udc_ray_cli": sorted((ROOT / "cli").rglob("*.py")),
}
MODULES = [path for paths in SOURCES.values() for path in paths]
MAY_IMPORT = {
    "udc_ray": {"udc_ray"},
    "udc_ray_cluster": {"udc_ray", "udc_ray_cluster"},
    "udc_ray_cli": {"udc_ray", "udc_ray_cluster", "udc_ray_cli"},
}
OWNER_OF = {"ray": "udc_ray_cluster", "deepspeed": "udc_ray_cluster", "typer": "udc_ray_cli"}


def imported_packages(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", SOURCES)
def test_imports_point_one_way(layer: str) -> None:
    for path in SOURCES[layer]:
        packages = imported_packages(path)
        ours = packages & set(MAY_IMPORT["udc_ray_cli"])
        assert ours <= MAY_IMPORT[layer], f"{path} imports {ours - MAY_IMPORT[layer]}"
        for package, owner in OWNER_OF.items():
            assert package not in packages or layer == owner, f"{path} imports {package}"


def test_there_is_code_to_look_at() -> None:
    assert all(len(paths) >= 3 for paths in SOURCES.values())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.parent.name != "udc_ray_cli"],  # a command's options are its parameters
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_function_takes_more_than_seven_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in {"self", "cls"}]
            assert len(names) <= 7, f"{node.name} takes {len(names)}"


def error_classes() -> list[type[errors.UdcRayError]]:
    found = {errors.UdcRayError}
    for path in SOURCES["udc_ray"]:
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    todo = [errors.UdcRayError]
    while todo:
        children = set(todo.pop().__subclasses__()) - found
        found |= children
        todo += children
    return sorted(found, key=lambda c: c.__name__)


def test_every_error_survives_pickling() -> None:
    for cls in error_classes():
        made = cls(2) if cls is errors.Interrupted else cls("what happened")
        if issubclass(cls, errors.UserError):
            made = cls("what", "cause", "change")
        copy = pickle.loads(pickle.dumps(made))
        assert type(copy) is cls
        assert str(copy) == str(made)


def test_error_tree_is_drawn() -> None:
    for cls in error_classes():
        if cls.__module__ == "udc_ray.errors":
            assert cls.__name__ in (errors.__doc__ or "")


def test_exported_names_are_sorted_and_documented() -> None:
    names = udc_ray.__all__
    assert list(names) == sorted(names)
    for name in names:
        assert inspect.getdoc(getattr(udc_ray, name)), name


@pytest.mark.parametrize("module", ["udc_ray_cli.main"])
def test_help_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'ray', 'diffusers', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_udc_ray_works_without_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; sys.modules['typer'] = None\n"
        "import udc_ray, udc_ray.pool, udc_ray.prepare, udc_ray.run\n"
        "print('fine')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "fine"
