"""``python -m tests.passivity``: one line a case, and an exit status that says whether training was left alone.

``--accelerator gpu`` runs the cases of `cases.py` on a GPU, with deterministic algorithms, and adds the most memory
that its allocator had given out at a time, without the monitor and with it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.passivity.cases import CASES
from tests.passivity.others import OTHERS
from tests.passivity.runs import Comparison, compare


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.passivity", description=__doc__)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    accelerator = parser.parse_args(arguments).accelerator
    if accelerator == "gpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    differing = skipped = 0
    for name, comparing in _all(accelerator).items():
        start = time.perf_counter()
        line = _line(comparing)
        differing += not line.startswith(("identical", "skipped"))
        skipped += line.startswith("skipped")
        print(f"{name:<46} {line}, {time.perf_counter() - start:.1f} s", flush=True)
    total = len(_all(accelerator)) - skipped
    print(f"{total - differing} of {total} runs are bit-identical with and without the monitor; {skipped} skipped.")
    return differing > 0


def _all(accelerator: str) -> dict[str, Callable[[Path], Comparison] | str]:
    """What makes each comparison, or why it is not made."""
    cases: dict[str, Callable[[Path], Comparison] | str] = {
        name: case.needs_gpu
        if case.needs_gpu and accelerator == "cpu"
        else partial(compare, case, accelerator=accelerator)
        for name, case in CASES.items()
    }
    return cases | OTHERS if accelerator == "cpu" else cases


def _line(comparing: Callable[[Path], Comparison] | str) -> str:
    if isinstance(comparing, str):
        return f"skipped: {comparing}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            return comparing(Path(folder)).line()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # one case must not hide the others
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
