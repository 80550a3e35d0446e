"""The largest files, classes and functions of the package, and what it imports: `python -m tests.sizes`.

Lines of a class or a function are counted without its docstrings; those of a file are all there are.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import slt_callbacks

PACKAGE = Path(slt_callbacks.__file__).parent
_SHOWN = 10


@dataclass(frozen=True)
class Size:
    """How many lines something has."""

    lines: int
    name: str


def sources(package: Path = PACKAGE) -> list[Path]:
    return sorted(package.rglob("*.py"))


def files(package: Path = PACKAGE) -> list[Size]:
    return [Size(len(path.read_text().splitlines()), str(path.relative_to(package))) for path in sources(package)]


def classes(package: Path = PACKAGE) -> list[Size]:
    return [
        Size(_lines(node), f"{path.relative_to(package)}:{node.name}")
        for path, node in _nodes(package)
        if isinstance(node, ast.ClassDef)
    ]


def functions(package: Path = PACKAGE) -> list[Size]:
    return [
        Size(_lines(node), f"{path.relative_to(package)}:{node.name}")
        for path, node in _nodes(package)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def imported_names(package: Path = PACKAGE) -> list[Size]:
    """How many names each file takes from the package, lazily too; those that only name types are not counted."""
    return [Size(len(set(_own_names(path))), str(path.relative_to(package))) for path in sources(package)]


def _own_names(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    typing = {child for node in ast.walk(tree) if is_type_checking(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if node not in typing and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slt_callbacks"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    """Whether it is an `if TYPE_CHECKING:`, whose imports are never executed."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _nodes(package: Path) -> Iterator[tuple[Path, ast.AST]]:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            yield path, node


def _lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From its first line to its last, without the docstrings in it."""
    docstrings = 0
    for inner in ast.walk(node):
        if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(inner):
            first = inner.body[0]
            docstrings += (first.end_lineno or first.lineno) - first.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstrings


def main(package: Path = PACKAGE) -> None:
    counted = {
        "files": files(package),
        "classes, docstrings apart": classes(package),
        "functions, docstrings apart": functions(package),
        "names imported from the package": imported_names(package),
    }
    for title, sizes in counted.items():
        print(f"\n{title}: {len(sizes)}, median {statistics.median(size.lines for size in sizes):g}")
        for size in sorted(sizes, key=lambda size: -size.lines)[:_SHOWN]:
            print(f"{size.lines:>6}  {size.name}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
