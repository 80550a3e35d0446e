"""The recording tells equal from different, to the last bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.digests import CASES, digest, measured, quick
from tests.sizes import classes, functions, imported_names


@pytest.mark.parametrize("case", ["minibatches", "kernel and influence", "fit, resumed"])
def test_a_case_gives_the_same_digest_every_time(case: str, tmp_path: Path) -> None:
    assert digest(CASES[case](tmp_path / "one")) == digest(CASES[case](tmp_path / "two"))


def test_another_setting_gives_another_digest(tmp_path: Path) -> None:
    one, other = (digest(measured(quick(localization=tie))(tmp_path)) for tie in (1.0, 1.0 + 1e-6))
    assert one != other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        ({"llc": {"mean": 1.0}}, {"llc": {"mean": math.nan}}),
        ([1, 2], [12]),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_the_last_bit_counts(one: Any, other: Any) -> None:
    assert digest(one) == digest(one) != digest(other)


def test_what_the_clock_decides_is_left_out() -> None:
    assert digest({"cost": {"seconds": 1.0, "sgld_steps": 3}}) == digest({"cost": {"seconds": 2.0, "sgld_steps": 3}})


def test_sizes_are_counted_without_docstrings(tmp_path: Path) -> None:
    source = (
        'from slt_callbacks.stats import drift, rhat\n\nclass One:\n    """Two\n    lines."""\n\n    def two(self):\n'
    )
    (tmp_path / "file.py").write_text(source + '        """A line."""\n        return 2\n')
    assert [(size.lines, size.name) for size in classes(tmp_path)] == [(4, "file.py:One")]
    assert [(size.lines, size.name) for size in functions(tmp_path)] == [(2, "file.py:two")]
    assert [size.lines for size in imported_names(tmp_path)] == [2]
