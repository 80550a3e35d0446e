"""A process beside, on the GPU that trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from slt_callbacks import Estimator, ProcessExecutor
from slt_callbacks.weights.snapshot import Snapshot
from tests.digests import digest
from tests.executors.leftovers import here, nothing_since
from tests.executors.obedient import RAISES, Obeyed, estimator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module", params=[None, "cpu"])
def worker(request: Any) -> Iterator[tuple[ProcessExecutor, Estimator, str]]:
    """Where the module is, or on the CPU; an estimator in this process that is asked the same there; and where."""
    before = here()
    executor = ProcessExecutor(device=request.param)
    executor.open(estimator())
    yield executor, estimator(), "cuda" if request.param is None else request.param
    executor.close()
    nothing_since(before)


def test_its_numbers_are_those_of_this_process(worker: tuple[ProcessExecutor, Estimator, str]) -> None:
    executor, alone, device = worker
    for step in (1, 2):
        executor.submit(Snapshot(step, Obeyed().cuda()))
        (found,) = executor.drain(120.0)
        assert found.error is None
        assert digest(found.results) == digest(alone.measure(Obeyed().to(device), step).results)


def test_what_it_raises_is_a_failed_measurement_and_it_goes_on(
    worker: tuple[ProcessExecutor, Estimator, str],
) -> None:
    executor, alone, device = worker
    executor.submit(Snapshot(3, Obeyed(RAISES).cuda()))
    assert "no such column" in str(executor.drain(120.0)[0].error)
    alone.attempt(Obeyed(RAISES).to(device), 3)
    executor.submit(Snapshot(4, Obeyed().cuda()))
    assert digest(executor.drain(120.0)[0].results) == digest(alone.measure(Obeyed().to(device), 4).results)
