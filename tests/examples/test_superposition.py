"""The polygons of the toy model of superposition: known losses, known LLCs, and a training that walks over them."""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import TensorDataset

from slt_callbacks import Measurement, estimate
from tests.examples.test_language_model import check_reports, run

SCRIPT = Path(__file__).parents[2] / "examples" / "superposition.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_superposition", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def polygon(example: ModuleType, corners: int, awake: int = 0) -> torch.nn.Module:
    """A regular polygon set by hand: the rest deep asleep, or awake at the origin."""
    length, bias = example.best_corner(corners)
    model: torch.nn.Module = example.Superposition(plateau=1)
    angles = 2 * math.pi * torch.arange(corners) / corners
    biases = [bias] * corners + [1 / 12] * awake + [-10.0] * (6 - corners - awake)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, :corners] = length * torch.stack([angles.cos(), angles.sin()])
        model.bias.copy_(torch.tensor(biases))
    return model


class TestTheory:
    @pytest.mark.parametrize(
        ("corners", "awake", "loss"),
        [(4, 0, 0.11111), (4, 1, 0.10417), (4, 2, 0.09722), (5, 0, 0.06874), (5, 1, 0.06180), (6, 0, 0.04819)],
    )
    def test_losses_are_the_published_ones_and_those_of_an_integral(
        self, example: ModuleType, corners: int, awake: int, loss: float
    ) -> None:
        assert example.known_loss(corners, awake) == pytest.approx(loss, abs=1e-5)
        model = polygon(example, corners, awake)

        strengths = torch.linspace(0, 1, 20_001)
        by_feature = [model.per_sample_loss([strengths[:, None] * one]).detach().double() for one in torch.eye(6)]
        assert sum(float(torch.trapezoid(found, strengths)) for found in by_feature) / 6 == pytest.approx(
            loss, abs=1e-5
        )

    def test_the_grid_of_strengths_stands_for_the_expected_loss(self, example: ModuleType) -> None:
        for corners, awake in ((1, 0), (3, 0), (5, 0), (5, 1), (6, 0)):
            found = float(polygon(example, corners, awake).per_sample_loss([example.samples()]).detach().mean())
            assert found == pytest.approx(example.known_loss(corners, awake), rel=2e-3)

    @pytest.mark.parametrize(("corners", "llc"), [(5, 7.0), (6, 8.5)])
    def test_the_llc_of_a_polygon_set_by_hand(self, example: ModuleType, corners: int, llc: float) -> None:
        """With the averaged dynamics of the default; within 10 % of theory, and apart from the other polygon's."""
        assert example.known_llc(corners) == llc
        found = estimate(
            polygon(example, corners),
            TensorDataset(example.samples()),
            lambda module, batch: module.per_sample_loss(batch),
            sampler=example.make_sampler(smoke=False, num_chains=32),
        )
        assert found["llc"]["mean"] == pytest.approx(llc, rel=0.1)
        assert found["health"]["rhat"] < 1.2

    @pytest.mark.parametrize(("corners", "awake"), [(1, 0), (3, 0), (4, 0), (4, 2), (5, 0), (5, 1), (6, 0)])
    def test_shapes_are_recognised_from_weights(self, example: ModuleType, corners: int, awake: int) -> None:
        model = polygon(example, corners, awake)
        shape = example.recognise(model.weight.detach(), model.bias.detach())
        assert (shape.corners, shape.awake) == (corners, awake)

    def test_two_features_in_one_corner_are_one_corner(self, example: ModuleType) -> None:
        model = polygon(example, 4)
        with torch.no_grad():
            model.weight[:, 4] = model.weight[:, 3] * 0.5**0.5
            model.weight[:, 3] *= 0.5**0.5
        assert example.recognise(model.weight.detach(), model.bias.detach()).corners == 4


PLATEAU = 900
MEASURED = (700, 750, 800)


@pytest.fixture(scope="module")
def history(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Measurement]:
    """A training whose plateaus are shorter than the example's, measured three times at each."""
    args = argparse.Namespace(seed=0, seeds=1, smoke=False, plateau=PLATEAU, output_dir=tmp_path_factory.mktemp("walk"))
    monitor, _ = example.train(args, lambda step: step % PLATEAU in MEASURED)
    return list(monitor.history)


def test_training_walks_over_plateaus_of_known_loss_with_llcs_in_the_order_of_theory(
    example: ModuleType, history: list[Measurement]
) -> None:
    plateaus = example.find_plateaus(history)
    assert [(plateau.shape.corners, plateau.shape.awake) for plateau in plateaus] == [(1, 0), (3, 0), (5, 0), (5, 1)]
    for plateau in plateaus:
        known = plateau.shape.corners, plateau.shape.awake
        assert plateau.loss == pytest.approx(example.known_loss(*known), rel=0.02)
        assert plateau.llc == pytest.approx(example.known_llc(*known), rel=0.2, abs=0.6)
    assert example.in_order(plateaus)
    one, three, *_ = plateaus
    swapped = [example.Plateau(one.shape, three.measurements), example.Plateau(three.shape, one.measurements)]
    assert not example.in_order(swapped)


def test_a_smoke_run_prints_a_table_and_draws(tmp_path: Path) -> None:
    result = run(str(SCRIPT), "--smoke", "--output-dir", "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "LLC theory" in result.stdout
    assert re.search(r"^20 measurements took", result.stdout, flags=re.MULTILINE)
    check_reports(tmp_path, result.stdout)
    assert (tmp_path / "out" / "superposition.png").stat().st_size > 10_000
