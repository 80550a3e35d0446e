"""What is said where Ray is not installed, and of arguments that no cluster can serve."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from slt_callbacks import RayExecutor


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'slt-callbacks\[ray\]'"):
        RayExecutor()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "`num_workers` to be an integer of at least 1, but got 0"),
        ({"num_cpus": -1}, "`num_cpus` to be a number of at least 0, but got -1"),
        ({"num_gpus": "all"}, "`num_gpus` to be a number of at least 0, but got 'all'"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        RayExecutor(**options)
