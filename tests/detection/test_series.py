import json
import math

import pytest

from slt_callbacks.detection.jumps import JumpDetector
from slt_callbacks.detection.series import Series
from slt_callbacks.detection.stages import StageDetector


def series(values, first_step=0):
    one = Series()
    for step, value in enumerate(values, first_step):
        one.add(10 * step, value, 0.5)
    return one


def test_points_leave_out_what_is_missing_and_keep_their_place():
    place, y, scale = series([1.0, math.nan, 3.0, 4.0]).points(1)
    assert (place.tolist(), y.tolist(), scale.tolist()) == ([2, 3], [3.0, 4.0], [0.5, 0.5])


def test_a_restart_keeps_the_index_and_forgets_the_values():
    one = series([1.0, 2.0, 3.0])
    one.restart()
    assert (len(one), one.points()[0].tolist()) == (0, [])
    one.add(99, 7.0)
    assert (one.index(0), one.step(0), one.noise.values) == (3, 99, [7.0])
    with pytest.raises(ValueError, match=r"larger than the last one \(99\), but got 99\."):
        one.add(99, 7.0)


def test_state_survives_json():
    one, other = series([1.0, math.nan, 3.0]), Series()
    one.restart()
    one.add(50, 2.0)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (other.index(0), other.step(0), other.noise.values) == (3, 50, [2.0])


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        (JumpDetector, "sensitivity min_jump steps origin noise start errors blocked"),
        (StageDetector, "steps losses origin closed next_id noise partition known pending"),
    ],
)
def test_checkpoints_hold_what_they_always_held(kind, entries):
    assert set(kind().state_dict()) >= set(entries.split())
