"""The floors of the design: arrows point down, and the numeric core drags in no framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import slt_callbacks

PACKAGE = Path(slt_callbacks.__file__).parent
FRAMEWORKS = {"lightning", "pytorch_lightning", "lightning_utilities", "wandb", "PIL", "matplotlib"}
# From the ground up. A floor imports those below it and itself; the two of one row do not know each other.
FLOORS: list[set[str]] = [
    {"basics"},
    {"stats", "detection"},
    {"weights", "data"},
    {"losses"},
    {"sampling"},
    {"observables"},
    {"measuring"},
    {"executors"},
    {"figures"},
    {"sinks"},
    {"recording"},
    {"replay"},
    {"callbacks"},
    {"__main__"},
]
# What of other people's a floor may use, beside torch and numpy.
THIRD_PARTY = {
    "stats": {"scipy", "arviz_stats", "torchmetrics"},
    "observables": {"scipy"},
    "figures": {"PIL", "matplotlib"},
    "sinks": {"wandb", "wandb_workspaces", "PIL"},
    "replay": {"tqdm", "jsonargparse"},
    "callbacks": {"lightning", "lightning_utilities"},
}


def allowed(floor: str) -> set[str]:
    """What of this package a floor may import."""
    (height,) = (place for place, row in enumerate(FLOORS) if floor in row)
    return {floor}.union(*FLOORS[:height])


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
    assert {floor for floor, _ in modules()} == set().union(*FLOORS)


@pytest.mark.parametrize(("floor", "path"), modules(), ids=lambda x: x if isinstance(x, str) else x.stem)
def test_arrows_point_down(floor: str, path: Path) -> None:
    own, foreign = set(), set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "slt_callbacks":
            own.add(parts[1] if len(parts) > 1 else "slt_callbacks")
        elif parts[0] not in sys.stdlib_module_names:
            foreign.add(parts[0])
    assert own <= allowed(floor), f"{path.name} reaches up"
    assert foreign <= THIRD_PARTY.get(floor, set()) | {"torch", "numpy"}, f"{path.name} imports what its floor may not"


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
        "slt_callbacks.measuring.estimate",
        "slt_callbacks.measuring.calibrate",
        "slt_callbacks.observables.influence",
        "slt_callbacks.detection.stages",
    ],
)
def test_the_core_imports_without_lightning_wandb_or_pillow(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({FRAMEWORKS!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
