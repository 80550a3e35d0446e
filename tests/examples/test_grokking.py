"""Grokking as a user runs it: a script in its own process, without a W&B account."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.examples.test_language_model import run

SCRIPT = Path(__file__).parents[2] / "examples" / "grokking.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, because matplotlib takes seconds to list the fonts in a new home."""
    return tmp_path_factory.mktemp("grokking")


@pytest.fixture(scope="module")
def smoke(home: Path) -> tuple[Path, str]:
    """The folder of a smoke run, and what it printed."""
    result = run(str(SCRIPT), "--smoke", "--output-dir", "out", folder=home)
    assert result.returncode == 0, result.stderr
    return home, result.stdout


def test_smoke_prints_a_table_of_finite_measurements(smoke: tuple[Path, str]) -> None:
    _, printed = smoke
    rows = re.findall(r"^ *(\d+) +(\S+) +(\S+)% +(\S+)% +(\S+) \+- (\S+) +(\S+)", printed, flags=re.MULTILINE)

    numbers = np.array(rows, dtype=float)
    assert numbers[0, 0] == 1
    assert numbers[-1, 0] == 60
    assert (np.diff(numbers[:, 0]) > 0).all()
    assert np.isfinite(numbers).all()
    assert numbers[-1, 1] < numbers[0, 1], "the training loss falls"
    assert numbers[-1, 2] > 90, "all is memorised"
    assert numbers[-1, 3] < 50, "and nothing understood so soon"
    assert "logging offline" in printed


def test_smoke_announces_what_its_stages_show_and_alerts_once_for_each(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    news = re.findall(r"^step +(\d+): (?:the LLC has jumped|boundary \d+ announced)", printed, flags=re.MULTILINE)
    stages = re.findall(r"^  (\S+) +steps +(\d+) to +(\d+): LLC", printed, flags=re.MULTILINE)

    assert stages[0][1] == "1"
    assert stages[-1][2] == "60"
    assert len(stages) > 1
    assert news, "found while it happened"
    assert all(int(step) < 60 for step in news)
    assert len([record for record in records(folder, printed) if record["type"] == "alert"]) == len(news)


def test_smoke_logs_llc_stage_and_accuracy(smoke: tuple[Path, str]) -> None:
    rows = [record["history"]["item"] for record in records(*smoke) if record["type"] == "history"]
    for key in ("slt/llc/mean", "slt/stage", "test/accuracy"):
        found = [row[key] for row in rows if key in row]
        assert len(found) > 5, key
        assert np.isfinite(found).all(), key


def test_smoke_draws_a_figure(smoke: tuple[Path, str]) -> None:
    with Image.open(smoke[0] / "out" / "grokking.png") as image:
        assert image.format == "PNG"
        assert 600 < image.width < 4000
        assert 400 < image.height < 4000
        assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50


def test_help_explains_every_flag(home: Path) -> None:
    result = run(str(SCRIPT), "--help", folder=home)

    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    for flag in ("--max-steps", "--prime", "--shuffle-sums", "--seed", "--output-dir", "--smoke"):
        assert re.search(rf" {flag} [^(]*[a-z]{{4}}[^(]*\(default: ", text), flag
    assert not (home / "runs").exists()


def records(folder: Path, printed: str) -> list[dict[str, dict[str, dict[str, float]]]]:
    """The W&B run that `printed` names, read back."""
    (where,) = re.findall(r"wandb leet (\S+)$", printed, flags=re.MULTILINE)
    (file,) = (folder / where).glob("run-*.wandb")
    result = run("-m", "wandb", "leet", "inspect", "--json", str(file), folder=folder)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
