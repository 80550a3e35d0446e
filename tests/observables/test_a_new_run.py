"""Observables that compare a measurement with the last one: a new run has none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from slt_callbacks import Influence, LossKernel, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring.estimator import Estimator
from tests.digests import digest, network, pairs
from tests.problems import settings, squared_error

OBSERVABLES: dict[str, Any] = {
    "kernel": (lambda: LossKernel(), "alignment"),
    "influence": (lambda: Influence(pairs()), "shift"),
}


@pytest.mark.parametrize("name", OBSERVABLES)
def test_the_first_measurement_of_a_new_run_is_compared_with_nothing(name: str) -> None:
    make, compared = OBSERVABLES[name]
    observable = make()
    estimator = Estimator(draw_reference(pairs()), squared_error, {"own": observable}, settings())
    first, second = (estimator.measure(network(), step) for step in (1, 2))
    assert math.isnan(first["own"][compared])
    assert math.isfinite(second["own"][compared])
    again = estimate(network(), pairs(), squared_error, observables={"own": observable}, sampler=settings())
    fresh = estimate(network(), pairs(), squared_error, observables={"own": make()}, sampler=settings())
    assert digest(again["own"]) == digest(fresh["own"])
    assert digest(again.media.matrices) == digest(fresh.media.matrices)
