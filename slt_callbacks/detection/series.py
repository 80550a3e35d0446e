"""A measured series as every detector keeps it: the steps of its points, their values and noise, and its breaks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from slt_callbacks.detection.noise import NoiseModel


class Series:
    """Steps of all measurements, and the noise model of those since the last break.

    A point is counted twice: by its `index` among all measurements, which events tell, and by its place since the
    last break, which the noise model uses. Missing points count in both.

    Attributes:
        steps: training step of every measurement.
        origin: index of the first one since the last break.
        noise: values and noise of the measurements since then.

    Example:
        >>> series = Series()
        >>> series.add(10, 1.0)
        >>> series.restart()
        >>> series.add(20, 5.0)
        >>> series.noise.values, series.index(0), series.step(0)
        ([5.0], 1, 20)
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.origin = 0
        self.noise = NoiseModel()

    def __len__(self) -> int:
        return len(self.noise.values)

    def add(self, step: int, value: float, stderr: float | None = None, num_chains: int | None = None) -> None:
        """Append one measurement; `NoiseModel.add` says what is a missing one.

        Raises:
            ValueError: where `step` is not larger than the last one.

        Example:
            >>> Series().add(0, 1.0, stderr=0.1)
        """
        if self.steps and not step > self.steps[-1]:
            raise ValueError(f"Expected `step` to be larger than the last one ({self.steps[-1]}), but got {step!r}.")
        self.steps.append(int(step))
        self.noise.add(value, stderr, num_chains)

    def restart(self) -> None:
        """Forget the values: what follows cannot be compared with them.

        Example:
            >>> series = Series()
            >>> series.restart()
            >>> len(series)
            0
        """
        self.origin = len(self.steps)
        self.noise = NoiseModel()

    @property
    def ends_missing(self) -> bool:
        """Whether the newest measurement is a missing point.

        Example:
            >>> series = Series()
            >>> series.add(0, float("nan"))
            >>> series.ends_missing
            True
        """
        return math.isnan(self.noise.values[-1])

    def index(self, place: int) -> int:
        """Index among all measurements.

        Example:
            >>> Series().index(3)
            3
        """
        return self.origin + place

    def step(self, place: int) -> int:
        """Training step.

        Example:
            >>> series = Series()
            >>> series.add(10, 1.0)
            >>> series.step(0)
            10
        """
        return self.steps[self.index(place)]

    def points(self, start: int = 0) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Places, values and scales of the points that are not missing, from the one numbered `start` among them.

        Example:
            >>> series = Series()
            >>> for step, value in enumerate([1.0, float("nan"), 3.0]):
            ...     series.add(step, value)
            >>> series.points()[0].tolist()
            [0, 2]
        """
        known = self.noise.valid[start:]
        values, scales = ([column[i] for i in known] for column in (self.noise.values, self.noise.scales))
        return np.array(known), np.array(values), np.array(scales)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as builtins.

        Example:
            >>> list(Series().state_dict())
            ['steps', 'origin', 'noise']
        """
        return {"steps": list(self.steps), "origin": self.origin, "noise": self.noise.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; other entries of `state` are left alone.

        Example:
            >>> first, second = Series(), Series()
            >>> first.add(3, 1.0)
            >>> second.load_state_dict(first.state_dict())
            >>> second.steps
            [3]
        """
        self.steps, self.origin = list(state["steps"]), state["origin"]
        self.noise.load_state_dict(state["noise"])
