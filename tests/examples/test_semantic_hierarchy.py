"""The order of the flips, and their closed-form times, as the example finds them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "semantic_hierarchy.py"


@pytest.mark.slow
def test_items_turn_harmful_level_by_level_at_the_times_of_the_closed_form(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--output-dir", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(other kingdom|cousins|siblings) +(\S+) +(\S+) +(\S+)$", result.stdout, flags=re.MULTILINE)
    assert [row[0] for row in rows] == ["other kingdom", "cousins", "siblings"]
    exact, aligned, random = np.array([[float(number) for number in row[1:]] for row in rows]).T
    assert np.abs(aligned / exact - 1).max() < 0.03
    for times in (exact, aligned, random):
        assert (np.diff(times) > 0).all(), "the other kingdom, then cousins, then siblings"
    with Image.open(tmp_path / "out" / "semantic_hierarchy.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50
    maps = sorted((tmp_path / "out" / "random" / "influence").glob("map-*.png"))
    assert len(maps) > 20
    with Image.open(maps[-1]) as image:
        assert image.size == (256, 256)
        assert len(image.getcolors() or []) > 10
