"""What a story keeps of a measurement that has failed."""

from __future__ import annotations

import math
from typing import Any

from slt_callbacks import LLC, LossKernel, Measurement
from slt_callbacks.recording.history import remembered
from slt_callbacks.recording.story import Story
from slt_callbacks.recording.watch import Watch


def after_a_resume(observables: dict[str, Any]) -> Story:
    """Of a run that had an LLC, a kernel and a refinement, with one measurement before."""
    scalars = {"llc/mean": 1.5, "kernel/trace": 2.0, "health/rhat": 1.0, "cost/seconds": 3.0}
    before = remembered(1, scalars, None, {"head": {"llc": {"mean": 0.5}, "health": {"rhat": 1.1}}})
    return Story(Watch(observables=observables, refinements=["head"]), observables, before=[before])


def test_a_run_resumed_without_an_observable_does_not_log_it_where_a_measurement_fails() -> None:
    story = after_a_resume({"llc": LLC()})
    logged = story.record(Measurement(2, {"llc": {}}, error="lost"), log_step=0).scalars
    assert {key for key, value in logged.items() if math.isnan(value)} >= {"slt/llc/mean", "slt/health/rhat"}
    assert not [key for key in logged if key.startswith(("slt/kernel", "slt/cost"))]


def test_a_run_resumed_with_it_does() -> None:
    story = after_a_resume({"llc": LLC(), "kernel": LossKernel()})
    logged = story.record(Measurement(2, {"llc": {}}, error="lost"), log_step=0).scalars
    assert math.isnan(logged["slt/kernel/trace"])


def test_a_refinement_that_fails_is_a_whole_row_beside_a_main_one_that_does_not() -> None:
    """Of the last time that it was measured; what the failure itself says stays."""
    story = after_a_resume({"llc": LLC()})
    record = {"health": {"failed_chains": 4}, "cost": {"seconds": 0.1, "sgld_steps": 0}, "error": "ValueError: no"}
    failed = Measurement(2, {"llc": {"mean": 1.0}}, refinements={"head": record})
    logged = story.record(failed, log_step=0).scalars
    assert logged["slt/llc/mean"] == 1.0
    assert logged["slt/health/head/failed_chains"] == 4
    assert math.isnan(logged["slt/llc/head/mean"])
    assert math.isnan(logged["slt/health/head/rhat"])
