"""The digits example runs, and leaves pictures of what its table says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from tests import ready
from tests.examples.test_language_model import check_reports

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


def run(folder: Path, *arguments: str) -> tuple[str, np.ndarray]:
    """What it prints, and its table: step, loss, LLC of function and data, contrast, rank, alignment, shift."""
    result = ready.run([str(SCRIPT), *arguments, "--output-dir", "out"], folder, os.environ, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^ +(\d+)" + r" +(\S+)" * 7 + "$", result.stdout, flags=re.MULTILINE)
    return result.stdout, np.array(rows, dtype=float)


def test_a_smoke_run_prints_measurements_and_leaves_maps_and_a_figure(tmp_path: Path) -> None:
    printed, numbers = run(tmp_path, "--smoke")
    assert re.search(r"^data: .* below 0 \(here up to step 12\) where", printed, flags=re.MULTILINE), "explained"
    assert re.search(r"^\d measurements took \d+ s of \d+ s \(\d+%\)", printed, flags=re.MULTILINE)
    check_reports(tmp_path, printed)
    assert numbers[0, 0] == 1
    assert numbers[-1, 0] == 12
    assert np.isnan(numbers[0, 6:]).all(), "nothing to compare the first with"
    assert np.isfinite(numbers[1:]).all()
    for kind, size in (("kernel", (280, 280)), ("influence", (70, 280))):
        maps = sorted((tmp_path / "out" / "slt" / kind).glob("map-*.png"))
        assert len(maps) == len(numbers)
        with Image.open(maps[-1]) as image:
            assert image.size == size
            assert len(image.getcolors() or []) > 20
    with Image.open(tmp_path / "out" / "digits.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50


@pytest.mark.slow
def test_digits_that_nobody_named_come_apart_as_the_network_learns(tmp_path: Path) -> None:
    printed, numbers = run(tmp_path)
    _, loss, function, llc, contrast, rank, alignment, _ = numbers.T
    assert llc.min() < -50
    assert function.min() > 0
    assert loss[-1] < 0.05 < 0.5 < loss[0]
    # Two seeds began with 0.05 to 0.12, for images of one digit look alike, and ended with 0.18 and 0.21.
    assert contrast[:3].max() < 0.1
    assert contrast[-4:].min() > 0.12
    assert contrast.max() > 3 * contrast[0]
    assert rank[-1] > 5 * rank[0]
    assert alignment[1:6].min() > 0.6, "a map is like the one before: it is of the network, and not of the chains"
    (same,) = re.findall(r"^(\d+) of the 30 most helpful", printed, flags=re.MULTILINE)
    assert int(same) > binom.ppf(0.999, 30, 0.2), "by chance once in a thousand times"
    with Image.open(tmp_path / "out" / "digits.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 200
