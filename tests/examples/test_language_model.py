"""The main job as a user runs it: a script in its own process, without a W&B account."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from tests import ready

SCRIPT = Path(__file__).parents[2] / "examples" / "language_model.py"


def environment(folder: Path) -> dict[str, str]:
    """That of a user whose home is `folder`, so that no account is found."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return kept | {"HOME": str(folder), "NETRC": str(folder / "netrc"), "PYTHONPATH": str(SCRIPT.parents[1])}


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in `folder`, which is also the home."""
    return ready.run(arguments, folder, environment(folder), timeout=120)


def run_afresh(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As `run`, in an interpreter that has imported nothing: one example a suite is started as users start theirs."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def loaded(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ModuleType:
    """A script as a module, under a command line: a process of its own would take seconds to import what is here."""
    spec = importlib.util.spec_from_file_location(f"example_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script.name, *arguments])
    return module


def check_help(
    script: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `--help` prints, every flag with words of its own and its default."""
    with pytest.raises(SystemExit) as told:
        loaded(script, monkeypatch, "--help").main()
    assert told.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in flags:
        assert re.search(rf" {flag} [^(]*[a-z]{{4}}[^(]*\(default: ", text), flag
    return text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, because matplotlib takes seconds to list the fonts in a new home."""
    return tmp_path_factory.mktemp("language_model")


@pytest.fixture(scope="module")
def smoke(home: Path) -> tuple[Path, str]:
    """The folder of a smoke run, and what it printed."""
    result = run_afresh(str(SCRIPT), "--smoke", "--output-dir", "out", folder=home)
    assert result.returncode == 0, result.stderr
    return home, result.stdout


def test_smoke_prints_a_table_of_finite_measurements(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    rows = re.findall(r"^ *(\d+) +(\S+) +(\S+) \+- (\S+) +(\S+) +(\S+)$", printed, flags=re.MULTILINE)

    assert [int(row[0]) for row in rows] == [1, 2, 3, 6, 12]
    assert np.isfinite([[float(value) for value in row] for row in rows]).all()
    assert all(0 < float(loss) < 6 for _, loss, *_ in rows)
    assert all(float(function) > 0 for *_, function in rows)
    assert "logging offline" in printed
    _, stages = printed.split("\nThe stages:\n")
    (stage,) = re.findall(r"^  (\S+) +steps +(\d+) to +(\d+): LLC +(\S+) -> +(\S+)$", stages, flags=re.MULTILINE)
    assert stage[:3] == ("plateau", "1", "12"), "too few measurements for a second one"
    assert np.isfinite([float(value) for value in stage[3:]]).all()
    assert re.search(r"measurements took .* \(\d+%\)", printed)
    assert {path.name for path in folder.iterdir()} <= {"out", ".cache", ".config", ".local"}


def test_smoke_draws_a_figure(smoke: tuple[Path, str]) -> None:
    with Image.open(smoke[0] / "out" / "language_model.png") as image:
        assert image.format == "PNG"
        assert 600 < image.width < 4000
        assert 400 < image.height < 4000
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50


def check_reports(folder: Path, printed: str) -> None:
    """Every report that was named is there."""
    named = re.findall(r"^The report: (\S+)$", printed, flags=re.MULTILINE)
    assert named
    for path in named:
        assert "<html" in (folder / path).read_text(encoding="utf-8"), path


def test_smoke_names_its_report(smoke: tuple[Path, str]) -> None:
    check_reports(*smoke)


def test_the_title_says_what_the_run_has_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    example = loaded(SCRIPT, monkeypatch)
    for types, end in ((("A", "plateau"), "rises and settles"), (("plateau", "A"), "rises"), (("plateau",), "its LLC")):
        stages = [SimpleNamespace(type=kind) for kind in types]
        assert example.title_of(SimpleNamespace(stages=stages)).endswith(end)


def test_smoke_leaves_a_run_that_leet_can_read(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    (where,) = re.findall(r"wandb leet (\S+)$", printed, flags=re.MULTILINE)
    (file,) = (folder / where).glob("run-*.wandb")

    result = run_afresh("-m", "wandb", "leet", "inspect", "--json", str(file), folder=folder)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]

    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    found = [row["slt/llc/mean"] for row in rows if "slt/llc/mean" in row]
    assert len(found) == 5
    assert np.isfinite(found).all()


def test_the_whole_story_has_at_least_twenty_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    example = loaded(SCRIPT, monkeypatch)
    arguments = example.parse_arguments()
    monitor = example.make_monitor(TensorDataset(torch.zeros(256, 65).long()), arguments)
    due = [step for step in range(1, arguments.max_steps + 1) if monitor._run.trigger.at_step(step)]
    assert len(due) >= 20
    assert (due[-1], monitor._asked.max_overhead) == (4000, None), "up to the end, and none is left out"


def test_help_explains_every_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--max-steps", "--d-model", "--layers", "--seed", "--output-dir", "--smoke")
    assert "(default: 4000)" in check_help(SCRIPT, flags, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []
