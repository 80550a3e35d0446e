import itertools
import json
import math

import numpy as np
import pytest

from slt_callbacks.detection.partition import Lines, Partition, pieces
from slt_callbacks.detection.records import Stage, StageEvent
from slt_callbacks.detection.stages import StageDetector

# Flat, up, down, flat: boundaries at 30, 60, 90
CURVE = np.concatenate([np.zeros(30), np.arange(1, 31), 30 - np.arange(1, 31), np.zeros(30)])


def noisy(seed, curve=CURVE, sd=0.5):
    return 100 + curve + np.random.default_rng(seed).normal(0, sd, len(curve))


def run(values, stderr=0.5, detector=None, steps=None, loss=None):
    detector = detector or StageDetector()
    steps = range(len(values)) if steps is None else steps
    events = []
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        events += detector.update(step, float(value), stderr, None if loss is None else float(loss[i]))
    return events


def places(events):
    return [(event.kind, event.boundary_id, event.index) for event in events]


def state(detector):
    return json.dumps(detector.state_dict())


def starts(stages):
    return [stage.start_step for stage in stages]


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("seed", range(3))
def test_planted_stages(seed, side):
    detector = StageDetector()
    falling = np.linspace(3.0, 1.0, len(CURVE))
    events = run(100 + side * (noisy(seed) - 100), detector=detector, loss=falling)
    announced = [event for event in events if event.kind == "announced"]
    assert [event.boundary_id for event in announced] == [0, 1, 2]
    assert "withdrawn" not in [event.kind for event in events]
    final = detector.finish()
    assert np.abs(np.array(starts(final)) - [0, 30, 60, 90]).max() <= 3
    assert [stage.type for stage in final] == ["plateau", *("AB" if side > 0 else "BA"), "plateau"]
    assert final[1].delta_llc == pytest.approx(30 * side, abs=4 * final[1].delta_llc_se + 2)
    assert 0 < final[1].delta_llc_se < 3


def test_announced_in_time_and_only_once():
    detector, told = StageDetector(), {}
    for step, value in enumerate(noisy(0)):
        for event in detector.update(step, float(value), 0.5):
            if event.kind == "announced":
                assert event.boundary_id not in told
                told[event.boundary_id] = step
    assert [step - at for step, at in zip(told.values(), (30, 60, 90), strict=True)] == pytest.approx([6] * 3, abs=6)


def test_an_announcement_says_what_it_divides():
    first = run(noisy(0), loss=np.linspace(3.0, 1.0, len(CURVE)))[0]
    assert (first.kind, first.previous_type, first.stage_type) == ("announced", "plateau", "A")
    assert first.previous_step == first.step - 1
    # five standard errors of a level of 30 points at sd 0.5, and of the end of a line through a few
    assert first.value_before == pytest.approx(100, abs=5 * 0.5 / 30**0.5)
    assert 100 + 1 < first.value_now < 100 + 15


def test_steps_are_those_of_the_boundary():
    steps = [7 * i + 3 for i in range(len(CURVE))]
    events = run(noisy(1), steps=steps)
    assert len(events) >= 3
    assert all(event.step == steps[event.index] for event in events)
    assert min(abs(event.index - 30) for event in events) <= 3


@pytest.mark.parametrize("stderr", [0.02, 0.5, 50.0, None, math.nan])
def test_null_series_are_quiet(stderr):
    curves = [np.zeros(100), np.linspace(0, 40, 100), -40 * np.linspace(0, 1, 100) ** 1.3]
    told = [run(noisy(seed, curve), stderr) for seed in range(3) for curve in curves]
    assert sum(map(len, told)) == 0


def test_jump_is_one_boundary_between_plateaus():
    detector = StageDetector()
    jump = 20.0 * np.clip((np.arange(80) - 39) / 3, 0, 1)  # three points wide, from 40
    events = run(noisy(2, jump), detector=detector)
    assert [event.kind for event in events].count("announced") == 1
    final = detector.finish()
    assert [stage.type for stage in final] == ["plateau", "plateau"]
    assert abs(final[1].start_step - 40) <= 1


@pytest.mark.parametrize("other", [40.0, 0.3])
def test_a_count_that_leaves_0_is_one_boundary_at_once(other):
    detector = StageDetector()
    events = run([0.0] * 30 + [other] * 30, None, detector)
    assert places(events) == [("announced", 0, 30)]
    assert [(stage.type, stage.start_step) for stage in detector.finish()] == [("plateau", 0), ("plateau", 30)]


@pytest.mark.parametrize("rate", [0.02, 0.08, 0.2])
def test_rare_departures_from_0_are_no_stages(rate):
    told = 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        events = run((generator.random(150) < rate) * generator.exponential(1.0, 150), None)
        told += sum(event.kind == "announced" for event in events)
    assert told <= 4  # 1200 points


def test_noise_and_exact_values_are_two_stages_in_either_order():
    flat = np.zeros(60)
    for seed in range(3):
        noise = 40 + np.random.default_rng(seed).normal(0, 5, 60)
        for halves in ((flat, noise), (noise, flat)):
            detector = StageDetector()
            run(np.concatenate(halves), None, detector)
            assert np.abs(np.array(starts(detector.finish())) - [0, 60]).max() <= 1


def test_spikes_give_nothing():
    values = noisy(3, np.zeros(120))
    values[[20, 50, 80, 83]] += [8, -8, 8, 10]
    assert run(values) == []


@pytest.mark.filterwarnings("error")  # an overflow
@pytest.mark.parametrize("size", [1e4, 1e8, 1e12, 1e38, 1e160, 1e308])
def test_a_senseless_value_gives_nothing_ever(size):
    for seed in range(3):
        values = noisy(seed, np.zeros(90))
        values[[40, 60]] += [size, -size]
        detector = StageDetector()
        assert run(values, detector=detector) == []
        assert [stage.type for stage in detector.finish()] == ["plateau"]


def test_scale_invariance_and_sign_symmetry():
    values = noisy(4)
    plain, scaled, mirrored = StageDetector(), StageDetector(), StageDetector()
    events = places(run(values, detector=plain))
    assert places(run(4096 * values, 0.5 * 4096, detector=scaled)) == events  # a power of two: no rounding
    assert places(run(-values, detector=mirrored)) == events
    assert places(run(values, 0.01)) == events  # the size of stderr alone says nothing
    kinds = [stage.type for stage in plain.finish()]
    assert kinds == ["plateau", "C", "D", "plateau"]
    assert [stage.type for stage in mirrored.finish()] == ["plateau", "D", "C", "plateau"]
    assert [s.delta_llc for s in mirrored.finish()] == pytest.approx([-s.delta_llc for s in plain.finish()])
    assert [s.delta_llc for s in scaled.finish()] == pytest.approx([4096 * s.delta_llc for s in plain.finish()])


def test_missing_points_keep_their_index():
    values = noisy(5)
    values[np.random.default_rng(0).random(len(values)) < 0.15] = math.nan
    values[31] = math.inf
    detector = StageDetector()
    run(values, detector=detector)
    final = detector.finish()
    assert np.abs(np.array(starts(final)) - [0, 30, 60, 90]).max() <= 3
    assert sum(stage.n_points for stage in final) == len(values)


@pytest.mark.parametrize(("up", "loss", "kind"), [(1, -1, "A"), (-1, -1, "B"), (1, 0, "C"), (-1, 1, "D")])
def test_types(up, loss, kind):
    detector = StageDetector()
    losses = 2 + 0.02 * loss * np.arange(60) + np.random.default_rng(1).normal(0, 0.05, 60)
    run(noisy(6, up * np.arange(60.0)), detector=detector, loss=losses)
    (stage,) = detector.finish()
    assert stage.type == kind
    assert stage.delta_loss == pytest.approx(0.02 * loss * 59, abs=0.1)
    assert stage.loss_start == pytest.approx(2, abs=0.1)


def test_without_a_loss_nothing_is_said_to_fall():
    detector = StageDetector()
    run(noisy(6, np.arange(60.0)), detector=detector)
    (stage,) = detector.finish()
    assert stage.type == "C"
    assert math.isnan(stage.delta_loss)


def test_records():
    detector = StageDetector()
    run(noisy(7), detector=detector, loss=np.zeros(120))
    now, final = detector.stages, detector.finish()
    assert {stage.status for stage in now} <= {"provisional", "confirmed"}
    assert {stage.status for stage in final} == {"final"}
    assert [stage.stage for stage in final] == [0, 1, 2, 3]
    assert [stage.open for stage in final] == [False, False, False, True]
    for stage, after in itertools.pairwise(final):
        assert after.start_step == stage.end_step + 1
    rise = final[1]
    assert rise.n_points == rise.end_step - rise.start_step + 1
    assert rise.delta_llc == pytest.approx(rise.llc_end - rise.llc_start)
    log_steps = math.log((1 + rise.end_step) / (1 + rise.start_step))
    assert rise.slope_per_log_step == pytest.approx(rise.delta_llc / log_steps)
    assert rise.evidence > 36
    assert rise.start_step < rise.announced_at_step < 60
    assert final[0].announced_at_step is None
    assert all(type(v) in (int, float, str, bool, type(None)) for stage in final for v in vars(stage).values())


def test_statuses_follow_the_announcement():
    detector = StageDetector()
    seen = []
    for step, value in enumerate(noisy(0)[:60]):
        told = detector.update(step, float(value), 0.5)
        seen.append((bool(told), [stage.status for stage in detector.stages]))
    first = next(i for i, (told, _) in enumerate(seen) if told)
    assert seen[first][1] == ["confirmed", "confirmed"]
    assert all("confirmed" not in statuses for _, statuses in seen[:first])
    assert seen[20][1] == ["provisional"]


def test_revisions_are_told_and_recorded():
    for seed in range(10):
        detector = StageDetector()
        events = run(noisy(seed, sd=2.0), detector=detector)
        place = {}
        for event in events:
            assert (event.kind == "announced") == (event.boundary_id not in place)
            assert place.get(event.boundary_id) != event.index or event.kind == "withdrawn"
            place[event.boundary_id] = event.index
        moved = sum(event.kind == "revised" for event in events)
        assert (moved > 0) == any(stage.revised for stage in detector.stages)
        if moved:
            return
    pytest.fail("no boundary was revised in ten series")


def test_boundary_is_withdrawn_when_later_points_deny_it():
    generator = np.random.default_rng(0)
    quiet = generator.normal(0, 0.3, 40) + 2.0 * (np.arange(40) >= 25)
    loud = generator.normal(1, 5.0, 110)  # beside this noise, the step of 2 is nothing
    detector = StageDetector()
    events = run(np.concatenate([quiet, loud]), detector=detector)
    assert (events[0].kind, events[0].index) == ("announced", 25)
    assert StageEvent("withdrawn", 0, 25, 25) in events
    told = [event.boundary_id for event in events if event.kind == "announced"]
    assert told == sorted(set(told))
    assert starts(detector.finish()) == [0]


@pytest.mark.parametrize("seed", range(2))
def test_resuming_at_every_point_gives_the_same_events(seed):
    values = noisy(seed, CURVE[20:100], sd=1.0)
    values[[5, 22, 23, 60]] = math.nan
    values[40] += 15
    whole = StageDetector()
    expected = run(values, detector=whole)
    assert expected
    for stop in range(len(values)):
        first, second = StageDetector(), StageDetector()
        events = run(values[:stop], detector=first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert list(map(repr, second.stages)) == list(map(repr, first.stages))
        events += run(values[stop:], detector=second, steps=range(stop, len(values)))
        assert events == expected
        assert state(second) == state(whole)


def test_finish_and_stages_change_nothing():
    detector = StageDetector()
    run(noisy(0)[:70], detector=detector)
    before = state(detector)
    assert list(map(repr, detector.finish())) == list(map(repr, detector.finish()))
    assert len(detector.stages) == 3
    assert state(detector) == before


def test_break_gives_no_event_and_keeps_the_stages_before_it():
    detector = StageDetector()
    events = run(noisy(0)[:60], detector=detector)
    before = detector.finish()
    detector.mark_break()
    assert detector.stages == [] or starts(detector.stages) == starts(before)
    after = run(noisy(1, np.zeros(40)) + 500, detector=detector, steps=range(60, 100))
    assert after == []
    after = run(noisy(2, np.arange(30.0)) + 500, detector=detector, steps=range(100, 130))
    assert [event.boundary_id for event in after if event.kind == "announced"] == [
        sum(event.kind == "announced" for event in events)
    ]
    assert abs(after[0].index - 100) <= 3
    final = detector.finish()
    assert starts(final)[:3] == [*starts(before), 60]
    assert [stage.stage for stage in final] == list(range(len(final)))
    assert [stage.open for stage in final] == [False] * (len(final) - 1) + [True]


def test_few_points():
    detector = StageDetector()
    assert (detector.stages, detector.finish()) == ([], [])
    detector.update(0, math.nan)
    assert detector.stages == []
    detector.update(1, 3.0)
    (stage,) = detector.stages
    assert (stage.type, stage.start_step, stage.end_step, stage.n_points) == ("plateau", 0, 1, 2)
    assert stage.status == "provisional"


def test_event_is_frozen_and_plain():
    event = run(noisy(0))[0]
    assert isinstance(event, StageEvent)
    assert [type(v) for v in vars(event).values()] == [str, int, int, int, str, str, str, int, float, float, str]
    with pytest.raises(AttributeError, match="cannot assign"):
        event.step = 3
    assert Stage.__dataclass_params__.frozen


def test_step_must_grow():
    detector = StageDetector()
    detector.update(5, 1.0)
    with pytest.raises(ValueError, match=r"Expected `step` to be larger than the last one \(5\), but got 5\."):
        detector.update(5, 1.0)


def test_costs_are_residual_sums_of_squares():
    generator = np.random.default_rng(0)
    x, y, weight = np.arange(30.0), 1e6 + generator.normal(0, 1, 30), generator.uniform(0.5, 2, 30)
    lines = Lines(x, y, weight)
    costs = lines.costs(30)
    for a in (0, 7, 20):
        fit = np.polynomial.Polynomial.fit(x[a:], y[a:], 1, w=np.sqrt(weight[a:]))
        expected = float(np.sum(weight[a:] * (y[a:] - fit(x[a:])) ** 2))
        assert costs[a] == pytest.approx(expected, rel=1e-6)
        assert lines.line(a, 30).rss == pytest.approx(expected, rel=1e-6)
        assert lines.line(a, 30).at(12.0) == pytest.approx(fit(12.0))


def test_partition_is_optimal():
    generator = np.random.default_rng(1)
    y = np.concatenate([np.zeros(6), np.full(6, 9.0)]) + generator.normal(0, 1, 12)
    lines = Lines(np.arange(12.0), y, np.ones(12))
    partition = Partition()
    partition.extend(lines, 1.0)

    def cost(ends):
        return sum(lines.line(a, b).rss + 16.0 for a, b in itertools.pairwise(ends))

    every = [[0, *(k for k in range(1, 12) if bits >> k & 1), 12] for bits in range(0, 4096, 2)]
    assert cost(partition.breaks()) == pytest.approx(min(map(cost, every)))


def labelled(y, breaks, sigma):
    lines = Lines(np.arange(float(len(y))), np.asarray(y, dtype=float), np.ones(len(y)))
    return [(piece.start, piece.direction) for piece in pieces(lines, breaks, sigma)]


@pytest.mark.parametrize(("slope", "expected"), [(0.4, [(0, 1)]), (0.1, [(0, 1), (20, 0)])])
def test_a_curve_that_slows_down_is_no_plateau_unless_it_nearly_stops(slope, expected):
    # the last 8 points have a slope of at most 2.6 standard errors: not significant either way
    y = np.concatenate([np.arange(20.0), 20 + slope * np.arange(8.0)])
    found = labelled(y, [0, 20, 28], 1.0)
    assert [direction for _, direction in found] == [direction for _, direction in expected]


def test_a_bend_is_placed_where_its_lines_cross():
    y = np.maximum(np.arange(40.0) - 20, 0)  # the first point above 0 is 21
    (_, (start, direction)) = labelled(y, [0, 23, 40], 0.1)
    assert (start, direction) in [(21, 1), (22, 1)]
