"""Principal components from inner products alone, the random walk beside them, and axes that keep their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks import joint_trajectory
from slt_callbacks.stats.trajectories import (
    about_mean,
    agreeing_signs,
    components_of,
    random_walk_shares,
    turn_onto,
)


def rows(number: int = 9, size: int = 40, seed: int = 0) -> torch.Tensor:
    """Far from 0, with a spread that differs by direction."""
    generator = torch.Generator().manual_seed(seed)
    return 5.0 + torch.randn(number, size, generator=generator, dtype=torch.float64) * torch.arange(1.0, size + 1)


def by_numpy(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates, shares and axes, from the singular values of the centred rows."""
    centred = values.numpy() - values.numpy().mean(0)
    left, size, axes = np.linalg.svd(centred, full_matrices=False)
    return left * size, size**2 / (size**2).sum(), axes


class TestComponents:
    def test_they_are_those_of_the_rows_themselves(self) -> None:
        values = rows()
        found = components_of(values @ values.mT, 4)
        coordinates, shares, _ = by_numpy(values)
        np.testing.assert_allclose(found.explained.numpy(), shares[:4], rtol=1e-10)
        np.testing.assert_allclose(found.coordinates.abs().numpy(), np.abs(coordinates[:, :4]), rtol=1e-7, atol=1e-7)

    def test_the_origin_of_the_inner_products_does_not_matter(self) -> None:
        values = rows()
        one, other = (components_of(v @ v.mT, 3) for v in (values, values - values[0]))
        torch.testing.assert_close(one.coordinates.abs(), other.coordinates.abs())

    def test_others_are_projected_and_never_fitted(self) -> None:
        values, others = rows(), rows(2, seed=1)
        gram = values @ values.mT
        found = components_of(gram, 3)
        _, _, axes = by_numpy(values)
        expected = (others.numpy() - values.numpy().mean(0)) @ axes[:3].T
        projected = found.project(about_mean(others @ values.mT, gram))
        np.testing.assert_allclose(projected.abs().numpy(), np.abs(expected), rtol=1e-8)

    def test_beyond_the_rank_there_is_nothing(self) -> None:
        values = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]).double()
        found = components_of(values @ values.mT, 5)
        assert found.explained.tolist() == [pytest.approx(1.0), 0, 0, 0, 0]
        assert found.coordinates.shape == (3, 5)
        assert not found.coordinates[:, 1:].any()
        assert not found.project(torch.ones(1, 3).double())[:, 1:].any()

    def test_of_a_single_row_nothing_is_known(self) -> None:
        found = components_of(torch.ones(1, 1).double(), 2)
        assert found.explained.isnan().all()
        assert found.coordinates.tolist() == [[0.0, 0.0]]


class TestRandomWalk:
    def test_evenly_spaced_it_has_the_known_shares(self) -> None:
        found = random_walk_shares(torch.arange(0, 4000, 10), 4)
        expected = [6 / (np.pi * k) ** 2 for k in range(1, 5)]
        assert found.tolist() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize(
        "steps", [range(0, 100, 4), [0, 1, 2, 4, 8, 16, 32, 64, 128, 256], [7, 100, 101, 900]], ids=str
    )
    def test_it_is_what_a_simulated_one_shows(self, steps: Any) -> None:
        """In D dimensions the inner products have a relative error of about the root of 2/D."""
        times, dimensions = torch.tensor([*steps]), 20_000
        moves = torch.randn(len(times) - 1, dimensions, generator=torch.Generator().manual_seed(1))
        walk = torch.zeros(len(times), dimensions).double()
        walk[1:] = (moves.double() * times.diff().double().sqrt()[:, None]).cumsum(0)
        found = components_of(walk @ walk.mT, 3).explained
        torch.testing.assert_close(found, random_walk_shares(times, 3), rtol=0, atol=5 * (2 / dimensions) ** 0.5)

    def test_it_does_not_matter_when_it_began(self) -> None:
        steps = torch.tensor([3, 5, 30, 90])
        torch.testing.assert_close(random_walk_shares(steps, 3), random_walk_shares(steps + 1000, 3))


class TestAxes:
    def test_signs_are_as_before(self) -> None:
        now = torch.tensor([[1.0, -2.0], [-1.0, 2.0], [5.0, 5.0]])
        assert agreeing_signs(now, torch.tensor([[-1.0, -2.0], [1.0, 2.1]])).tolist() == [-1.0, 1.0]

    def test_at_first_the_run_goes_to_the_positive_side(self) -> None:
        assert agreeing_signs(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.empty(0, 2)).tolist() == [-1.0, 1.0]

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_a_turn_is_found(self, mirrored: bool) -> None:
        points = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        angle = torch.tensor(0.7, dtype=torch.float64)
        turn = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0 if mirrored else 1.0]).double())
        torch.testing.assert_close(turn_onto(points, points @ turn + 3.0), turn)

    def test_it_is_the_best_one(self) -> None:
        """No other orthogonal matrix brings noisy points closer: 200 of them, half of these mirrored."""
        generator = torch.Generator().manual_seed(2)
        points, noise = torch.randn(2, 8, 2, generator=generator, dtype=torch.float64)
        before = points + 0.3 * noise

        def distance(turn: torch.Tensor) -> float:
            moved = (points - points.mean(0)) @ turn
            return float((moved - (before - before.mean(0))).square().sum())

        found = turn_onto(points, before)
        torch.testing.assert_close(found @ found.mT, torch.eye(2).double())
        others = [torch.linalg.qr(one)[0] for one in torch.randn(200, 2, 2, generator=generator, dtype=torch.float64)]
        assert distance(found) <= min(map(distance, others))

    def test_what_the_points_do_not_tell_stays(self) -> None:
        line = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
        torch.testing.assert_close(turn_onto(line, line), torch.eye(2).double())
        torch.testing.assert_close(turn_onto(line[:1], line[:1]), torch.eye(2).double())


class TestJoint:
    def test_all_runs_are_fitted_at_once_as_by_numpy(self) -> None:
        runs = {"a": rows(5, seed=1).float(), "b": rows(7, seed=2).float()}
        other = rows(1, seed=3)[0]
        joint = joint_trajectory(runs, {"ridge": other.view(4, 10)}, num_components=2)
        stacked = torch.cat([*runs.values()]).double()
        coordinates, shares, axes = by_numpy(stacked)
        assert {name: len(own) for name, own in joint.coordinates.items()} == {"a": 5, "b": 7}
        together = torch.cat([*joint.coordinates.values()])
        np.testing.assert_allclose(together.abs().numpy(), np.abs(coordinates[:, :2]), rtol=1e-8)
        np.testing.assert_allclose(joint.explained.numpy(), shares[:2], rtol=1e-10)
        signs = np.sign(together[0].numpy() * coordinates[0, :2])
        projected = (other.numpy() - stacked.numpy().mean(0)) @ axes[:2].T * signs
        np.testing.assert_allclose(joint.references["ridge"].numpy(), projected, rtol=1e-8)

    def test_it_is_the_same_some_columns_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runs = {"a": rows(5, seed=1), "b": rows(7, seed=2)}
        whole = joint_trajectory(runs, {"zero": np.zeros(40)})
        monkeypatch.setattr("slt_callbacks.stats.trajectories._AT_ONCE", 100)
        parts = joint_trajectory(runs, {"zero": np.zeros(40)})
        for name in runs:
            torch.testing.assert_close(parts.coordinates[name], whole.coordinates[name])
        torch.testing.assert_close(parts.references, whole.references)

    @pytest.mark.parametrize(
        ("runs", "references", "message"),
        [
            ({}, {}, "at least one run"),
            ({"a": torch.zeros(3)}, {}, r"`trajectories\['a'\]` to have the shape"),
            ({"a": torch.full((2, 3), torch.nan)}, {}, r"`trajectories\['a'\]` to be finite"),
            ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}, {}, r"same probes, but `trajectories\['b'\]` has 4"),
            ({"a": torch.zeros(2, 3)}, {"ridge": torch.zeros(2)}, r"`references\['ridge'\]` to have 3 numbers"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, runs: Any, references: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            joint_trajectory(runs, references)

    def test_bare_rows_are_refused(self) -> None:
        with pytest.raises(TypeError, match="`trajectories` to be a mapping"):
            joint_trajectory(torch.zeros(2, 3))  # type: ignore[arg-type]
