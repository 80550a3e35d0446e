"""The package as others get it: built by `python -m build`, installed by pip, and run outside this repository.

A fresh environment with all that the package needs would take gigabytes and minutes. So the wheel is installed without
its dependencies into an empty environment, which then finds those of the running one behind it; that they are all
declared is a test of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import slt_callbacks
from tests.test_architecture import imported, modules

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def call(*arguments: str | Path, folder: Path) -> str:
    """What a command prints; nothing may be fetched for it."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, by way of the source archive: leftovers of earlier builds would hide what is missing."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "slt_callbacks", source / "slt_callbacks", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, folder=source)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and finds its dependencies in the running one."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, folder=home)
    (own,) = home.glob("lib/python*/site-packages")
    # Behind its own packages; the editable install of this repository is a .pth file there, and those are not followed.
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return home


def run(fresh: Path, *arguments: str, folder: Path) -> str:
    """What the fresh environment prints, isolated from PYTHONPATH and the user's packages."""
    return call(fresh / "bin" / "python", "-I", *arguments, folder=folder)


def test_the_wheel_holds_the_package_its_types_and_the_templates_of_the_report(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("slt_callbacks/")}
    folder = ROOT / "slt_callbacks"
    wanted = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert held == {f"slt_callbacks/{path.relative_to(folder).as_posix()}" for path in wanted}
    assert {"slt_callbacks/py.typed", "slt_callbacks/figures/templates/report.html"} <= held


def test_it_imports_and_makes_a_report_in_a_fresh_environment(fresh: Path, tmp_path: Path) -> None:
    """The report is made from templates that only an installed package has to find."""
    (tmp_path / "measurements.jsonl").write_text('{"step": 1, "slt/llc/mean": 2.0, "slt/llc/stderr": 0.1}\n')
    code = (
        "import importlib.metadata\n"
        "import slt_callbacks\n"
        "from slt_callbacks import estimate, write_report\n"
        "write_report('.')\n"
        "print(slt_callbacks.__file__, slt_callbacks.__version__, importlib.metadata.version('slt-callbacks'))"
    )
    place, version, told = run(fresh, "-c", code, folder=tmp_path).split()
    assert Path(place).is_relative_to(fresh), "not the one of this repository"
    assert version == told == PROJECT["version"]
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_shows_its_commands_in_a_fresh_environment(fresh: Path, tmp_path: Path) -> None:
    shown = run(fresh, "-m", "slt_callbacks", "--help", folder=tmp_path)
    assert all(re.search(rf"^ +{command} +\w", shown, re.MULTILINE) for command in ("replay", "calibrate", "report"))


def test_versions_agree_and_the_changelog_tells_of_the_newest_first() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, *_ = re.findall(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest == slt_callbacks.__version__ == PROJECT["version"]


def test_every_package_that_is_imported_is_declared() -> None:
    """As a dependency, or in the extra of those who use that part: `pip install` brings no more than these."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["cli"], *extras["examples"], *extras["workspace"], *extras["ray"]]
    declared = {normal(re.match(r"[\w.-]+", requirement).group()) for requirement in asked}  # type: ignore[union-attr]
    top = {name.split(".")[0] for _, path in modules() for name in imported(path)}
    needed = {normal({"PIL": "pillow"}.get(name, name)) for name in top - sys.stdlib_module_names}
    assert needed - {"slt-callbacks"} <= declared


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
