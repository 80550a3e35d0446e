"""The floors of the design: arrows point down, nothing is too large, and the core drags in no framework."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

import slt_callbacks
from tests.sizes import Size, classes, files, functions, imported_names, is_type_checking

PACKAGE = Path(slt_callbacks.__file__).parent
CORE = [
    "slt_callbacks",
    "slt_callbacks.detection.stages",
    "slt_callbacks.observables.influence",
    "slt_callbacks.measuring.estimate",
    "slt_callbacks.measuring.calibrate",
]
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
    "observables": {"scipy", "torchmetrics"},
    "executors": {"ray"},
    "figures": {"PIL", "matplotlib", "jinja2", "markupsafe"},
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


def test_the_core_imports_without_lightning_wandb_or_pillow() -> None:
    """All of it in one process: an interpreter takes seconds to import torch."""
    code = f"""
import importlib, sys
for module in {CORE}:
    importlib.import_module(module)
    print(module, *sorted({FRAMEWORKS!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CORE


LIMITS = {"files": (files, 400), "classes": (classes, 300), "functions": (functions, 40), "names": (imported_names, 19)}


@pytest.mark.parametrize(("count", "most"), LIMITS.values(), ids=LIMITS)
def test_nothing_is_too_large_to_be_read_at_once(count: Callable[[Path], list[Size]], most: int) -> None:
    assert [size for size in count(PACKAGE) if size.lines > most] == []


def test_most_files_are_short() -> None:
    assert statistics.median(size.lines for size in files(PACKAGE)) < 130


def test_what_is_too_large_is_found(tmp_path: Path) -> None:
    body = "".join(f"    x = {line}\n" for line in range(40))
    (tmp_path / "long.py").write_text(f'def f():\n    """Text."""\n{body}')
    assert [size.lines for size in functions(tmp_path)] == [41]


def owners(framework: str) -> set[str]:
    """Where a framework is imported."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for _, path in modules()
        if any(name.split(".")[0] == framework for name in imported(path))
    }


def test_lightning_has_one_owner() -> None:
    for framework in ("lightning", "lightning_utilities", "pytorch_lightning"):
        assert {path.split("/")[0] for path in owners(framework)} <= {"callbacks"}, framework


def test_wandb_has_one_owner() -> None:
    assert {path.split("/")[0] for path in owners("wandb") - {"callbacks/reactions.py"}} <= {"sinks"}


def arrows() -> dict[str, set[str]]:
    """By module of the package, those that it imports, inside functions too."""
    names = {
        ".".join(("slt_callbacks", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    return {
        module: {target for name in imported(path) if (target := _module_of(name, names.keys())) not in (None, module)}
        for module, path in names.items()
    }


def _module_of(name: str, known: Collection[str]) -> str | None:
    """The module that a dotted name lies in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules from which an arrow leads back to themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, set())
        return seen

    return sorted(module for module in graph if module in reached(module))


def test_there_is_no_cycle_not_even_a_lazy_one() -> None:
    graph = arrows()
    graph["slt_callbacks"] = set()  # its names are looked up at their first use, which runs no import of its own
    assert cycles(graph) == []


def test_a_cycle_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_reactions_do_not_know_the_monitor() -> None:
    assert "slt_callbacks.callbacks.monitor" not in arrows()["slt_callbacks.callbacks.reactions"]
