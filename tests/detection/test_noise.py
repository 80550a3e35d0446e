import json
import math

import numpy as np
import pytest

from slt_callbacks.detection.jumps import JumpDetector
from slt_callbacks.detection.noise import NoiseModel, isolated_spikes
from slt_callbacks.detection.stages import StageDetector


def fill(values, stderr=None, chains=4):
    noise = NoiseModel()
    for i, value in enumerate(values):
        error = stderr[i] if isinstance(stderr, (list, np.ndarray)) else stderr
        noise.add(float(value), error, chains)
    return noise


def white(seed, n=400, sd=1.0):
    return np.random.default_rng(seed).normal(0, sd, n)


@pytest.mark.parametrize("stderr", [0.02, 1.0, 50.0])
def test_phi_is_the_noise_over_the_standard_error(stderr):
    # 400 points: the median of absolute second differences has a standard error of about 6 %
    assert fill(3 + white(0), stderr).phi == pytest.approx(1 / stderr, rel=0.2)


def test_phi_ignores_trend_and_spikes():
    values = white(1) + 0.5 * np.arange(400)
    values[::40] += 30
    assert fill(values, 1.0).phi == pytest.approx(1.0, rel=0.25)


def test_phi_is_unknown_below_five_points_and_for_a_constant_of_zero():
    assert math.isnan(fill([1.0, 2.0, 1.0, 2.0], 0.1).phi)
    assert fill([1.0, 2.0, 1.0, 2.0, 1.0], 0.1).phi > 0
    assert math.isnan(fill([0.0] * 30, 0.1).phi)


@pytest.mark.parametrize(("value", "rounding"), [(7.5, 7.5e-6), (-0.3, 0.3e-6), (7.0, 12**-0.5)])
def test_phi_of_a_constant_is_its_rounding(value, rounding):
    for stderr in (None, 0.02):
        noise = fill([value] * 30, stderr)
        assert noise.phi * noise.scales[-1] == pytest.approx(rounding)


def test_phi_of_exact_values_ignores_levels_and_sees_departures():
    steps = fill(np.repeat([0.0, 5.5, 40.0, 10.0], 20))
    assert steps.phi < 1e-4
    values = np.zeros(100)
    values[[10, 30, 31, 50, 70]] = [2.5, 2.5, 2.5, 2.5, 1e38]  # the last one counts as the others do
    assert fill(values).phi == pytest.approx(2.5 * math.sqrt(5 / 91))


def test_phi_of_noise_is_not_lowered_by_exact_values_beside_it():
    for values in (np.concatenate([np.zeros(150), white(0, 100)]), np.concatenate([white(0, 100), np.zeros(60)])):
        assert fill(values).phi == pytest.approx(1.0, rel=0.4)


def test_missing_points_keep_their_place():
    line = 2.1 * np.arange(40)
    line[[5, 6, 20]] = np.nan
    noise = fill(line + 0.0, 1.0)
    assert len(noise.values) == 40
    assert 5 not in noise.valid
    # a straight line has no second difference, whatever is missing from it
    assert noise.phi < 1e-3
    line[::3] = np.nan  # uneven distances throughout
    assert fill(line, 1.0).phi < 1e-3


@pytest.mark.parametrize("value", [math.inf, -1e39, 1e308])
def test_value_beyond_single_precision_is_missing(value):
    noise = fill([1.0, value, 1e38], 1.0)
    assert math.isnan(noise.values[1])
    assert noise.valid == [0, 2]


def test_stderr_beyond_single_precision_is_unknown():
    assert fill([0.0] * 3, [2.0, 2.0, 1e200]).scales[2] == 3.0


def test_scale_is_the_formula():
    errors = [1.0, 2.0, 4.0]
    noise = fill([0.0, 0.0, 0.0], errors, chains=8)
    assert noise.scales[2] == pytest.approx(math.sqrt((7 * 16 + 6 * 4) / 13))


@pytest.mark.parametrize("unknown", [None, 0.0, -0.3, -math.inf])
def test_stderr_that_is_not_above_0_is_unknown(unknown):
    values = white(0, n=20)
    for kind in (JumpDetector, StageDetector):
        some, none = kind(), kind()
        for step, value in enumerate(values):
            some.update(step, value, unknown if step % 3 else 1.0)
            none.update(step, value, math.nan if step % 3 else 1.0)
        assert some.state_dict() == none.state_dict()


def test_missing_stderr_counts_as_one_and_a_half_usual_ones():
    noise = fill([0.0] * 4, [2.0, 2.0, math.nan, 0.0])
    assert noise.scales[2:] == [3.0, 3.0]


def test_points_before_the_first_stderr_get_its_unit():
    values = white(2, 60)
    errors = [math.nan] * 10 + [0.01] * 50
    assert fill(values, errors).phi == pytest.approx(fill(values, 0.01).phi, rel=0.4)
    assert fill(values, errors).scales[0] == pytest.approx(0.015)


def test_long_run_noise_sees_correlation():
    shocks, ar = white(3, 1000), np.zeros(1000)
    for i in range(1, 1000):
        ar[i] = 0.7 * ar[i - 1] + shocks[i]
    independent, correlated = fill(white(4, 1000), 1.0), fill(ar, 1.0)
    assert independent.phi_lr / independent.phi < 1.4
    assert correlated.phi_lr / correlated.phi > 1.7


def test_state_survives_json():
    noise = fill([1.0, math.nan, 3.0, 1.0, 4.0, 1.0, 5.0], [0.1, 0.2, math.nan, 0.3, 0.1, 0.1, 0.1])
    other = NoiseModel()
    other.load_state_dict(json.loads(json.dumps(noise.state_dict())))
    for model in (noise, other):
        model.add(9.0, 0.2)
    assert (other.phi, other.phi_lr, other.scales) == (noise.phi, noise.phi_lr, noise.scales)


def test_spikes_are_isolated_points_only():
    values = np.array([0.0, 0, 0, 9, 0, 0, 0, 9, 9, 9, 9, 18, 27, 36])
    spikes = isolated_spikes(values, np.full(14, 0.5))
    assert np.flatnonzero(spikes).tolist() == [3]  # not the step at 7, not the ramp from 10
    assert not isolated_spikes(values[:4], np.full(4, 0.5)).any()
