"""Where training moves in the space of functions: principal components of outputs on fixed probes over the run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from slt_callbacks.basics.plain import shown
from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.media import Track
from slt_callbacks.observables.needs import Needs
from slt_callbacks.observables.pairs import matrix_of
from slt_callbacks.observables.path import Path
from slt_callbacks.observables.probed import Outputs, Predictor, Probed
from slt_callbacks.stats.trajectories import (
    about_mean,
    agreeing_signs,
    components_of,
    random_walk_shares,
    turn_onto,
)

if TYPE_CHECKING:
    from slt_callbacks.observables.fork_view import ForkView

_FEWEST_SHOWN = 3  # measurements: two are always a line, whatever training does
_MARGIN = 0.15  # of the picture beyond what has to be in it, so that its axes seldom have to move


@dataclass(frozen=True)
class _Seen:
    """What a measurement has shown, for the next to be like it.

    Attributes:
        steps: Of its T rows, int64 ``(T,)``.
        coordinates: ``(T, K)``.
        map: Where they stood in the picture, ``(T, 2)``.
        box: Of the picture: left, right, bottom, top.
    """

    steps: torch.Tensor
    coordinates: torch.Tensor
    map: torch.Tensor
    box: torch.Tensor

    def of(self, steps: torch.Tensor) -> torch.Tensor:
        """Which rows are among `steps`, int64."""
        return torch.isin(self.steps, steps).nonzero().flatten()


class TrajectoryPCA:
    r"""Principal components of a network's outputs on fixed probes over training, read without chains.

    Every measurement appends a row: the outputs on all probes, flattened. The rows so far, less their mean, are
    decomposed anew each time, by their T x T inner products alone.

    Results, with T measurements, K components and R references:

    * ``coordinates``: ``(T, K)`` float64, of every measurement, in the unit of the outputs times the root of their
      number; signs as at the measurement before. ``steps``: their training steps ``(T,)``;
    * ``explained``: ``(K,)``, shares of the variance, NaN at the first; the numbers ``explained_1``, ...;
    * ``null``: ``(K,)``, shares that a random walk has at the same steps; the numbers ``null_1``, ... About .61, .15,
      .07 of evenly spaced steps: a share of that size, and a parabola in the picture, are no evidence of a direction;
    * ``speed``: root mean square, over all output values, of how far they moved since the last measurement, a training
      step;
    * ``distance/<name>``: root mean square of the difference from the outputs of a reference predictor;
    * ``references``: ``(R, K)``, where the references stand: projected onto the components, and never fitted.

    The picture ``map`` is the plane of the first two components, turned (orthogonal Procrustes) and shifted to where
    its earlier points stood in the picture before; its limits are kept as long as everything is within them.
    ``matrices`` hold ``rows`` as well, ``(T, D)`` float32, which `joint_trajectory` takes of several runs.

    **Memory.** 4 bytes an output value and measurement, here and in a checkpoint, and in the file of matrices. There
    are at most 131072 values (more are refused before training) and 512 measurements, so 256 MiB; of so many, every
    second between the first and the last is left out, and the run goes on with half of them. 1000 outputs and 100
    measurements take 0.4 MB.

    A measurement whose outputs are not finite gives NaN, and leaves no row. Rows of a checkpoint are gone on with where
    the reference set and the probes are the same.

    Args:
        probes: Samples whose outputs are followed, whatever a monitor takes as `reference`; all of them are used.
        outputs: ``(module, batch) -> tensor (B, ...)``, of the module in eval mode and a batch as the loss gets it.
            None: the module's `forward` of the batch, where that is a tensor, or of its first item.
        references: Known predictors, by name: their outputs on all probes, a tensor ``(N, ...)`` in the shape of the
            module's, or a function ``(batch) -> tensor (B, ...)``.
        num_components: How many components to tell, K.

    Attributes:
        rows: All rows, float32 ``(T, D)``.
        steps: Training steps of the rows, int64 ``(T,)``.

    Raises:
        TypeError: If `probes` is None, `outputs` cannot be called, or a reference is of another kind; before training
            also if `outputs` gives no floating-point tensor.
        ValueError: If `num_components` is not positive or a name has a slash; before training also if `outputs` gives
            too many values, or a reference is of another shape or not finite.

    Source: Hoogland et al. (arXiv 2402.02364), "essential dynamics"; Carroll et al. (arXiv 2501.17745), joint
    trajectory PCA; of the null Antognini and Sohl-Dickstein (arXiv 1806.08805).

    Example:
        >>> from slt_callbacks import Estimator, TrajectoryPCA
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> net, samples = torch.nn.Linear(1, 1, bias=False), torch.tensor([[3.0], [4.0]])
        >>> trajectory = TrajectoryPCA([samples], references={"zero": torch.zeros(2, 1)})
        >>> loss_fn = lambda net, x: net(x)[:, 0].square()
        >>> estimator = Estimator(draw_reference([samples]), loss_fn, {"trajectory": trajectory})
        >>> for step, weight in enumerate((1.0, 2.0, 4.0)):
        ...     _ = torch.nn.init.constant_(net.weight, weight)
        ...     found = estimator.measure(net, step)["trajectory"]
        >>> [round(x, 3) for x in (found["explained_1"], found["null_1"], found["speed"], found["distance/zero"])]
        [1.0, 0.75, 7.071, 14.142]
    """

    _now: _Seen | None = None
    _before: _Seen | None = None  # what had been shown when the last row came

    def __init__(
        self,
        probes: Reference | ReferenceSet,
        outputs: Outputs | None = None,
        references: Mapping[str, Predictor] | None = None,
        num_components: int = 3,
    ) -> None:
        if isinstance(num_components, bool) or not isinstance(num_components, int) or num_components < 1:
            raise ValueError(f"Expected `num_components` to be a positive integer, but got {shown(num_components)}.")
        if probes is None:
            raise TypeError(
                "Expected `probes` to be the samples whose outputs are followed, whatever a monitor takes as "
                "`reference`, but got None: give a Dataset, a DataLoader or a list of batches."
            )
        self.needs = Needs(samples=probes, samples_name="probes", forward_passes=1)
        self._probed = Probed(outputs, references)
        self._num_components = num_components
        self._forget()

    @property
    def rows(self) -> torch.Tensor:
        """See the class."""
        return self._path.rows

    @property
    def steps(self) -> torch.Tensor:
        """See the class."""
        return self._path.steps

    def check(self, reference: ReferenceSet, queries: ReferenceSet | None) -> None:
        """Begin a run, which has no rows yet, on the probes, which come as `queries`.

        Raises:
            TypeError: If they do not come.
        """
        if queries is None:
            raise TypeError(
                "Expected `queries` to be the drawn probes of a TrajectoryPCA, but got None: an observable that holds "
                "one has to give its `needs` as its own."
            )
        self._forget()
        self._probed.begin(queries)

    def rehearse(self, fork: ForkView) -> None:
        """Ask the module and the references once, before training.

        Raises:
            TypeError: If one gives no floating-point tensor.
            ValueError: If a shape does not fit, there are too many values or none, a reference is not finite, or
                `outputs` raises.
        """
        self._probed.row(fork)
        self._probed.references(fork)

    def inspect(self, fork: ForkView) -> dict[str, Any]:
        """Append the outputs at the fork, and decompose all rows; see the class."""
        step, path = fork.point.step, self._path
        row, references = self._probed.row(fork), self._probed.references(fork)
        if not bool(row.isfinite().all()):
            warnings.warn(
                f"The outputs on the probes of a TrajectoryPCA are not finite at step {step}: there is no row for it.",
                stacklevel=2,
            )
            return self._empty()
        if len(path) and int(path.steps[-1]) >= step:  # it is measured once more, as if for the first time
            path.forget_from(step)
            self._now = self._before
        if len(path) and path.rows.shape[1] != len(row):
            self._forget()
            path = self._path
        moved = self._speed(step, row)
        path.add(step, row)
        distances = (references - row).double().square().mean(1).sqrt() if len(references) else ()
        found, seen = self._decomposed(references)
        self._before, self._now = self._now, seen
        return found | {"speed": moved} | self._distances(distances)

    def images(self, result: Mapping[str, Any]) -> dict[str, Track]:
        """The picture ``map``; nothing for fewer than three measurements, outputs that never moved, or a failed one.

        Raises:
            ValueError: If `result` has no coordinates any more.
        """
        places = matrix_of(result, "map")
        steps = result["steps"]
        size = len(steps)
        if size < _FEWEST_SHOWN or not bool(result["explained"].isfinite().all()):
            return {}  # of outputs that have not moved nothing is explained
        left, right, bottom, top = result["box"].tolist()
        marks = {name: (x, y) for name, (x, y) in zip(self._probed.names, places[size:].tolist(), strict=True)}
        caption = (
            f"outputs on {len(self._probed.samples)} probes, steps {int(steps[0])} to {int(steps[-1])}, in the plane "
            f"of their first two principal components: {_shares(result)}"
        )
        labels = ("first axis (turned to match the picture before)", "second axis")
        box = (left, right, bottom, top)
        return {"map": Track(places[:size], caption, labels, steps=steps, marks=marks, box=box)}

    def matrices(self, result: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What belongs into a file of numbers: ``rows`` for `joint_trajectory`, ``steps``, and the coordinates.

        Raises:
            ValueError: If `result` has no coordinates any more.
        """
        names = ("coordinates", "references")
        return {name: matrix_of(result, name) for name in names} | {"rows": self.rows, "steps": self.steps}

    def state_dict(self) -> dict[str, Any]:
        """The rows, and what the last two measurements have shown."""
        return {
            "probes": self._probed.samples.fingerprint,
            "path": self._path.state_dict(),
            **{name: None if seen is None else vars(seen).copy() for name, seen in self._seen().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; with other probes the trajectory begins anew, with a warning."""
        self._forget()
        if state["probes"] != self._probed.samples.fingerprint:
            warnings.warn(
                "The checkpoint's trajectory is of other probes: it begins anew, and coordinates before and after are "
                "not comparable.",
                stacklevel=2,
            )
            return
        self._path.load_state_dict(state["path"])
        self._now, self._before = (
            None if state[name] is None else _Seen(**{field.name: state[name][field.name] for field in fields(_Seen)})
            for name in self._seen()
        )

    def _forget(self) -> None:
        self._path = Path()
        self._now = self._before = None

    def _seen(self) -> dict[str, _Seen | None]:
        return {"now": self._now, "before": self._before}

    def _speed(self, step: int, row: torch.Tensor) -> float:
        if not len(self._path):
            return math.nan
        moved = (row - self._path.rows[-1]).double().square().mean().sqrt()
        return float(moved) / (step - int(self._path.steps[-1]))

    def _decomposed(self, references: torch.Tensor) -> tuple[dict[str, Any], _Seen]:
        path, wanted = self._path, self._num_components
        found = components_of(path.gram, max(wanted, 2))
        last = self._now
        known = torch.isin(path.steps, path.steps[:0] if last is None else last.steps).nonzero().flatten()
        before = found.coordinates[:0] if last is None else last.coordinates[last.of(path.steps)]
        found = found.flipped(agreeing_signs(found.coordinates, before))
        projected = found.coordinates[:0]
        if len(references):
            projected = found.project(about_mean(path.products(references), path.gram))
        places = torch.cat([found.coordinates, projected])[:, :2]
        if last is not None and len(known):
            earlier = last.map[last.of(path.steps)]
            places = places @ turn_onto(places[known], earlier)
            places = places + (earlier - places[known]).mean(0)
        box = _box(places, None if last is None else last.box)
        seen = _Seen(path.steps, found.coordinates, places[: len(path)], box)
        null = random_walk_shares(path.steps, wanted)
        return self._result(found.coordinates, found.explained, null, projected, places) | {
            "steps": path.steps,
            "box": box,
        }, seen

    def _result(
        self,
        coordinates: torch.Tensor,
        explained: torch.Tensor,
        null: torch.Tensor,
        projected: torch.Tensor,
        places: torch.Tensor,
    ) -> dict[str, Any]:
        wanted = self._num_components
        shares = {"explained": explained[:wanted], "null": null[:wanted]}
        return {
            "coordinates": coordinates[:, :wanted].clone(),
            **shares,
            "references": projected[:, :wanted].clone(),
            "map": places,
            **{f"{name}_{k + 1}": float(own[k]) for name, own in shares.items() for k in range(wanted)},
        }

    def _distances(self, distances: Any) -> dict[str, float]:
        return {f"distance/{name}": float(own) for name, own in zip(self._probed.names, distances, strict=True)}

    def _empty(self) -> dict[str, Any]:
        """The result of a measurement that has failed: NaN everywhere."""
        size, names = max(self._num_components, 2), self._probed.names
        nothing = torch.full((1, size), torch.nan, dtype=torch.float64, device="cpu")
        result = self._result(nothing, nothing[0], nothing[0], nothing.expand(len(names), -1), nothing[:, :2])
        steps = torch.empty(0, dtype=torch.int64, device="cpu")
        more = {"steps": steps, "box": nothing.new_full((4,), math.nan), "speed": math.nan}
        return result | more | self._distances([math.nan] * len(names))


def _box(places: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Left, right, bottom and top of a picture that has room for all places: as before, if that has.

    A side that has to move leaves some room, so that the next measurements will not move it.
    """
    low, high = places.min(0).values, places.max(0).values
    if before is not None:
        low, high = torch.minimum(low, before[[0, 2]]), torch.maximum(high, before[[1, 3]])
        margin = _MARGIN * (high - low).max()
        low = torch.where(low < before[[0, 2]], low - margin, low)
        high = torch.where(high > before[[1, 3]], high + margin, high)
    else:
        margin = _MARGIN * (high - low).max()
        low, high = low - margin, high + margin
    return torch.stack([low[0], high[0], low[1], high[1]])


def _shares(result: Mapping[str, Any]) -> str:
    """In words, what the first two components have, and what they would have of a random walk."""
    told = [
        f"the {place} has {float(own):.0%} where a random walk has {float(walk):.0%}".replace("%", " %")
        for place, own, walk in zip(("first", "second"), result["explained"], result["null"], strict=False)
    ]
    return ", ".join(told)
