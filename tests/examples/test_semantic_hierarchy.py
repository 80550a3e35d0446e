"""The order of the flips, and their closed-form times, as the example finds them and as Influence reports them."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import ready
from tests.examples.test_language_model import check_reports

SCRIPT = Path(__file__).parents[2] / "examples" / "semantic_hierarchy.py"
BETWEEN = 0.4  # time between two measurements: 20 steps at a learning rate of 0.02


@pytest.mark.slow
def test_items_turn_harmful_level_by_level_at_the_times_of_the_closed_form(tmp_path: Path) -> None:
    result = ready.run([str(SCRIPT), "--output-dir", "out"], tmp_path, os.environ, timeout=600)
    assert result.returncode == 0, result.stderr
    pattern = r"^(other kingdom|cousins|siblings)" + r" +(\S+)" * 5 + "$"
    rows = re.findall(pattern, result.stdout, flags=re.MULTILINE)
    assert [row[0] for row in rows] == ["other kingdom", "cousins", "siblings"]
    exact, aligned, told, random, told_random = np.array([[float(number) for number in row[1:]] for row in rows]).T
    assert np.abs(aligned / exact - 1).max() < 0.03
    for times in (exact, aligned, told, random, told_random):
        assert (np.diff(times) > 0).all(), "the other kingdom, then cousins, then siblings"
    # A flip is certain when the curve is as far below zero as the interval is wide: a correlation of -0.076 for a pair
    # (3.16 / sqrt(64 x 27)), which the closed form has 0.93 (cousins) and 0.86 (siblings) after its zero; and it is
    # seen at the next measurement. The mean over a kingdom has a narrower interval.
    for found, crossed in ((told, aligned), (told_random, random)):
        assert (found >= crossed - BETWEEN).all()
    assert (told <= exact + 0.93 + BETWEEN).all()
    stages = re.findall(r"^(root|kingdoms|classes|species) +(\S+) +(\S+)$", result.stdout, flags=re.MULTILINE)
    assert [stage[0] for stage in stages] == ["root", "kingdoms", "classes", "species"]
    half, boundary = np.array([[float(number) for number in stage[1:]] for stage in stages]).T
    strength = np.sqrt([15, 7, 3, 1])
    # A logistic rise e^(2 s t / 8) takes 4 ln 9 / s from half to nine tenths; and the measurements are 2 apart.
    assert (np.abs(boundary - half) <= 4 * np.log(9) / strength + 2).all()
    assert len(set(boundary)) == 4, "one for each level"
    assert (tmp_path / "out" / "stages" / "stages.png").exists()
    check_reports(tmp_path, result.stdout)
    with Image.open(tmp_path / "out" / "semantic_hierarchy.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50
    maps = sorted((tmp_path / "out" / "random" / "influence").glob("map-*.png"))
    assert len(maps) > 20
    with Image.open(maps[-1]) as image:
        assert image.size == (256, 256)
        assert len(image.getcolors() or []) > 10
    assert list((tmp_path / "out" / "random" / "influence").glob("events-*.csv"))
