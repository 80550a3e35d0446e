"""The digits example runs, and leaves pictures of what its table says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


def test_a_smoke_run_prints_measurements_and_leaves_maps_and_a_figure(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--output-dir", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^ +(\d+)" + r" +(\S+)" * 6 + "$", result.stdout, flags=re.MULTILINE)
    numbers = np.array(rows, dtype=float)
    assert numbers[0, 0] == 1
    assert numbers[-1, 0] == 12
    assert np.isnan(numbers[0, 5:]).all(), "nothing to compare the first with"
    assert np.isfinite(numbers[1:]).all()
    for kind, size in (("kernel", (280, 280)), ("influence", (56, 280))):
        maps = sorted((tmp_path / "out" / "slt" / kind).glob("map-*.png"))
        assert len(maps) == len(rows)
        with Image.open(maps[-1]) as image:
            assert image.size == size
            assert len(image.getcolors() or []) > 20
    with Image.open(tmp_path / "out" / "digits.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50
