"""Grokking as a user runs it: a script in its own process, without a W&B account."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slt_callbacks import Measurement
from slt_callbacks.callbacks.reactions import describe
from slt_callbacks.recording.watch import Watch
from tests.examples.test_language_model import run

SCRIPT = Path(__file__).parents[2] / "examples" / "grokking.py"

# Step, training loss, LLC and standard error, as printed by one run with the default settings: it takes minutes.
WHOLE_STORY = """
    1 3.98 3.30 0.18, 2 3.89 4.34 0.28, 3 3.81 5.29 0.27, 4 3.74 5.56 0.27, 5 3.67 5.76 0.17,
    7 3.54 6.70 0.14, 9 3.41 7.51 0.32, 11 3.28 8.44 0.04, 14 3.10 9.15 0.20, 17 2.93 9.75 0.16,
    22 2.68 10.86 0.19, 28 2.42 12.36 0.21, 36 2.14 12.02 0.26, 40 2.03 12.59 0.37, 45 1.92 13.06 0.31,
    57 1.73 12.55 0.14, 73 1.61 12.77 0.11, 80 1.58 12.89 0.25, 92 1.53 12.20 0.16, 117 1.45 12.13 0.41,
    120 1.44 12.25 0.36, 148 1.36 12.54 0.17, 160 1.33 12.29 0.21, 188 1.27 12.89 0.22, 200 1.25 12.53 0.12,
    238 1.19 12.92 0.20, 240 1.18 12.47 0.28, 280 1.13 12.36 0.27, 302 1.10 12.01 0.36, 320 1.06 12.26 0.14,
    360 0.98 11.58 0.15, 384 0.94 11.84 0.21, 400 0.92 11.77 0.08, 440 0.86 11.51 0.23, 480 0.81 10.88 0.22,
    487 0.80 10.52 0.11, 520 0.76 10.60 0.14, 560 0.70 9.99 0.13, 600 0.66 9.88 0.21, 618 0.64 9.37 0.20,
    640 0.62 9.42 0.11, 680 0.58 8.94 0.08, 720 0.54 8.77 0.21, 760 0.52 8.68 0.08, 784 0.51 8.45 0.14,
    800 0.50 8.56 0.20, 840 0.47 8.22 0.11, 880 0.45 7.94 0.17, 920 0.42 7.54 0.11, 960 0.40 7.52 0.24,
    994 0.38 7.06 0.05, 1000 0.38 7.27 0.06, 1040 0.36 6.76 0.04, 1080 0.34 6.36 0.10, 1120 0.32 6.43 0.12,
    1160 0.31 6.23 0.12, 1200 0.29 5.96 0.08, 1240 0.28 5.83 0.08, 1261 0.27 5.82 0.14, 1280 0.27 5.90 0.06,
    1320 0.26 5.63 0.09, 1360 0.25 5.65 0.17, 1400 0.24 5.52 0.11, 1440 0.24 5.20 0.10, 1480 0.23 5.11 0.04,
    1520 0.22 5.10 0.03, 1560 0.22 5.09 0.09, 1600 0.21 4.97 0.10,
"""


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


def test_the_whole_story_is_found_while_it_happens() -> None:
    rows = [tuple(map(float, row.split())) for row in WHOLE_STORY.replace("\n", " ").split(",") if row.strip()]
    watch = Watch()
    for step, loss, mean, stderr in rows:
        watch.update(Measurement(int(step), {"llc": {"mean": mean, "stderr": stderr, "reference_loss": loss}}))
    told = [found for found in watch.found if getattr(found.event, "kind", "") == "announced"]
    assert [(found.event.previous_type, found.event.stage_type) for found in told] == [
        ("A", "plateau"),
        ("plateau", "B"),
    ]
    end_of_the_rise, fall = (found.detected_at for found in told)
    assert end_of_the_rise < 200, "it knows the training samples by heart at step 60"
    assert fall < 880, "of the others it knows half by then"
    assert all(describe(found.event) is not None for found in told), "news that `Alert` tells"
    watch.finish()
    assert [stage.type for stage in watch.stages] == ["A", "plateau", "B"]


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
