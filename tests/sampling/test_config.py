"""Settings are checked where they are made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
from slt_callbacks.sampling.posterior import default_nbeta


@pytest.mark.parametrize("name", ["num_chains", "num_draws", "num_steps_bw_draws", "batch_size", "block_size"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "4", float("nan")])
def test_counts_have_to_be_positive_integers(name: str, wrong: Any) -> None:
    otherwise = ' or "auto"' if name == "batch_size" else ""
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a positive integer{otherwise}, but got {wrong!r}"):
        SamplerConfig(**{name: wrong})


@pytest.mark.parametrize("wrong", [-1, 1.5, True, None])
def test_burn_in_may_be_zero_but_not_negative(wrong: Any) -> None:
    assert SamplerConfig(num_burnin_steps=0).num_burnin_steps == 0
    with pytest.raises(ValueError, match='Expected `num_burnin_steps` to be an integer >= 0 or "auto", but got'):
        SamplerConfig(num_burnin_steps=wrong)


@pytest.mark.parametrize("name", ["nbeta", "localization"])
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "1", True])
def test_weights_of_the_posterior_have_to_be_finite_and_not_negative(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a finite number >= 0, but got"):
        SamplerConfig(**{name: wrong})


def test_localization_is_required_and_nbeta_is_not() -> None:
    assert SamplerConfig(nbeta=None).nbeta is None
    with pytest.raises(ValueError, match="Expected `localization`"):
        SamplerConfig(localization=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dynamics", [SGLD, RMSPropSGLD])
@pytest.mark.parametrize("wrong", [-1e-3, float("nan"), float("inf"), "large", None, True])
def test_step_size_has_to_be_auto_or_finite_and_not_negative(dynamics: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match='Expected `step_size` to be "auto" or a finite number >= 0, but got'):
        dynamics(wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan"), None, "x"])
def test_decay_has_to_be_in_its_range(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `decay` to be in \[0, 1\), but got"):
        RMSPropSGLD(1e-3, decay=wrong)


@pytest.mark.parametrize("wrong", [0.0, -0.1, float("inf"), float("nan"), None])
def test_damping_has_to_be_positive(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected `damping` to be a positive number, but got"):
        RMSPropSGLD(1e-3, damping=wrong)


@pytest.mark.parametrize("wrong", ["sgld", SGLD, 1e-3, None])
def test_dynamics_has_to_be_an_object_with_the_methods(wrong: Any) -> None:
    with pytest.raises(TypeError, match="Expected `dynamics` to be an object with `step_size`, `init` and `step`"):
        SamplerConfig(dynamics=wrong)


def test_engine_has_to_be_known() -> None:
    with pytest.raises(ValueError, match=r"Expected `engine` to be one of .*'sequential'.*, but got 'fast'"):
        SamplerConfig(engine="fast")  # type: ignore[arg-type]


def test_compiling_is_for_the_vectorized_engine() -> None:
    assert SamplerConfig(engine="auto", compile=True).compile
    with pytest.raises(ValueError, match='`engine` to be "vectorized" or "auto" with `compile=True`, but got "seq'):
        SamplerConfig(engine="sequential", compile=True)
    with pytest.raises(ValueError, match="Expected `compile` to be True or False, but got 'yes'"):
        SamplerConfig(engine="vectorized", compile="yes")  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplerConfig().num_draws = 3  # type: ignore[misc]


@pytest.mark.parametrize(("draws", "burn_in", "between", "steps"), [(1, 0, 1, 1), (1, 0, 9, 1), (5, 10, 3, 23)])
def test_steps_run_up_to_and_with_the_last_draw(draws: int, burn_in: int, between: int, steps: int) -> None:
    config = SamplerConfig(num_draws=draws, num_burnin_steps=burn_in, num_steps_bw_draws=between)
    assert config.num_steps == steps
    assert config.num_draw_steps == steps - burn_in


def test_default_nbeta_is_n_over_log_n() -> None:
    assert default_nbeta(100) == pytest.approx(21.71472409516259)
    with pytest.raises(ValueError, match=r"Expected at least 2 reference samples for the default `nbeta`.*but got 1"):
        default_nbeta(1)
