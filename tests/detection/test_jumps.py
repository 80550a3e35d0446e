import json
import math

import numpy as np
import pytest

from slt_callbacks.detection.jumps import JumpDetector, JumpEvent


def noisy(seed, n=80, at=None, size=10.0, width=1, sd=1.0, level=50.0):
    values = level + np.random.default_rng(seed).normal(0, sd, n)
    if at is not None:
        values += size * np.clip((np.arange(n) - at + 1) / width, 0, 1)
    return values


def run(values, stderr=1.0, detector=None, steps=None):
    detector = detector or JumpDetector()
    steps = range(len(values)) if steps is None else steps
    events = [detector.update(step, float(value), stderr) for step, value in zip(steps, values, strict=True)]
    return [event for event in events if event is not None]


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("side", [1, -1])
def test_planted_jump_gives_one_event_in_time(width, side):
    for seed in range(5):
        (event,) = run(noisy(seed, at=40, size=side * 20.0, width=width))
        assert event.direction == side
        assert 41 <= event.index <= 40 + width
        assert 39 <= event.onset_index <= 41
        assert event.step == event.index
        assert event.delta * side > 8
        assert event.z > 4.2


def test_size_of_a_finished_jump():
    (event,) = run(noisy(0, at=40, size=20.0))
    assert event.delta == pytest.approx(20, abs=3)


def test_steps_are_those_of_the_series():
    steps = [10 * i for i in range(80)]
    (event,) = run(noisy(0, at=40, size=20.0), steps=steps)
    assert (event.step, event.onset_step) == (10 * event.index, 400)


@pytest.mark.parametrize("stderr", [0.02, 1.0, 50.0, None, math.nan])
def test_null_series_are_quiet(stderr):
    events = sum(len(run(noisy(seed, 200), stderr)) for seed in range(8))
    assert events <= 1  # 1600 points; 0.03 per 100 is what correlated noise with spikes gives


def test_ramp_is_no_staircase():
    for seed in range(5):
        ramp = np.concatenate([np.zeros(30), np.arange(60) * 3.0])
        assert len(run(noisy(seed, 90) + ramp)) <= 1


def test_wandering_noise_raises_the_bar_itself():
    events = 0
    for seed in range(8):
        wander = np.zeros(200)
        for i, shock in enumerate(np.random.default_rng(seed).normal(0, 1, 199)):
            wander[i + 1] = 0.95 * wander[i] + shock
        events += len(run(50 + wander + np.random.default_rng(seed + 99).normal(0, 0.3, 200)))
    assert events <= 3  # 11 where forecast errors are not held against the noise scale


def test_single_spikes_give_nothing():
    for seed in range(5):
        values = noisy(seed, 120)
        values[[40, 60, 63, 100]] += [15, -15, 20, 15]
        assert run(values) == []


@pytest.mark.filterwarnings("error")  # an overflow
@pytest.mark.parametrize("size", [1e4, 1e8, 1e12, 1e38, 1e160, 1e308])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_senseless_value_gives_nothing_ever_and_hides_nothing(size, sign):
    for seed in range(3):
        values = noisy(seed, 90, at=70, size=20.0)
        values[[40, 50]] += [sign * size, -sign * size]
        assert [(event.index, event.direction) for event in run(values)] == [(71, 1)]


@pytest.mark.parametrize("before", [9, 30, 200])
@pytest.mark.parametrize(
    ("value", "other"), [(0, 40), (0, 0.3), (0, -7), (7, 40), (7.5, 7.6), (-3, 0), (40, 0), (1e-9, 2e-9)]
)
@pytest.mark.parametrize("stderr", [None, 0.3])
def test_a_constant_that_changes_jumps_at_once_and_only_once(before, value, other, stderr):
    (event,) = run([value] * before + [other] * 100, stderr)
    assert (event.onset_index, event.index) == (before, before + 1)
    assert event.delta == pytest.approx(other - value)
    assert event.direction == (1 if other > value else -1)


def test_a_staircase_gives_an_event_a_step():
    levels = [0, 5, 40, 10, 3, 60, 0]
    events = run([level for level in levels for _ in range(12)])
    assert [event.onset_index for event in events] == [12, 24, 36, 48, 60, 72]
    assert [event.delta for event in events] == pytest.approx(np.diff(levels))
    short = run([0.0] * 10 + [40.0] * 8 + [0.0] * 10 + [40.0] * 10)
    assert [event.onset_index for event in short] == [10, 18, 28]


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_noise_that_begins_after_a_constant_is_no_flood(value):
    for seed in range(8):
        events = run(np.concatenate([np.full(60, value), noisy(seed, 120, sd=4.0)]), None)
        assert [(event.onset_index, event.direction) for event in events] == [(60, 1)]


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.12, 0.3])
def test_rare_ones_in_a_count_give_nothing(value, rate):
    for seed in range(6):
        assert run(value + (np.random.default_rng(seed).random(150) < rate), None) == []


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.12, 0.3])
def test_rare_departures_from_a_constant_are_no_flood(rate):
    events = 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        events += len(run((generator.random(150) < rate) * generator.exponential(1.0, 150), None))
    assert events <= 6  # 1500 points


def test_neither_an_early_bend_nor_a_senseless_value_hides_the_jump_of_a_count():
    assert [event.onset_index for event in run([12, 5] + [0] * 60 + [10] * 20)] == [62]
    assert [event.onset_index for event in run([0] * 20 + [1e38] + [0] * 20 + [40] * 20)] == [41]


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("side", [1, -1])
def test_a_spike_of_several_points_gives_its_rise_and_its_return(width, side):
    for seed in range(8):
        values = noisy(seed, 90)
        values[40 : 40 + width] += 15.0 * side
        values[60:] += 15.0 * side  # the level afterwards is the right one: what comes later is found as ever
        rise, back, later = run(values)
        assert [event.direction for event in (rise, back, later)] == [side, -side, side]
        assert [event.onset_index for event in (rise, back, later)] == [40, 40 + width, 60]
        assert max(rise.index - 40, back.index - 40 - width, later.index - 60) <= 2
        assert [event.delta for event in (rise, back, later)] == pytest.approx(
            [15 * side, -15 * side, 15 * side], abs=3
        )
        assert [event.returns for event in (rise, back, later)] == [False, width < 6, False]


def test_a_spike_is_never_told_by_half():
    told = []
    for seed in range(60):
        values = noisy(seed, 70)
        values[40 : 42 + seed % 2] += 8.0  # about as large as an alert needs
        told.append([event.direction for event in run(values)])
    assert [one for one in told if one not in ([], [1, -1])] == []
    assert told.count([1, -1]) > 30


def test_spikes_in_a_row_are_told_one_by_one():
    for seed in range(6):
        values = noisy(seed, 90)
        for at in (40, 48, 56):
            values[at : at + 2] += 20
        assert [event.direction for event in run(values)] == [1, -1] * 3


def test_a_jump_past_the_old_level_takes_nothing_back():
    values = noisy(0, at=40, size=20.0)
    values[42:] -= 60
    assert [(event.direction, event.returns) for event in run(values)] == [(1, False), (-1, False)]


def test_sign_symmetry_and_scale_invariance():
    for seed in range(3):
        values = noisy(seed, at=40, size=12.0, width=2)
        events = run(values)
        mirrored = run(-values)
        scaled = run(4096.0 * values, 4096.0)  # a power of two: no rounding
        assert [(e.index, e.direction) for e in mirrored] == [(e.index, -e.direction) for e in events]
        assert [(e.index, e.direction, e.delta / 4096) for e in scaled] == [
            (e.index, e.direction, e.delta) for e in events
        ]
        assert [e.index for e in run(values, 0.02)] == [e.index for e in run(values, 1.0)] != []


def test_missing_points_keep_their_index():
    values = noisy(0, at=40, size=20.0)
    values[[10, 11, 25, 39, 41]] = [math.nan] * 4 + [math.inf]
    (event,) = run(values)
    assert event.index == 42
    assert event.onset_index == 40


def test_jump_back_gives_the_other_direction():
    values = noisy(1, 90, at=30, size=20.0) - 20.0 * (np.arange(90) >= 60)
    assert [(e.direction, e.index) for e in run(values)] == [(1, 31), (-1, 61)]


def test_presets_are_ordered():
    def count(preset):
        return sum(len(run(noisy(s, 60, at=40, size=5.0), detector=JumpDetector(preset))) for s in range(24))

    sensitive, default, strict = count("sensitive"), count("default"), count("strict")
    assert sensitive > default > strict
    assert run(noisy(0, at=40, size=30.0), detector=JumpDetector("strict"))[0].preset == "strict"


def test_min_jump_is_a_fraction_of_the_level():
    values = noisy(0, at=40, size=20.0)  # from 50 to 70
    assert len(run(values, detector=JumpDetector(min_jump=0.3))) == 1
    assert run(values, detector=JumpDetector(min_jump=0.5)) == []


def smooth(name, n=120):
    t = np.arange(float(n))
    return {
        "settles": 50 + 0.1 * np.exp(-t / 8),
        "settles from below": 50 * (1 - 0.002 * np.exp(-t / 15)),
        "swings": 50 * (1 + 0.002 * np.exp(-t / 20) * np.cos(t / 6)),
        "moves on": 50 + 0.1 * np.clip((t - 50) / 4, 0, 1),
        "steps": 50 + 0.1 * (t >= 50),
        "grows": 51 - 50 * np.exp(-t / 20),
        "falls": 100 / (1 + t / 5),
        "ramp": 10 + 0.1 * t,
    }[name]


@pytest.mark.parametrize(
    "name", ["settles", "settles from below", "swings", "moves on", "steps", "grows", "falls", "ramp"]
)
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5, 1e-4])
@pytest.mark.parametrize("side", [1, -1])
def test_a_smooth_curve_gives_no_alert(name, noise, side):
    values = smooth(name) * (1 + noise * np.random.default_rng(0).normal(size=120))
    assert run(side * values, None) == []


def test_a_small_step_is_told_where_it_is_asked_for():
    (event,) = run(smooth("steps"), None, JumpDetector(min_jump=0.0))
    assert event.onset_index == 50
    (event,) = run(50 + 10 * (smooth("steps") - 50), None)  # 2 % of the level
    assert event.onset_index == 50


def test_no_jump_is_small_at_a_level_of_0():
    values = np.random.default_rng(0).normal(0, 1e-6, 80) + 1e-4 * (np.arange(80) >= 40)
    assert [event.onset_index for event in run(values, None)] == [40]


@pytest.mark.parametrize("seed", range(3))
def test_resuming_at_every_point_gives_the_same_events(seed):
    values = noisy(seed, 70, at=25, size=15.0, width=3) - 12.0 * (np.arange(70) >= 62)
    values[[7, 33]] = math.nan
    values[45:47] += 20
    unstopped = JumpDetector("sensitive", 0.01)
    whole = run(values, detector=unstopped)
    assert [event.returns for event in whole] == [False, False, True, False]
    for stop in range(len(values)):
        first, second = JumpDetector("sensitive", 0.01), JumpDetector()
        events = run(values[:stop], detector=first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        events += run(values[stop:], detector=second, steps=range(stop, 70))
        assert events == whole
        assert json.dumps(second.state_dict()) == json.dumps(unstopped.state_dict())
        assert (second.sensitivity, second.min_jump) == ("sensitive", 0.01)


def test_a_checkpoint_from_before_returns_were_told_loads():
    values = noisy(0, at=40, size=20.0)
    first, second = JumpDetector(), JumpDetector()
    run(values[:30], detector=first)
    state = first.state_dict()
    del state["jumped"]
    second.load_state_dict(state)
    assert run(values[30:], detector=second, steps=range(30, 80)) == run(
        values[30:], detector=first, steps=range(30, 80)
    )


def test_state_is_a_copy():
    detector = JumpDetector()
    run(noisy(0, 20), detector=detector)
    state = detector.state_dict()
    before = json.dumps(state)
    run(noisy(0, 20), detector=detector, steps=range(20, 40))
    assert json.dumps(state) == before


def test_break_gives_no_event_and_later_jumps_do():
    values = noisy(0, 90, at=40, size=50.0) + 30.0 * (np.arange(90) >= 70)
    detector = JumpDetector()
    events = run(values[:40], detector=detector)
    detector.mark_break()
    events += run(values[40:], detector=detector, steps=range(40, 90))
    assert [(e.index, e.onset_index, e.step) for e in events] == [(71, 70, 71)]


def test_phi():
    detector = JumpDetector()
    assert math.isnan(detector.phi)
    run(noisy(0, 200), 0.5, detector=detector)
    assert detector.phi == pytest.approx(2.0, rel=0.3)


def test_event_is_frozen_and_plain():
    (event,) = run(noisy(0, at=40, size=20.0))
    assert isinstance(event, JumpEvent)
    assert [type(v) for v in vars(event).values()] == [int, int, int, float, float, int, int, str, str, bool]
    with pytest.raises(AttributeError, match="cannot assign"):
        event.step = 3


def test_refusals():
    with pytest.raises(ValueError, match=r"Expected `sensitivity` to be one of .*'strict'.*, but got 'x'\."):
        JumpDetector("x")
    with pytest.raises(ValueError, match=r"Expected `min_jump` to be a non-negative number, but got -1\."):
        JumpDetector(min_jump=-1)
    with pytest.raises(ValueError, match=r"Expected `min_jump`.*nan"):
        JumpDetector(min_jump=math.nan)
    detector = JumpDetector()
    detector.update(5, 1.0)
    for step in (5, 4):
        with pytest.raises(ValueError, match=rf"Expected `step` to be larger than the last one \(5\), but got {step}"):
            detector.update(step, 1.0)
