"""The story of a run in sentences: what happened, when, and whether it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slt_callbacks.basics.keys import is_logged, key_of, parts_of
from slt_callbacks.basics.plain import brief
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.charts import between, compact
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.steps import RHAT, stage_spans
from slt_callbacks.figures.watched import llc_key, name_of_llc
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.measuring.naming import in_words

_VERBS = {"A": "rose", "C": "rose", "B": "fell", "D": "fell", "plateau": "held"}
_MOST_IN_A_HEADLINE = 4
_MOST_JUMPS, _MOST_OTHERS = 4, 6
# What a reader is told to mind, or to doubt: shares of the measurements whose chains disagree.
_SOME, _MANY = 0.1, 0.5
_NOISE, _BIAS, _STABLE = 0.1, 0.05, 1.0
GOOD, NOTE, MIND, DOUBT = "good", "note", "mind", "doubt"
_VERDICTS = {
    GOOD: "These numbers can be trusted.",
    MIND: "Read these numbers with care.",
    DOUBT: "Do not trust these numbers yet.",
}


@dataclass(frozen=True)
class StageTold:
    """One stage.

    Attributes:
        type: Of the stage, as in `Stage`.
        when: Its training steps.
        what: What LLC and loss did.
        announced: When its beginning was announced; empty for the first stage.
        changed: What changed most where it began.
        start: Its first step.
        end: The first step of the next one, or its last.
    """

    type: str
    when: str
    what: str
    announced: str
    changed: str
    start: float
    end: float


@dataclass(frozen=True)
class Other:
    """A turn of another number than the LLC: the sentence, when it was told, and what changed most there."""

    what: str
    when: str
    changed: str


@dataclass(frozen=True)
class Check:
    """One reason to trust the numbers, or not: "good", "note", "mind" or "doubt", and the sentence."""

    level: str
    told: str


@dataclass(frozen=True)
class Trust:
    """The verdict over all checks: the worst of them decides."""

    level: str
    verdict: str
    checks: Sequence[Check]


def headline(report: Report) -> str:
    """What happened, in one sentence.

    Example:
        >>> headline(Report([]))
        'Nothing was measured.'
        >>> headline(Report([Measurement(3, {})]))
        'One measurement, too few to tell stages.'
    """
    count, stages = len(report.history), report.stages
    if not count:
        return "Nothing was measured."
    if not stages:
        many = "One measurement" if count == 1 else f"{count:,} measurements"
        return f"{many}, {'and no stages were told' if count >= 5 else 'too few to tell stages'}."
    verbs = [_verb(before, stage) for before, stage in zip([None, *stages], stages, strict=False)]
    name = name_of_llc(report.history, llc_key(report) or "llc")
    last = max(stages[-1].end_step, report.history[-1].step if stages[-1].open else 0)
    if len(stages) == 1:
        return f"One stage: {name} {verbs[0]} all the way to step {last:,}."
    if len(stages) > _MOST_IN_A_HEADLINE:
        ends = "from {} to {}".format(*between(stages[0].llc_start, stages[-1].llc_end))
        return f"{len(stages)} stages in {last:,} steps took {name} {ends}."
    parts = [f"{verb} until step {later.start_step:,}" for verb, later in zip(verbs, stages[1:], strict=False)]
    return f"T{name[1:]} {', then '.join([*parts, verbs[-1]])}."


def stages_told(report: Report, changed: Mapping[int, str], last_step: int | None = None) -> list[StageTold]:
    """Each stage in words.

    Args:
        report: The story.
        changed: What changed most, by the first step of the stage.
        last_step: Of the last measurement, up to which the stage that is open goes; None for what the stages say.

    Example:
        >>> from slt_callbacks import StageDetector
        >>> detector = StageDetector()
        >>> for step in range(60):
        ...     _ = detector.update(step, max(0, step - 30) + step % 2, 0.5, loss=-step)
        >>> told = stages_told(Report([], detector.finish()), {})
        >>> told[1].when, told[1].what
        ('steps 31 to 59', 'The LLC rose from 1.5 to 29.5 while the loss fell from \u221231 to \u221259.')
    """
    steps = [measurement.step for measurement in report.history]
    told = []
    for stage, (start, end, *_) in zip(report.stages, stage_spans(report.stages), strict=True):
        until = max(end, last_step or 0) if stage.open else end
        told.append(
            StageTold(
                stage.type,
                f"steps {stage.start_step:,} to {max(stage.end_step, int(until) if stage.open else 0):,}",
                _what(stage),
                _announced(stage, steps),
                changed.get(stage.start_step, ""),
                start,
                until,
            )
        )
    return told


def jumps_told(report: Report) -> list[str]:
    """A sentence a jump of the LLC, of many the first ones.

    Example:
        >>> row = {"type": "JumpEvent", "direction": 1, "delta": 2.5, "onset_step": 90, "step": 100, "key": ""}
        >>> jumps_told(Report([], rows=[row], observable="llc"))
        ['The LLC jumped up by 2.5 at step 90, told at step 100.']
    """
    rows = [row for row in report.rows if is_jump(row, report.observable)]
    told = [f"{_jump('The LLC', row)[:-1]}, told at step {row['step']:,}." for row in rows[:_MOST_JUMPS]]
    more = len(rows) - len(told)
    return told + ([f"It jumped {more} more time{'s' * (more > 1)}."] if more else [])


def others_told(report: Report) -> list[Other]:
    """What became of other watched numbers than the LLC: where they took another way, or jumped; of many the first.

    Args:
        report: The story, with the rows of all events.

    Example:
        >>> row = {"type": "StageEvent", "kind": "announced", "boundary_id": 0, "key": "slt/own/x", "step": 15}
        >>> row |= {"previous_type": "B", "stage_type": "plateau", "previous_step": 10, "detected_at": 219}
        >>> row |= {"value_before": 0.468, "value_now": 0.266, "changed_most": ""}
        >>> others_told(Report([], rows=[row]))[0].what
        'Own x fell until step 15, then held: 0.468 at step 10, 0.266 at step 219.'
    """
    known = {(row.get("key"), row.get("boundary_id"), row.get("kind")): row for row in report.rows}
    watched = key_of(report.observable or "llc", "mean")
    told = []
    for row in report.rows:
        key = row.get("key") or ""
        if not is_logged(key) or key == watched:
            continue
        if row.get("type") == "JumpEvent":
            told.append(Other(_jump(_words(key), row), f"told at step {row['step']:,}", ""))
        elif row.get("kind") == "announced" and (key, row["boundary_id"], "withdrawn") not in known:
            moved = known.get((key, row["boundary_id"], "revised"), row)
            told.append(_other(key, row, moved["step"]))
    more = len(told) - _MOST_OTHERS
    return told[:_MOST_OTHERS] + (
        [Other(f"{_counted(more, 'more event')} in events.json.", "", "")] if more > 0 else []
    )


def is_jump(row: Mapping[str, Any], observable: str | None) -> bool:
    """Whether an event is a jump of the LLC that is watched.

    Example:
        >>> is_jump({"type": "StageEvent", "key": "slt/llc/mean"}, "llc")
        False
    """
    return row.get("type") == "JumpEvent" and row.get("key") in ("", key_of(observable or "llc", "mean"))


def trust(history: Sequence[Measurement], observable: str | None = "llc") -> Trust:
    """Whether the numbers can be trusted, by the health of the chains.

    Args:
        history: Measurements in order.
        observable: Of the LLC, by its key.

    Example:
        >>> sound = Measurement(3, {"llc": {"mean": 2.0, "stderr": 0.1}, "health": {"rhat": 1.0, "failed_chains": 0}})
        >>> trust([sound]).verdict, trust([sound]).checks[1].told
        ('These numbers can be trusted.', 'The chains agree in the one measurement (R-hat below 1.2).')
    """
    checks = [
        check
        for check in (
            _failures(history),
            _agreement(history),
            _dropped(history),
            _beyond(history, "stability", _STABLE, DOUBT, "a step was longer than the longest stable one"),
            _beyond(history, "noise_bias", _NOISE, MIND, "the noise of minibatches adds more than 10 % to the LLC"),
            _beyond(history, "step_bias", _BIAS, MIND, "the step size biases the LLC by more than 5 %"),
            _negative(history, observable),
        )
        if check is not None
    ]
    level = next((level for level in (DOUBT, MIND) if any(check.level == level for check in checks)), GOOD)
    if not any(math.isfinite(value) for value in _health(history, "rhat")) and not _without_chains(history):
        level = max(level, MIND, key=[GOOD, MIND, DOUBT].index)
    return Trust(level, _VERDICTS[level], checks)


def _jump(name: str, row: Mapping[str, Any]) -> str:
    way = "up" if row["direction"] > 0 else "down"
    back = ", back from a spike" if row.get("returns") else ""
    return f"{name} jumped {way} by {compact(abs(_number(row.get('delta'))))} at step {row['onset_step']:,}{back}."


def _other(key: str, row: Mapping[str, Any], step: int) -> Other:
    """A boundary of a number that is watched beside the LLC."""
    announced = f"announced at step {row['detected_at']:,}"
    changed = str(row.get("changed_most") or "")
    if row.get("previous_step") is None:
        return Other(f"{_words(key)} took another way at step {step:,}.", announced, changed)
    before, after = (_VERBS.get(str(row.get(name)), "changed") for name in ("previous_type", "stage_type"))
    ends = f"{compact(_number(row['value_now']))} at step {row['detected_at']:,}"
    if row["previous_step"] < step:  # a boundary may have moved since
        ends = f"{compact(_number(row['value_before']))} at step {row['previous_step']:,}, {ends}"
    again = {"held": "held at another level"}.get(after, f"{after} another way") if before == after else after
    return Other(f"{_words(key)} {before} until step {step:,}, then {again}: {ends}.", announced, changed)


def _words(key: str) -> str:
    """At the beginning of a sentence."""
    words = in_words("/".join(parts_of(key)))
    return words[:1].upper() + words[1:]


def _verb(before: Stage | None, stage: Stage) -> str:
    """What the LLC did; after a stage of the same kind, what is new."""
    verb = _VERBS.get(stage.type, "changed")
    if before is None or _VERBS.get(before.type) != verb:
        return verb
    return f"held near {compact((stage.llc_start + stage.llc_end) / 2)}" if verb == "held" else f"{verb} on"


def _what(stage: Stage) -> str:
    verb = _VERBS.get(stage.type, "changed")
    ends = "from {} to {}".format(*between(stage.llc_start, stage.llc_end))
    llc = f"held near {compact((stage.llc_start + stage.llc_end) / 2)}" if verb == "held" else f"{verb} {ends}"
    if not (math.isfinite(stage.loss_start) and math.isfinite(stage.loss_end)):
        return f"The LLC {llc}."
    loss = "from {} to {}".format(*between(stage.loss_start, stage.loss_end))
    if stage.type in ("A", "B") or (stage.type == "plateau" and stage.delta_loss < 0):
        return f"The LLC {llc} while the loss fell {loss}."
    return f"The LLC {llc} while the loss did not fall ({loss})."


def _announced(stage: Stage, steps: Sequence[int]) -> str:
    if stage.announced_at_step is None:
        return ""
    later = sum(stage.start_step < step <= stage.announced_at_step for step in steps)
    moved = ", later moved" if stage.revised else ""
    return f"announced at step {stage.announced_at_step:,}, {_counted(later, 'measurement')} after it began{moved}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _failures(history: Sequence[Measurement]) -> Check:
    failed = [one for one in history if one.failed]
    if not failed:
        return Check(GOOD, f"{_counted(len(history), 'measurement')}, none failed.")
    level = DOUBT if len(failed) > _MANY * len(history) else MIND
    first = f"the first, at step {failed[0].step:,}: {brief(str(failed[0].error))}"
    return Check(level, f"{len(failed):,} of {_counted(len(history), 'measurement')} failed; {first}.")


def _agreement(history: Sequence[Measurement]) -> Check:
    known = [value for value in _health(history, "rhat") if math.isfinite(value)]
    if _without_chains(history):
        return Check(GOOD, "No chains were needed: all of it was read at the weights themselves.")
    if not known:
        return Check(MIND, "Nothing is known of whether the chains agree: R-hat wants 8 draws a chain.")
    apart = sum(value > RHAT for value in known)
    if not apart:
        where = "the one measurement" if len(known) == 1 else f"all of {len(known):,} measurements"
        return Check(GOOD, f"The chains agree in {where} (R-hat below {RHAT:g}).")
    level = DOUBT if apart > _MANY * len(known) else MIND if apart > _SOME * len(known) else NOTE
    ratio = f"{apart:,} of {_counted(len(known), 'measurement')}"
    return Check(level, f"The chains disagree in {ratio} (R-hat above {RHAT:g}): hollow points in the figure.")


def _without_chains(history: Sequence[Measurement]) -> bool:
    """Whether no gradient step was taken where all went well."""
    taken = [one.results.get("cost", {}).get("sgld_steps") for one in history if not one.failed]
    return bool(taken) and all(steps == 0 for steps in taken)


def _dropped(history: Sequence[Measurement]) -> Check | None:
    dropped = [value for value in _health(history, "failed_chains") if value > 0]
    if not dropped:
        return None
    told = f"Chains went astray and were dropped in {_counted(len(dropped), 'measurement')}."
    return Check(MIND if len(dropped) > _SOME * len(history) else NOTE, told)


def _beyond(history: Sequence[Measurement], name: str, bound: float, level: str, told: str) -> Check | None:
    count = sum(value > bound for value in _health(history, name))
    if not count:
        return None
    few = level == MIND and count <= _SOME * len(history)
    return Check(NOTE if few else level, f"In {_counted(count, 'measurement')} {told}.")


def _negative(history: Sequence[Measurement], observable: str | None) -> Check | None:
    rows = [one.results.get(observable or "llc", {}) for one in history]
    below = sum(row.get("mean", math.nan) + 2 * _number(row.get("stderr"), 0.0) < 0 for row in rows)
    if not below:
        return None
    told = f"The LLC is negative in {_counted(below, 'measurement')}: chains still find lower losses than the model's."
    return Check(NOTE, f"{told} Read the order there, not the level.")


def _health(history: Sequence[Measurement], name: str) -> list[float]:
    return [_number(one.results.get("health", {}).get(name)) for one in history]


def _number(value: Any, otherwise: float = math.nan) -> float:
    return otherwise if value is None or (isinstance(value, float) and math.isnan(value)) else float(value)
