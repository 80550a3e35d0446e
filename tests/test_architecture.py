"""The floors of the design: arrows point down, and the numeric core drags in no framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import slt_callbacks

PACKAGE = Path(slt_callbacks.__file__).parent
FRAMEWORKS = {"lightning", "pytorch_lightning", "wandb", "PIL", "matplotlib"}
# Folder (or module) -> what of this package it may import at run time.
ALLOWED = {
    "stats": {"stats"},
    "sampling": {"stats", "sampling"},
    "observables": {"stats", "sampling", "observables"},
    "detection": {"stats", "detection"},  # a side tower: it eats floats, not draws
    "estimate": {"stats", "sampling", "observables"},
    "calibrate": {"stats", "sampling", "observables", "estimate"},
    "sinks": {"stats", "sampling", "observables", "detection", "estimate", "calibrate", "sinks"},
    "callbacks": {"stats", "sampling", "observables", "detection", "estimate", "calibrate", "sinks", "callbacks"},
    "__main__": {"callbacks"},
}
THIRD_PARTY = {
    "stats": {"torch", "numpy", "scipy", "arviz_stats", "torchmetrics"},
    "sampling": {"torch", "numpy", "scipy", "torchmetrics"},
    "observables": {"torch", "numpy", "scipy", "torchmetrics"},
    "detection": {"torch", "numpy", "scipy", "torchmetrics"},
    "estimate": {"torch", "numpy"},
    "calibrate": {"torch"},
    "sinks": {"torch", "numpy", "wandb", "wandb_workspaces", "PIL", "matplotlib", "lightning"},
    "callbacks": {"torch", "numpy", "lightning", "lightning_utilities"},
    "__main__": set(),
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts != ("__init__.py",):
            found.append((relative.parts[0].removesuffix(".py"), path))
    return found


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, at its top or inside its functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    skipped = {child for node in ast.walk(tree) if is_type_checking(node) for child in ast.walk(node)}  # type: ignore[arg-type]
    for node in ast.walk(tree):
        if node in skipped:  # never executed: only names types
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names


def test_every_folder_has_its_floor() -> None:
    assert {floor for floor, _ in modules()} <= ALLOWED.keys()


@pytest.mark.parametrize(("floor", "path"), modules(), ids=lambda x: x if isinstance(x, str) else x.stem)
def test_arrows_point_down(floor: str, path: Path) -> None:
    own, foreign = set(), set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "slt_callbacks":
            own.add(parts[1] if len(parts) > 1 else "slt_callbacks")
        elif parts[0] not in sys.stdlib_module_names:
            foreign.add(parts[0])
    assert own <= ALLOWED[floor], f"{path.name} reaches up"
    assert foreign <= THIRD_PARTY[floor], f"{path.name} imports what its floor may not"


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport a.b\nif TYPE_CHECKING:\n    import hidden\n"
        "def f():\n    from c import d\n    import_module('e.f')\n"
    )
    assert imported(path) == {"typing.TYPE_CHECKING", "a.b", "c.d", "e.f"}


@pytest.mark.parametrize(
    "module",
    [
        "slt_callbacks",
        "slt_callbacks.stats",
        "slt_callbacks.sampling",
        "slt_callbacks.observables",
        "slt_callbacks.detection",
        "slt_callbacks.estimate",
        "slt_callbacks.calibrate",
    ],
)
def test_the_core_imports_without_lightning_wandb_or_pillow(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({FRAMEWORKS!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
