"""What detection costs at every measurement of a long run.

Measured on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other work):

* detection at 500 points, an update = 0.5 ms (wanted <= 1 ms).
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from slt_callbacks import Measurement
from slt_callbacks.recording.watch import Watch
from tests.benchmarks.rows import Row, at_most

_POINTS = 500


def rows() -> list[Row]:
    """The monitor's own way: both detectors, and the numbers that are logged of them."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, _POINTS + 60) + np.arange(_POINTS + 60) // 100 * 20.0
    watch, spent = Watch(), []
    for step, value in enumerate(values.tolist()):
        llc = {"mean": value, "stderr": 1.0, "reference_loss": 2.0}
        measurement = Measurement(step, {"llc": llc, "health": {"failed_chains": 0, "num_chains": 4}})
        start = time.perf_counter()
        watch.update(measurement)
        watch.scalars()
        spent.append(1e3 * (time.perf_counter() - start))
    late = spent[_POINTS:]
    note = f"jumps, stages and their logged numbers; the slowest of {len(late)} took {max(late):.2f} ms"
    return [at_most(f"detection at {_POINTS} points, an update", statistics.median(late), 1.0, "ms", note)]
