"""Grokking as a user runs it: a script in its own process, without a W&B account."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from slt_callbacks import Measurement
from slt_callbacks.callbacks.reactions import describe
from slt_callbacks.recording.watch import Watch
from tests.examples.test_language_model import check_help, check_reports, loaded, run
from tests.sinks.test_sinks import read_run

SCRIPT = Path(__file__).parents[2] / "examples" / "grokking.py"

# Step, training loss, LLC and standard error, as printed by one run with the default settings: it takes minutes.
WHOLE_STORY = """
    1 3.98 1.45 0.14, 2 3.89 2.11 0.08, 3 3.81 2.14 0.22, 4 3.74 2.38 0.11, 5 3.67 2.58 0.07, 7 3.54 2.76 0.05,
    9 3.41 3.11 0.28, 11 3.28 3.41 0.14, 14 3.10 4.13 0.22, 17 2.93 4.30 0.09, 22 2.68 4.65 0.02,
    28 2.42 5.25 0.18, 36 2.14 5.49 0.06, 40 2.03 5.34 0.12, 45 1.92 5.34 0.06, 57 1.73 5.48 0.13,
    73 1.61 5.21 0.21, 80 1.58 5.32 0.10, 92 1.53 5.35 0.20, 117 1.45 5.23 0.12, 120 1.44 5.44 0.22,
    148 1.36 5.42 0.02, 160 1.33 5.37 0.17, 188 1.27 5.32 0.09, 200 1.25 5.16 0.06, 238 1.19 5.24 0.06,
    240 1.18 5.13 0.14, 280 1.13 5.24 0.14, 302 1.10 5.10 0.07, 320 1.06 5.39 0.22, 360 0.98 4.85 0.04,
    384 0.94 5.02 0.15, 400 0.92 4.89 0.05, 440 0.86 4.51 0.07, 480 0.81 4.71 0.13, 487 0.80 4.44 0.09,
    520 0.76 4.40 0.04, 560 0.70 4.24 0.06, 600 0.66 3.96 0.05, 618 0.64 3.97 0.06, 640 0.62 3.82 0.04,
    680 0.58 3.82 0.08, 720 0.54 3.63 0.08, 760 0.52 3.33 0.03, 784 0.51 3.40 0.08, 800 0.50 3.39 0.05,
    840 0.47 3.28 0.07, 880 0.45 3.21 0.09, 920 0.42 3.00 0.07, 960 0.40 2.89 0.08, 994 0.38 2.94 0.04,
    1000 0.38 2.92 0.04, 1040 0.36 2.68 0.01, 1080 0.34 2.54 0.10, 1120 0.32 2.54 0.07, 1160 0.31 2.36 0.07,
    1200 0.29 2.32 0.07, 1240 0.28 2.25 0.04, 1261 0.27 2.27 0.02, 1280 0.27 2.19 0.02, 1320 0.26 2.16 0.03,
    1360 0.25 2.08 0.05, 1400 0.24 2.11 0.06, 1440 0.24 2.06 0.02, 1480 0.23 1.92 0.02, 1520 0.22 1.91 0.06,
    1560 0.22 1.91 0.02, 1600 0.21 1.91 0.04,
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a smoke run, and what it printed."""
    home = tmp_path_factory.mktemp("grokking")
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


def test_smoke_names_its_report(smoke: tuple[Path, str]) -> None:
    check_reports(*smoke)


@pytest.mark.parametrize(
    ("types", "test", "shuffled", "title"),
    [
        (
            ["A", "plateau", "B"],
            0.98,
            False,
            "Grokking: the LLC rises as a network memorises, and falls as it generalises",
        ),
        (["A", "plateau", "B"], 0.4, False, "A network learns to add modulo 59: accuracy, loss and LLC"),
        (["A", "plateau"], 0.98, False, "A network learns to add modulo 59: accuracy, loss and LLC"),
        (["A", "plateau"], 0.0, True, "The control: nothing to understand, and the LLC stays up"),
        (["A", "B"], 0.0, True, "The control: nothing to understand"),
    ],
)
def test_the_title_says_what_the_run_has_shown(
    types: list[str], test: float, shuffled: bool, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = SimpleNamespace(stages=[SimpleNamespace(type=kind) for kind in types])
    accuracy = SimpleNamespace(found={"train": [0.1, 1.0], "test": [0.0, test]})
    args = SimpleNamespace(shuffle_sums=shuffled, prime=59)
    assert loaded(SCRIPT, monkeypatch).title_of(monitor, accuracy, args) == title


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


def test_help_explains_every_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--max-steps", "--prime", "--shuffle-sums", "--seed", "--output-dir", "--smoke")
    check_help(SCRIPT, flags, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def records(folder: Path, printed: str) -> list[dict[str, dict[str, dict[str, float]]]]:
    """The W&B run that `printed` names, read back."""
    (where,) = re.findall(r"wandb leet (\S+)$", printed, flags=re.MULTILINE)
    (file,) = (folder / where).glob("run-*.wandb")
    return read_run(file)
