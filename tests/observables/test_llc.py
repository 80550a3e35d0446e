"""The LLC from draws: pairing, dropped chains, and verbs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from slt_callbacks.observables.base import Part, ReferencePoint
from slt_callbacks.observables.llc import LLC, free_energy
from slt_callbacks.sampling.draws import Draw

NBETA = 10.0


def fed(excess: torch.Tensor, offset: float = 5.0, num_train_samples: int | None = None) -> LLC:
    """An LLC that has seen a table ``(C, T)`` of excess losses over a reference loss that moves with the minibatch."""
    llc, empty = LLC(num_train_samples), torch.empty(0)
    llc.reset(ReferencePoint(0, offset, empty, empty, NBETA, 1.0, *excess.shape))
    for chain, row in enumerate(excess):
        for index, value in enumerate(row):
            loss = value + offset + 100 * index  # minibatches of very different reference losses
            llc.update(Draw(chain, index, samples=None, losses=loss[None], loss=loss, excess=value))
    return llc


EXCESS = torch.tensor([[0.1, 0.3, 0.2], [0.5, -0.3, 0.4]], dtype=torch.float64)


def test_the_numbers_are_those_of_their_definitions() -> None:
    result = fed(EXCESS).compute()
    chains = [NBETA * 0.2, NBETA * 0.2]
    assert result["per_chain"].tolist() == pytest.approx(chains)
    assert result["mean"] == pytest.approx(2.0)
    moved = fed(EXCESS + torch.tensor([[0.0], [0.3]])).compute()
    assert moved["per_chain"].tolist() == pytest.approx([2.0, 5.0])
    assert moved["std"] == pytest.approx(3 / math.sqrt(2))  # ddof 1
    assert moved["stderr"] == pytest.approx(1.5)
    assert moved["variance_llc"] == pytest.approx(float(((EXCESS + torch.tensor([[0.0], [0.3]])) * NBETA).var()))
    assert moved["reference_loss"] == 5.0
    torch.testing.assert_close(result["loss_trace"][1], EXCESS[1] + 5 + 100 * torch.arange(3))


def test_losses_are_compared_with_the_same_samples_at_the_fork_in_mean_and_variance() -> None:
    # Losses go up by 100 a draw with the minibatch; the excess, which is paired, does not.
    result = fed(EXCESS).compute()
    assert result["mean"] == pytest.approx(2.0)
    assert result["variance_llc"] < 100 * float(EXCESS.var()) * 1.001


def test_a_negative_estimate_is_reported_as_it_is() -> None:
    result = fed(-EXCESS).compute()
    assert result["mean"] == pytest.approx(-2.0)
    assert result["per_chain"].tolist() == pytest.approx([-2.0, -2.0])


def test_a_dropped_chain_keeps_its_place_and_counts_nowhere() -> None:
    table = torch.stack([EXCESS[0], torch.tensor([0.1, math.nan, 1e30], dtype=torch.float64), EXCESS[1] + 0.3])
    llc = fed(table)
    llc.discard(1)
    result = llc.compute()
    assert result["per_chain"].isnan().tolist() == [False, True, False]
    assert result["mean"] == pytest.approx(3.5)
    assert result["std"] == pytest.approx(3 / math.sqrt(2))
    assert result["stderr"] == pytest.approx(1.5)
    assert result["variance_llc"] == pytest.approx(float((table[[0, 2]] * NBETA).var()))
    assert result["loss_trace"][1].isnan().all()
    assert not result["loss_trace"][[0, 2]].isnan().any()


def test_the_only_chain_left_gets_its_error_from_its_own_trace() -> None:
    noise = torch.randn(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    llc = fed(noise)
    llc.discard(0)
    result = llc.compute()
    assert math.isnan(result["std"])
    assert result["stderr"] == pytest.approx(float(NBETA * noise[1].std()) / math.sqrt(200), rel=0.25)


def test_no_chain_left_gives_nan_and_no_warning() -> None:
    llc = fed(EXCESS)
    llc.discard(0)
    llc.discard(1)
    result = llc.compute()
    assert all(math.isnan(result[name]) for name in ("mean", "stderr", "std", "variance_llc"))
    assert result["per_chain"].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_are_float64_of_the_promised_shape(dtype: Any) -> None:
    result = fed(EXCESS.to(dtype)).compute()
    assert result["per_chain"].shape == (2,)
    assert result["loss_trace"].shape == (2, 3)
    assert result["per_chain"].dtype == result["loss_trace"].dtype == torch.float64


class TestFreeEnergy:
    def test_it_is_n_times_the_loss_at_the_fork_and_the_llc_times_ln_n(self) -> None:
        result = fed(EXCESS, num_train_samples=5000).compute()
        assert result["free_energy"] == pytest.approx(5000 * 5.0 + 2.0 * math.log(5000), rel=1e-12)
        assert result["num_train_samples"] == 5000
        assert fed(EXCESS, num_train_samples=1).compute()["free_energy"] == 5.0

    def test_without_n_there_is_none(self) -> None:
        assert not {"free_energy", "num_train_samples"} & fed(EXCESS).compute().keys()

    def test_a_simpler_place_with_a_larger_loss_is_preferred_up_to_the_n_where_both_are_equal(self) -> None:
        simple, precise = (1.02, 2.0), (1.0, 12.0)  # of loss and LLC: equal where n / ln n = 10 / .02
        found = {n: free_energy(n, *simple) - free_energy(n, *precise) for n in (100, 4000, 4500, 10**6)}
        assert [difference < 0 for difference in found.values()] == [True, True, False, False]
        assert found[100] == pytest.approx(100 * 0.02 - 10 * math.log(100))

    def test_with_no_chain_left_it_is_not_known(self) -> None:
        llc = fed(EXCESS, num_train_samples=10)
        llc.discard(0)
        llc.discard(1)
        assert math.isnan(llc.compute()["free_energy"])

    def test_refinements_have_none(self) -> None:
        main = LLC(num_train_samples=10)
        refined = main.refine([Part("head", of_weights=True), Part("code", of_weights=False)])
        assert [refined[name].num_train_samples for name in ("head", "code")] == [None, None]
        assert main.num_train_samples == 10

    @pytest.mark.parametrize("bad", [0, -3, True, 10.0, "10", math.nan])
    def test_a_bad_n_is_refused(self, bad: Any) -> None:
        with pytest.raises(
            ValueError, match=r"Expected `num_train_samples` to be a positive integer, but got .*: write"
        ):
            LLC(num_train_samples=bad)

    def test_a_subclass_with_an_init_of_its_own_has_none(self) -> None:
        class Own(LLC):
            def __init__(self) -> None:
                pass

        assert Own().num_train_samples is None
