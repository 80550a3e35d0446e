"""``python -m tests.passivity``: one line a case, and an exit status that says whether training was left alone."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.passivity.cases import CASES
from tests.passivity.runs import compare


def main() -> int:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    differing = 0
    for name, case in CASES.items():
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            different, watched = compare(case, Path(folder))
        good = sum(not measurement.failed for measurement in watched.history)
        verdict = f"differs in {', '.join(different)}" if different else "identical"
        differing += bool(different)
        seconds = time.perf_counter() - start
        print(f"{name:<44} {verdict:<12} {good} of {len(watched.history)} measurements, {seconds:.1f} s", flush=True)
    print(f"{len(CASES) - differing} of {len(CASES)} runs are bit-identical with and without the monitor.")
    return differing > 0


if __name__ == "__main__":
    sys.exit(main())
