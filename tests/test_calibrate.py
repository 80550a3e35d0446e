from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from slt_callbacks import SGHMC, SGLD, Calibration, LeimkuhlerMatthews, SamplerConfig, calibrate, calibration_figure
from slt_callbacks.replay.command import main
from tests.problems import TWO_SAMPLES, Quadratic, Weights
from tests.training import Regression

H = torch.tensor([0.3, 1.0, 1.0, 3.0]).repeat(8)  # eight independent copies: less noise for the price of one
LONG = SamplerConfig(
    SGLD(), num_chains=8, num_draws=120, num_burnin_steps=200, num_steps_bw_draws=6, engine="vectorized"
)


def exact(nbeta: float, localization: float) -> float:
    """LLC of the quadratic at a vanishing step."""
    return float((nbeta * H / (nbeta * H + localization)).sum() / 2)


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(
        Weights(len(H)), TWO_SAMPLES, Quadratic(H), nbetas=[100.0], localizations=[1.0, 100.0], sampler=LONG
    )


def test_the_recommended_setting_gives_the_exact_value(found: Calibration) -> None:
    best = found.recommended
    assert best is not None
    (point,) = [
        p
        for p in found.points
        if (p.step_size, p.nbeta, p.localization) == (best.dynamics.step_size, best.nbeta, best.localization)
    ]
    assert point.verdict == "sound"
    assert point.step_bias <= 0.025
    assert point.llc == pytest.approx(exact(point.nbeta, point.localization), rel=0.1)
    assert best.localization == 1.0, "the weakest that is sound looks farthest"


def test_the_grid_is_whole_and_the_verdicts_are_those_of_the_formula(found: Calibration) -> None:
    assert len(found.points) == 2 * 5
    for point in found.points:
        bias = point.step_size * (point.nbeta * 3.0 + point.localization) / 4
        assert point.step_bias == pytest.approx(bias, rel=0.02)
        assert (point.verdict in ("biased", "diverges")) == (bias > 0.025)


def test_a_long_step_is_biased_as_the_formula_says(found: Calibration) -> None:
    for point in found.points:
        if point.step_bias == pytest.approx(0.08, rel=0.1):
            k = point.nbeta * H + point.localization
            value = float((point.nbeta * H / (k * (1 - point.step_size * k / 4))).sum() / 2)
            assert point.llc == pytest.approx(value, abs=4 * point.stderr)


@pytest.fixture(scope="module")
def averaged() -> Calibration:
    return calibrate(Weights(len(H)), TWO_SAMPLES, Quadratic(H), nbetas=[100.0], localizations=[1.0, 100.0])


def test_averaged_noise_has_no_bias_up_to_where_it_is_no_longer_stable(averaged: Calibration) -> None:
    for localization in (1.0, 100.0):
        points = [point for point in averaged.points if point.localization == localization]
        assert [point.stability for point in points] == pytest.approx([1 / 128, 1 / 32, 1 / 8, 1 / 2, 1.0], rel=0.02)
        assert [point.verdict for point in points[2:]] == ["sound", "sound", "biased"]
        for point in points[2:4]:
            assert point.llc == pytest.approx(exact(100.0, localization), abs=5 * point.stderr)
    assert averaged.recommended is not None
    assert averaged.recommended.dynamics == LeimkuhlerMatthews(averaged.points[3].step_size)
    assert averaged.line().startswith("SamplerConfig(LeimkuhlerMatthews(step_size=0.00")
    calibration_figure(averaged)


def test_the_noise_of_minibatches_is_told_from_the_bias_of_a_step() -> None:
    """Regression on labels with noise: at a long step minibatches add more than the bias of a step may be."""
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).double()

    def loss_fn(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return 0.5 * (batch[:, :2] @ module.w - batch[:, 2]).square()  # type: ignore[no-any-return, operator]

    module = Weights(2).double()
    with torch.no_grad():
        module.w.copy_(torch.linalg.lstsq(data[:, :2], data[:, 2:]).solution[:, 0])
    sampler = SamplerConfig(batch_size=16, num_draws=400)
    found = calibrate(module, [data], loss_fn, nbetas=[16.0], localizations=[1.0], sampler=sampler)
    assert [point.verdict for point in found.points][-2:] == ["noisy", "biased"]
    assert found.points[-2].noise_bias > 0.05


def test_the_line_names_the_arguments_of_the_dynamics_that_are_no_defaults() -> None:
    config = SamplerConfig(SGHMC(1.23456e-3, friction=0.3), nbeta=10.0)
    assert Calibration((), config, config).line().startswith("SamplerConfig(SGHMC(step_size=0.00123, friction=0.3), ")


def test_a_dynamics_whose_step_cannot_be_changed_is_refused() -> None:
    class Odd:
        step_size = 0.1
        init = SGLD.init
        step = SGLD.step

    with pytest.raises(TypeError, match=r"a dataclass with a field `step_size`.*Odd is none"):
        calibrate(Weights(len(H)), TWO_SAMPLES, Quadratic(H), sampler=SamplerConfig(Odd()))  # type: ignore[arg-type]


def test_steps_that_diverge_are_told_and_nothing_is_recommended() -> None:
    found = calibrate(Weights(len(H)), TWO_SAMPLES, Quadratic(H), step_sizes=[10.0, 20.0], nbetas=[100.0])
    assert {point.verdict for point in found.points} == {"diverges"}
    assert all(math.isnan(point.llc) for point in found.points)
    assert found.recommended is None
    assert "No setting is sound (diverges: 6): try a larger `localization`" in found.line()
    calibration_figure(found)


def test_every_point_is_told_as_it_is_found() -> None:
    told: list[tuple[str, int]] = []
    quick = SamplerConfig(SGLD(), num_chains=2, num_draws=4, num_burnin_steps=2, batch_size=None)
    calibrate(
        Weights(len(H)),
        TWO_SAMPLES,
        Quadratic(H),
        step_sizes=[1e-3, 1e-4],
        localizations=[10.0],
        sampler=quick,
        on_point=lambda point, total: told.append((f"{point.step_size:g}", total)),
    )
    assert told == [("0.0001", 6), ("0.001", 6)] * 3


@pytest.mark.parametrize("name", ["step_sizes", "nbetas", "localizations"])
def test_an_empty_list_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` to hold at least one number"):
        calibrate(Weights(len(H)), TWO_SAMPLES, Quadratic(H), **{name: []})


def test_the_figure_shows_every_panel_line_and_the_star(found: Calibration, tmp_path: Path) -> None:
    figure = calibration_figure(found, tmp_path / "calibration.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["localization 1", "localization 100"]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.containers] == ["nbeta 100"]
    with Image.open(tmp_path / "calibration.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50


def test_the_line_to_copy_is_python_and_means_the_recommendation(found: Calibration) -> None:
    copied: Any = eval(found.line(), {"SamplerConfig": SamplerConfig, "SGLD": SGLD})
    assert copied.localization == found.recommended.localization  # type: ignore[union-attr]
    assert (copied.num_draws, copied.engine) == (LONG.num_draws, LONG.engine)
    assert copied.dynamics.step_size == pytest.approx(found.recommended.dynamics.step_size, rel=0.01)  # type: ignore[union-attr]


def test_the_command_measures_a_checkpoint_and_writes_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Regression().state_dict(), tmp_path / "net.pt")
    arguments = [
        str(tmp_path / "net.pt"),
        *("--module", "tests.training.Regression", "--reference", "tests.training.data"),
        *("--loss", "tests.training.square_error", "--localizations", "1000", "--nbetas", "10"),
        *("--num-chains", "2", "--num-draws", "40", "--output", str(tmp_path / "out" / "grid.png"), "--no-progress"),
    ]
    code = main(["calibrate", *arguments])
    printed = capsys.readouterr()
    assert (tmp_path / "out" / "grid.png").exists()
    assert printed.out.count("1000") >= 5
    assert "for all 5 points" in printed.err
    assert ("SamplerConfig(LeimkuhlerMatthews" in printed.out) == (code == 0)


def test_a_checkpoint_that_is_not_there_is_a_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "gone.pt", "--module", "torch.nn.Linear", "--reference", "torch.zeros"])
    assert "there is no file gone.pt" in capsys.readouterr().err
