"""A trajectory of outputs: exact, on axes that stay, bounded, resumed where it was, and refused where it cannot be."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from scipy.linalg import orthogonal_procrustes
from torch import nn

from slt_callbacks import LLC, Estimator, FileSink, Measurement, MemorySink, TrajectoryPCA, estimate, joint_trajectory
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.figures.pictures import image_of
from slt_callbacks.figures.tracks import track_figure
from slt_callbacks.observables import path as paths
from slt_callbacks.observables.media import Track
from slt_callbacks.observables.path import Path
from slt_callbacks.stats.trajectories import random_walk_shares
from tests.contracts import check_fork_observable
from tests.digests import digest
from tests.training import Regression, data, fingerprint, fit, monitor, square_error

PROBES = torch.randn(20, 3, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """What it answers is what it is told to: its only weights are its outputs on the probes, (20, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.zeros(20, 2))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.out + 0 * batch.sum()


def loss_fn(module: Any, batch: torch.Tensor) -> torch.Tensor:
    return module.out.square().mean().expand(len(batch))


def estimator(trajectory: TrajectoryPCA) -> Estimator:
    return Estimator(draw_reference([PROBES]), loss_fn, {"trajectory": trajectory})


def measured(one: Estimator, outputs: torch.Tensor, step: int) -> Measurement:
    net = Net()
    with torch.no_grad():
        net.out.copy_(outputs.view(20, 2))
    return one.measure(net, step)


def walk(number: int = 7, seed: int = 0) -> torch.Tensor:
    """Outputs that wander, and drift in one direction, (T, 40)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(number, 40, generator=generator).cumsum(0)
    return noise + 2.0 * torch.arange(number)[:, None] * torch.linspace(-1, 1, 40)


STEPS = [0, 1, 3, 8, 20, 50, 120]
RIDGE = torch.linspace(0, 1, 40).view(20, 2)
REFERENCES: Any = {"ridge": RIDGE, "zero": lambda batch: torch.zeros(len(batch), 2)}


def run(number: int = 7, **settings: Any) -> tuple[TrajectoryPCA, list[Measurement]]:
    trajectory = TrajectoryPCA([PROBES], references=REFERENCES, **settings)
    one = estimator(trajectory)
    return trajectory, [measured(one, row, step) for row, step in zip(walk()[:number], STEPS, strict=False)]


@pytest.fixture(scope="module")
def whole() -> tuple[TrajectoryPCA, list[Measurement]]:
    return run()


Run = tuple[TrajectoryPCA, list[Measurement]]


class TestNumbers:
    def test_it_is_the_pca_of_what_the_network_answered(self, whole: Run) -> None:
        """At every measurement, of the rows until then."""
        trajectory, found = whole
        assert torch.equal(trajectory.rows, walk())
        assert trajectory.steps.tolist() == STEPS
        for size, measurement in enumerate(found, start=1):
            result = measurement["trajectory"]
            rows = walk()[:size].double().numpy()
            left, singular, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
            top = min(size - 1, 3)
            coordinates, signs = result["coordinates"].numpy(), np.ones(top)
            assert coordinates.shape == (size, 3)
            if size > 1:
                expected = (left * singular)[:, :top]
                signs = np.sign((expected * coordinates[:, :top]).sum(0))
                np.testing.assert_allclose(coordinates[:, :top], expected * signs, atol=1e-5)
                shares = (singular**2 / (singular**2).sum())[:top]
                np.testing.assert_allclose(result["explained"][:top].numpy(), shares, rtol=1e-5)
            others = torch.stack([RIDGE.flatten(), torch.zeros(40)]).double().numpy()
            projected = (others - rows.mean(0)) @ axes[:top].T * signs
            np.testing.assert_allclose(result["references"][:, :top].numpy(), projected, atol=1e-5)

    def test_every_number_is_logged_under_its_name(self, whole: Run) -> None:
        logged = whole[1][-1].logged()
        names = [f"{kind}_{k}" for kind in ("explained", "null") for k in (1, 2, 3)]
        names += ["speed", "distance/ridge", "distance/zero"]
        assert {key for key in logged if key.startswith("slt/trajectory/")} == {f"slt/trajectory/{n}" for n in names}
        result = whole[1][-1]["trajectory"]
        for k in range(3):
            assert logged[f"slt/trajectory/explained_{k + 1}"] == float(result["explained"][k])
            assert logged[f"slt/trajectory/null_{k + 1}"] == float(result["null"][k])

    def test_a_name_with_a_slash_is_found_again(self, whole: Run) -> None:
        result, name = whole[1][-1].of("trajectory", "distance/ridge")
        assert result[name] == whole[1][-1].scalars()["trajectory/distance/ridge"]

    def test_the_null_is_that_of_the_same_steps(self, whole: Run) -> None:
        for size, measurement in enumerate(whole[1], start=1):
            expected = random_walk_shares(torch.tensor(STEPS[:size]), 3)
            torch.testing.assert_close(measurement["trajectory"]["null"], expected, equal_nan=True)

    def test_distances_are_root_mean_squares_over_all_outputs(self, whole: Run) -> None:
        for row, measurement in zip(walk().double(), whole[1], strict=True):
            result = measurement["trajectory"]
            assert result["distance/zero"] == pytest.approx(float(row.square().mean().sqrt()), rel=1e-6)
            assert result["distance/ridge"] == pytest.approx(
                float((row - RIDGE.flatten()).square().mean().sqrt()), rel=1e-6
            )

    def test_the_speed_is_a_training_step(self, whole: Run) -> None:
        speeds = [measurement["trajectory"]["speed"] for measurement in whole[1]]
        moves = walk().double().diff(dim=0).square().mean(1).sqrt() / torch.tensor(STEPS).diff()
        assert math.isnan(speeds[0])
        assert speeds[1:] == pytest.approx(moves.tolist(), rel=1e-6)

    def test_the_first_measurement_has_no_shares(self, whole: Run) -> None:
        first = whole[1][0]["trajectory"]
        assert math.isnan(first["explained_1"])
        assert math.isnan(first["null_1"])
        assert whole[1][1]["trajectory"]["explained"].tolist() == pytest.approx([1, 0, 0])

    def test_one_component_is_enough(self) -> None:
        _, found = run(4, num_components=1)
        assert found[-1]["trajectory"]["coordinates"].shape == (4, 1)
        assert found[-1].pictures["trajectory/map"].points.shape == (4, 2)

    def test_saved_rows_of_two_runs_are_put_together(self, whole: Run) -> None:
        rows = whole[1][-1].matrices["trajectory/rows"]
        assert torch.equal(rows, walk())
        joint = joint_trajectory({"a": rows, "b": walk(seed=1)}, {"ridge": RIDGE})
        assert joint.coordinates["b"].shape == (7, 3)


class TestAxes:
    def test_signs_do_not_change(self, whole: Run) -> None:
        results = [measurement["trajectory"]["coordinates"] for measurement in whole[1]]
        for before, now in pairwise(results):
            assert ((now[: len(before)] * before).sum(0) >= 0).all()

    def test_the_picture_shows_earlier_points_where_they_were(self, whole: Run) -> None:
        """As near as a turn, a reflection and a shift can bring them: scipy finds nothing left to turn."""
        maps = [m["trajectory"]["map"][: len(m["trajectory"]["steps"])] for m in whole[1]]
        for before, now in pairwise(maps[1:]):
            same = now[: len(before)]
            torch.testing.assert_close(same.mean(0), before.mean(0))
            centred = ((one - one.mean(0)).numpy() for one in (same, before))
            left, _ = orthogonal_procrustes(*centred)
            if len(before) > 2:  # of two points it does not tell the reflection
                np.testing.assert_allclose(left, np.eye(2), atol=1e-6)
        assert (maps[-1][:-1] - maps[-2]).square().sum() < 0.05 * maps[-2].square().sum()

    def test_it_is_the_plane_of_the_first_two_components(self, whole: Run) -> None:
        result = whole[1][-1]["trajectory"]
        torch.testing.assert_close(torch.pdist(result["map"][:7]), torch.pdist(result["coordinates"][:, :2]))
        both = torch.cat([result["coordinates"], result["references"]])[:, :2]
        torch.testing.assert_close(torch.pdist(result["map"]), torch.pdist(both))

    def test_limits_are_kept_while_everything_is_within_them(self) -> None:
        one = estimator(TrajectoryPCA([PROBES]))
        rows = walk()
        boxes = [measured(one, row, step)["trajectory"]["box"] for row, step in zip(rows, STEPS, strict=True)]
        inside = [measured(one, rows[k], 200 + k)["trajectory"]["box"] for k in (5, 3, 4)]
        assert all(torch.equal(box, inside[0]) for box in inside)
        for before, now in pairwise(boxes[1:]):
            assert (now[[0, 2]] <= before[[0, 2]]).all()
            assert (now[[1, 3]] >= before[[1, 3]]).all()


class TestPicture:
    def test_it_tells_steps_references_and_the_null(self, whole: Run) -> None:
        shown = whole[1][-1].pictures["trajectory/map"]
        assert isinstance(shown, Track)
        assert shown.steps.tolist() == STEPS
        assert list(shown.marks) == ["ridge", "zero"]
        result = whole[1][-1]["trajectory"]
        for k, place in enumerate(("first", "second")):
            own, null = result["explained"][k], result["null"][k]
            assert f"the {place} has {own:.0%} where a random walk has {null:.0%}".replace("%", " %") in shown.caption
        figure = track_figure(shown)
        axes = figure.axes[0]
        assert [text.get_text() for text in axes.texts] == ["step 0", "step 120", "ridge", "zero"]
        assert (*axes.get_xlim(), *axes.get_ylim()) == pytest.approx(shown.box)
        assert axes.collections[0].get_array().tolist() == STEPS  # type: ignore[union-attr]

    def test_of_fewer_than_three_measurements_there_is_none(self, whole: Run) -> None:
        assert [len(measurement.pictures) for measurement in whole[1]] == [0, 0, 1, 1, 1, 1, 1]

    def test_of_outputs_that_do_not_move_there_is_none(self) -> None:
        one = estimator(TrajectoryPCA([PROBES], references=REFERENCES))
        assert all(not measured(one, walk()[0], step).pictures for step in range(4))
        assert measured(one, walk()[1], 4).pictures

    def test_it_is_drawn(self, whole: Run) -> None:
        image = image_of(whole[1][-1].pictures["trajectory/map"])
        assert image is not None
        assert min(image.size) > 300
        assert len(image.getcolors(maxcolors=2**24) or []) > 50

    def test_steps_are_one_a_point(self) -> None:
        with pytest.raises(ValueError, match="`steps` of 2 points"):
            Track(torch.zeros(2, 2), "two", ("x", "y"), steps=torch.zeros(3))


class TestOneRow:
    def test_a_measurement_that_is_made_again_is_as_if_for_the_first_time(self, whole: Run) -> None:
        """As after a retry for memory: even axes do not remember the first attempt."""
        trajectory = TrajectoryPCA([PROBES], references=REFERENCES)
        one = estimator(trajectory)
        for row, step, expected in zip(walk(), STEPS, whole[1], strict=True):
            measured(one, row + 3.0, step)
            again = measured(one, row, step)
            assert digest(again["trajectory"]) == digest(expected["trajectory"])

    def test_what_is_not_finite_leaves_none(self, whole: Run) -> None:
        trajectory = TrajectoryPCA([PROBES], references=REFERENCES)
        finite = lambda module, batch: torch.zeros(len(batch)) + 0 * module.out.nan_to_num(0, 0, 0).sum()  # noqa: E731
        one = Estimator(draw_reference([PROBES]), finite, {"trajectory": trajectory})
        for row, step in zip(walk()[:6], STEPS, strict=False):
            measured(one, row, step)
        with pytest.warns(UserWarning, match="not finite at step 60: there is no row"):
            bad = measured(one, torch.full((40,), torch.inf), 60)
        good = measured(one, walk()[6], STEPS[6])
        assert set(bad["trajectory"]) == set(good["trajectory"])
        assert bad.logged().keys() == good.logged().keys()
        assert math.isnan(bad["trajectory"]["explained_1"])
        assert math.isnan(bad["trajectory"]["distance/ridge"])
        assert not bad.pictures
        assert digest(good["trajectory"]) == digest(whole[1][-1]["trajectory"])

    def test_references_are_asked_once_a_run(self) -> None:
        asked: list[float] = []

        def predictor(batch: torch.Tensor) -> torch.Tensor:
            asked.append(3.0 * len(asked))
            return torch.full((len(batch), 2), asked[-1])

        trajectory = TrajectoryPCA([PROBES], references={"other": predictor})
        for number in range(2):  # of another run it may be another
            one = estimator(trajectory)
            found = [measured(one, torch.zeros(40), step)["trajectory"]["distance/other"] for step in range(3)]
            assert found == [3.0 * number] * 3

    def test_published_rows_are_not_written_over(self) -> None:
        one = estimator(TrajectoryPCA([PROBES]))
        kept = [measured(one, row, step).matrices["trajectory/rows"] for row, step in zip(walk(), STEPS, strict=True)]
        measured(one, torch.zeros(40), STEPS[-1])
        for size, rows in enumerate(kept, start=1):
            assert torch.equal(rows, walk()[:size])

    def test_it_keeps_the_contract_of_its_kind(self) -> None:
        check_fork_observable(TrajectoryPCA([torch.randn(5, 1)], outputs=lambda module, batch: batch + 0))


class TestMemory:
    def test_of_too_many_rows_every_second_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "MOST_ROWS", 8)
        path, rows = Path(), walk(11)
        for step, row in enumerate(rows):
            path.add(step, row)
        assert path.steps.tolist() == [0, 1, 3, 5, 7, 8, 9, 10]
        assert torch.equal(path.rows, rows[path.steps])
        about = path.rows.double() - rows[0]
        torch.testing.assert_close(path.gram, about @ about.mT)
        assert len(path._room) <= 8

    def test_the_trajectory_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "MOST_ROWS", 4)
        trajectory, found = run()
        assert trajectory.steps.tolist() == [0, 1, 50, 120]
        result = found[-1]["trajectory"]
        rows = walk()[[0, 1, 5, 6]].double()
        shares = torch.linalg.svdvals(rows - rows.mean(0)).square()
        torch.testing.assert_close(result["explained"], (shares / shares.sum())[:3])
        assert result["speed"] == pytest.approx(float((walk()[6] - walk()[5]).square().mean().sqrt()) / 70)

    def test_inner_products_are_the_same_some_rows_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, parts = Path(), Path()
        for step, row in enumerate(walk(9)):
            whole.add(step, row)
        monkeypatch.setattr(paths, "_AT_ONCE", 90)
        for step, row in enumerate(walk(9)):
            parts.add(step, row)
        torch.testing.assert_close(parts.gram, whole.gram)

    def test_too_many_values_are_refused_before_training(self) -> None:
        wide = TrajectoryPCA([PROBES], outputs=lambda module, batch: torch.zeros(len(batch), 7000))
        message = r"at most 131072 values .* 512 are kept \(256 MiB .* 20 probes of 7000: give fewer `probes`, or"
        with pytest.raises(MisconfigurationException, match=message):
            fit(monitor(observables={"trajectory": wide}))


class TestResume:
    def test_a_resumed_estimator_goes_on_as_if_nothing_had_happened(self, whole: Run) -> None:
        for stop in (1, 2, 5):
            first = estimator(TrajectoryPCA([PROBES], references=REFERENCES))
            for row, step in zip(walk()[:stop], STEPS, strict=False):
                measured(first, row, step)
            again = estimator(TrajectoryPCA([PROBES], references=REFERENCES))
            assert again.load_state_dict(first.state_dict())
            rest = [measured(again, walk()[k], STEPS[k]) for k in range(stop, 7)]
            for one, expected in zip(rest, whole[1][stop:], strict=True):
                assert digest(one["trajectory"]) == digest(expected["trajectory"])

    def test_a_state_holds_no_more_than_it_says(self, whole: Run) -> None:
        state = whole[0].state_dict()
        assert state["path"]["rows"].untyped_storage().nbytes() == 4 * 7 * 40

    @pytest.mark.parametrize("number", [1, 2, 5])
    def test_it_goes_on_with_another_number_of_components(self, whole: Run, number: int) -> None:
        other = TrajectoryPCA([PROBES], num_components=number)
        again = estimator(other)
        other.load_state_dict(whole[0].state_dict())
        found = measured(again, walk()[0], 200)["trajectory"]["coordinates"]
        assert found.shape == (8, number)
        both = min(number, 3)
        likeness = (found[:7, :both] * whole[1][-1]["trajectory"]["coordinates"][:, :both]).sum(0)
        assert bool((likeness > 0).all()), "signs are as before"

    def test_other_probes_begin_anew(self, whole: Run) -> None:
        other = TrajectoryPCA([PROBES + 1])
        one = estimator(other)
        with pytest.warns(UserWarning, match="trajectory is of other probes"):
            other.load_state_dict(whole[0].state_dict())
        assert len(measured(one, walk()[0], 200)["trajectory"]["steps"]) == 1

    def test_a_run_that_begins_has_no_rows(self) -> None:
        trajectory, due = TrajectoryPCA(data(6)), [1, 2]
        watched = monitor(observables={"trajectory": trajectory}, schedule=lambda step: step in due)
        fit(watched, module=Answers())
        assert trajectory.steps.tolist() == [1, 2]
        due[:] = [4, 6]
        fit(watched, module=Answers())
        assert trajectory.steps.tolist() == [4, 6]

    def test_a_fit_and_its_resume_make_one_trajectory(self, tmp_path: File) -> None:
        def watched() -> Any:
            return monitor(observables={"trajectory": TrajectoryPCA(data(6))}, sinks=[MemorySink()])

        whole = watched()
        fit(whole, module=answers(), max_steps=8, batch_size=48)
        trainer = fit(watched(), module=answers(), max_steps=4, batch_size=48)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert state["callbacks"]
        again = watched()
        fit(again, module=answers(), ckpt_path=str(tmp_path / "last.ckpt"), max_steps=8, batch_size=48)
        one, other = (watched.history[-1]["trajectory"] for watched in (again, whole))
        assert one["steps"].tolist() == other["steps"].tolist() == [2, 4, 6, 8]
        for name in ("coordinates", "map", "box"):  # the batch is the whole set in another order
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


class Answers(Regression):
    """With a forward that takes inputs, and without noise, so that a resumed run trains the same."""

    def __init__(self) -> None:
        super().__init__()
        self.net[3] = nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)


def answers() -> Answers:
    torch.manual_seed(0)
    return Answers()


class Normalizes(Answers):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] / 100.0, batch[1]]


class TestInAFit:
    def test_no_sgld_step_is_taken_no_gradient_asked_and_training_is_as_without(self, tmp_path: File) -> None:
        asked: list[bool] = []

        def counted(module: Any, batch: Any) -> torch.Tensor:
            asked.append(torch.is_grad_enabled())
            return square_error(module, batch)

        def outputs(module: Any, batch: Any) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            assert not module.training
            found: torch.Tensor = module.net(batch[0])
            return found

        def measure(max_steps: int) -> int:
            asked.clear()
            watched = monitor(
                loss_fn=counted,
                observables={"trajectory": TrajectoryPCA(data(6), outputs)},
                sinks=[FileSink(tmp_path)],
            )
            trainer = fit(watched, max_steps=max_steps)
            assert [one["cost"]["sgld_steps"] for one in watched.history] == [0] * (max_steps // 2)
            assert fingerprint(trainer) == fingerprint(fit(max_steps=max_steps))
            return sum(asked)

        assert measure(2) == measure(6)  # the check before training asks for some
        with Image.open(tmp_path / "trajectory" / "map-00000006.png") as image:
            assert "where a random walk has" in image.text["Description"]  # type: ignore[attr-defined]
        saved = np.load(tmp_path / "matrices-00000006.npz")
        assert saved["trajectory/rows"].shape == (3, 6)
        assert saved["trajectory/steps"].tolist() == [2, 4, 6]

    def test_inputs_come_as_the_loss_gets_them(self) -> None:
        def fitted(module: pl.LightningModule) -> torch.Tensor:
            trajectory = TrajectoryPCA(data(6))
            fit(monitor(observables={"trajectory": trajectory}), module=module, max_steps=2)
            expected: torch.Tensor = module.eval()(data(6).tensors[0] / 100)
            torch.testing.assert_close(trajectory.rows[0], expected.detach())
            return trajectory.rows

        assert fitted(Normalizes()).shape == (1, 6)


class TestProbes:
    def test_ragged_ones_are_told_in_their_order(self) -> None:
        ragged = [torch.full((1, length), float(length)) for length in (3, 2, 3)]
        trajectory = TrajectoryPCA(ragged, outputs=lambda module, batch: batch, references={"own": lambda batch: batch})
        found = estimate(Net(), [PROBES], loss_fn, observables={"trajectory": trajectory})
        assert trajectory.rows.tolist() == [[3, 3, 3, 2, 2, 3, 3, 3]]
        assert found["trajectory"]["distance/own"] == 0.0

    def test_blocks_do_not_matter(self) -> None:
        from slt_callbacks import SamplerConfig

        trajectory = TrajectoryPCA([PROBES], outputs=lambda module, batch: batch, references={"same": PROBES})
        sampler = SamplerConfig(block_size=7)
        estimate(Net(), [PROBES], loss_fn, observables={"trajectory": trajectory}, sampler=sampler)
        assert torch.equal(trajectory.rows[0], PROBES.flatten())


def refusal(**settings: Any) -> str:
    """What is said before training."""
    probes = settings.pop("probes", data(6))
    with pytest.raises(MisconfigurationException) as told:
        fit(monitor(observables={"trajectory": TrajectoryPCA(probes, **settings)}))
    return str(told.value)


def test_its_forward_passes_are_part_of_the_forecast() -> None:
    """Those over 60 probes are as many as 20 samples' gradients, of 4 that a pass goes through."""
    asked: list[int] = []

    def outputs(module: Any, batch: list[torch.Tensor]) -> torch.Tensor:
        asked.append(len(batch[0]))
        return batch[0]

    def more(observables: Any) -> float:
        one = Estimator(draw_reference(data(4)), square_error, observables)
        return one.time_pass(Regression()).more_passes

    trajectory = {"trajectory": TrajectoryPCA(data(60), outputs)}
    assert more({"llc": LLC(), **trajectory}) - more({"llc": LLC()}) == pytest.approx(60 / 3 / 4)
    asked.clear()
    Estimator(draw_reference(data(4)), square_error, trajectory).measure(Regression())
    assert sum(asked) == 60


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"probes": None}, TypeError, "`probes` to be the samples whose outputs are followed"),
            ({"outputs": 3}, TypeError, "`outputs` to be a function"),
            ({"references": [1]}, TypeError, "`references` to be a mapping"),
            ({"references": {"a/b": torch.zeros(1)}}, ValueError, "names without a slash, but got 'a/b'"),
            ({"references": {"a": 3}}, TypeError, r"`references\['a'\]` to be the outputs on all probes"),
            ({"num_components": 0}, ValueError, "`num_components` to be a positive integer, but got 0"),
            ({"num_components": True}, ValueError, "`num_components` to be a positive integer, but got True"),
        ],
    )
    def test_at_once(self, settings: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            TrajectoryPCA(**({"probes": [PROBES]} | settings))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"outputs": lambda module, batch: "text"}, "`outputs` to give a floating-point tensor"),
            ({"outputs": lambda module, batch: batch[0].mean()}, "`outputs` to give one row a probe, 6 of them"),
            ({"outputs": lambda module, batch: batch["x"]}, "`outputs` to take the probes, but it raised TypeError"),
            ({"outputs": lambda module, batch: 1 / 0}, "`outputs` to take the probes, but it raised ZeroDivisionError"),
            ({}, "`forward` to take the probes, but it raised NotImplementedError.* `outputs=lambda module, batch: "),
            ({"outputs": lambda module, batch: batch[0][:, :0]}, r"`outputs` to give values, but got none.* \(6, 0\)"),
            (
                {"outputs": lambda module, batch: batch[0], "references": {"a": torch.zeros(6, 3).long()}},
                r"(?s)`references\['a'\]` to give a floating-point tensor .*: write `.float\(\)`",
            ),
            (
                {"outputs": lambda module, batch: batch[0], "references": {"a": torch.zeros(6, 3).log()}},
                r"`references\['a'\]` to be finite, but some of it is not.*: .* Clip it",
            ),
            (
                {"outputs": lambda module, batch: batch[0], "references": {"a": lambda batch: batch[0] * math.nan}},
                r"`references\['a'\]` to be finite",
            ),
            ({"probes": [{"x": PROBES}]}, "`outputs` where a batch of probes is neither a tensor nor a list"),
            ({"probes": []}, "Expected `probes`"),
            (
                {"outputs": lambda module, batch: batch[0], "references": {"a": torch.zeros(6, 2)}},
                r"`references\['a'\]` to have the shape of the module's .* probes, \(6, 3\), but got \(6, 2\)",
            ),
            (
                {"outputs": lambda module, batch: batch[0], "references": {"a": torch.zeros(5, 3)}},
                r"`references\['a'\]` to give one row a probe, 6 of them, but got the shape \(5, 3\)",
            ),
            (
                {"outputs": lambda module, batch: batch[0], "references": {"a": lambda batch: batch[1]}},
                r"`references\['a'\]` to have the shape of the module's .* probes, \(6, 3\), but got \(6,\)",
            ),
        ],
    )
    def test_before_training(self, settings: dict[str, Any], message: str) -> None:
        told = refusal(**settings)
        assert re.search(message, told), told

    def test_one_inside_of_another_observable_without_its_needs_is_refused(self) -> None:
        class Holds:
            def __init__(self) -> None:
                self.inner = TrajectoryPCA([torch.eye(2)])
                self.check, self.inspect = self.inner.check, self.inner.inspect

        with pytest.raises(TypeError, match="has to give its `needs` as its own"):
            Estimator(draw_reference([torch.eye(2)]), observables={"held": Holds()})
