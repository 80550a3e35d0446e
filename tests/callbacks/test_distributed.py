import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def ranks(which: str, folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.callbacks.ddp_run", which, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_see_one_measurement_and_train_as_without_the_monitor(tmp_path: Path) -> None:
    first, second = ranks("with", tmp_path)
    assert first["steps"] == [2, 4]
    assert first["llc"] == second["llc"]
    assert first["logged"] == second["logged"] == pytest.approx(first["llc"][-1])
    plain = ranks("without", tmp_path)
    assert [rank["weights"] for rank in (first, second)] == [rank["weights"] for rank in plain]
