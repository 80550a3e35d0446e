"""What the stage detector tells: stages, and what became known of their boundaries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageEvent:
    """Something became known about a stage boundary.

    Attributes:
        kind: "announced" once per boundary; "revised" when later points move it; "withdrawn" when they deny it.
        boundary_id: number of the boundary in the order of announcement, from 0.
        index: its place in the series (first point of the new stage); missing points count.
        step: training step of that point.
        key: logged key of the series, such as ``slt/llc/mean``; empty where the detector is used alone.
        stage_type: type of the stage that began, as it looks now; this and what follows: of an announcement only.
        previous_type: type of the stage before it.
        previous_step: training step of the last point of the stage before it.
        value_before: fitted value at that point, in the unit of the series.
        value_now: fitted value at the newest point.
        changed_most: the three numbers of the run that changed most there, in words, where its story is known.

    Example:
        >>> StageEvent(kind="announced", boundary_id=0, index=10, step=1000).kind
        'announced'
    """

    kind: str
    boundary_id: int
    index: int
    step: int
    key: str = ""
    stage_type: str | None = None
    previous_type: str | None = None
    previous_step: int | None = None
    value_before: float | None = None
    value_now: float | None = None
    changed_most: str = ""


@dataclass(frozen=True)
class Stage:
    """A stretch of training over which the LLC rises, falls or stays.

    Attributes:
        stage: number of the stage, from 0.
        type: "A" LLC up and loss down, "B" LLC down and loss down (Hoogland et al., arXiv 2402.02364); our extension:
            "C" LLC up and loss not down, "D" LLC down and loss not down, also where the loss is unknown; "plateau".
        status: "provisional" until the boundary at its start (the first stage: at its end) is announced, then
            "confirmed"; "final" from `StageDetector.finish`.
        start_step: training step of its first point.
        end_step: training step of its last point.
        n_points: measurements in it, missing ones included.
        llc_start: fitted value at the first point.
        llc_end: fitted value at the last point.
        delta_llc: their difference.
        delta_llc_se: its standard error, from the calibrated long-run noise.
        loss_start: fitted loss at the first point, NaN where unknown.
        loss_end: fitted loss at the last point.
        delta_loss: their difference.
        slope_per_log_step: `delta_llc` per unit of ln(1 + step).
        evidence: for the boundary at its start, chi-square units; 0 for the first stage.
        announced_at_step: training step at which that boundary was announced; None if it was not.
        revised: whether it was moved after that.
        open: whether it is the stage the run is in.

    Example:
        >>> from slt_callbacks import StageDetector
        >>> detector = StageDetector()
        >>> for step in range(60):
        ...     _ = detector.update(step, max(0, step - 30) + step % 2, 0.5, loss=-step)
        >>> [(stage.type, stage.status) for stage in detector.finish()]
        [('plateau', 'final'), ('A', 'final')]
    """

    stage: int
    type: str
    status: str
    start_step: int
    end_step: int
    n_points: int
    llc_start: float
    llc_end: float
    delta_llc: float
    delta_llc_se: float
    loss_start: float
    loss_end: float
    delta_loss: float
    slope_per_log_step: float
    evidence: float
    announced_at_step: int | None
    revised: bool
    open: bool
