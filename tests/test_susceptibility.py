"""Susceptibilities against closed forms: linear regression, and a dead unit of the toy model of superposition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import (
    LLC,
    Draw,
    LeimkuhlerMatthews,
    Measurement,
    ReferencePoint,
    Refinement,
    SamplerConfig,
    Susceptibility,
    behavioral,
    estimate,
)
from slt_callbacks.observables.base import Part
from slt_callbacks.observables.needs import Needs
from slt_callbacks.observables.responses import Response, components, standardize
from tests.problems import TWO_SAMPLES, Quadratic, Weights, settings

NBETA, GAMMA = 5.0, 5.0
PARTS = {"a": [0, 1], "b": [2, 3], "all": [0, 1, 2, 3]}


class LinearRegression:
    """l_i = (x_i'w - y_i)^2 / 2 at the least squares w, in double precision."""

    def __init__(self, num_samples: int = 8, size: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(num_samples, size, generator=generator).double()
        noise = 0.02 * torch.randn(num_samples, generator=generator).double()
        self.y = self.x @ torch.randn(size, generator=generator).double() + noise
        self.hessian = self.x.mT @ self.x / num_samples
        self.solution = torch.linalg.lstsq(self.x, self.y[:, None]).solution[:, 0]

    def losses(self, module: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        losses: torch.Tensor = (x @ module.w - y).square() / 2
        return losses

    def posterior(self, part: list[int], nbeta: float = NBETA, localization: float = GAMMA) -> torch.Tensor:
        """Covariance of the weights of a part."""
        hessian = self.hessian[part][:, part]
        return torch.linalg.inv(nbeta * hessian + localization * torch.eye(len(part)).double())

    def means(self, part: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every loss less the mean of all, and of what the mean has on top of that at w*."""
        own = torch.einsum("np,pq,nq->n", self.x[:, part], self.posterior(part), self.x[:, part]) / 2
        residual = (self.x @ self.solution - self.y).square() / 2
        losses = own + residual
        return losses - losses.mean(), own.mean()

    def exact(self, nbeta: float, localization: float, probes: torch.Tensor | None = None) -> torch.Tensor:
        """``(N, K)`` for the parts; Baker et al. with a Gaussian posterior. Probes have no residual."""
        x = self.x if probes is None else probes
        columns = []
        for part in PARTS.values():
            s, rows = self.posterior(part, nbeta, localization), x[:, part]
            inner = s @ (rows.mT @ rows / len(rows)) @ s
            own = torch.einsum("np,pq,nq->n", rows, inner, rows)
            columns.append(-(own - own.mean()) / 2)
        return torch.stack(columns, dim=1)

    def measure(self, config: SamplerConfig, **more: Susceptibility) -> Measurement:
        return estimate(
            Weights(self.solution),
            [(self.x, self.y)],
            self.losses,
            observables={"chi": Susceptibility(), **more},
            sampler=config,
            refinements={name: Refinement("w", slices={"w": torch.tensor(part)}) for name, part in PARTS.items()},
        )


PROBES = torch.randn(6, 4, generator=torch.Generator().manual_seed(9)).double()
REGRESSION = LinearRegression()


def config(nbeta: float = NBETA, chains: int = 32) -> SamplerConfig:
    """The slowest direction forgets in some three steps, so that draws four steps apart are nearly independent."""
    return SamplerConfig(
        LeimkuhlerMatthews(0.1),
        nbeta=nbeta,
        localization=GAMMA,
        num_chains=chains,
        num_draws=96,
        num_burnin_steps=15,
        num_steps_bw_draws=4,
        batch_size=None,
        engine="vectorized",
    )


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


class TestLinearRegression:
    @pytest.fixture(scope="class")
    def measured(self) -> Measurement:
        """With the estimator of two chains beside that of one, and with probes of its own."""
        probes = (PROBES, PROBES @ REGRESSION.solution)
        more = {"two": Susceptibility(estimator="two_chain"), "probed": Susceptibility([probes])}
        return REGRESSION.measure(config(), **more)

    def test_it_is_the_exact_matrix(self, measured: Measurement) -> None:
        """To what three thousand draws of each part can tell; a benchmark takes many more.

        Over seeds they are off by 8 +- 2.5 %, with other probes too, and by 12 +- 2.5 % with two chains.
        """
        assert off(measured["chi"]["matrix"], REGRESSION.exact(NBETA, GAMMA)) < 0.18

    def test_columns_sum_to_zero(self, measured: Measurement) -> None:
        matrix = measured["chi"]["matrix"]
        assert float(matrix.sum(0).abs().max()) < 1e-12 * float(matrix.abs().max())
        assert measured["chi"]["columns"] == list(PARTS)

    def test_probes_are_other_samples(self, measured: Measurement) -> None:
        exact = REGRESSION.exact(NBETA, GAMMA, PROBES)
        assert off(measured["probed"]["matrix"], exact) < 0.18
        assert off(measured["chi"]["matrix"][: len(PROBES)], exact) > 0.5

    def test_two_chains_are_the_formula(self, measured: Measurement) -> None:
        """-E[phi (l - L)] + E[phi] E_full[l - L], from the closed moments of both posteriors."""
        exact = REGRESSION.exact(NBETA, GAMMA)
        whole, _ = REGRESSION.means(PARTS["all"])
        for place, part in enumerate(PARTS.values()):
            own, phi = REGRESSION.means(part)
            exact[:, place] -= phi * (own - whole)
        assert off(measured["two"]["matrix"], exact) < 0.22
        assert off(exact, REGRESSION.exact(NBETA, GAMMA)) > 0.5  # which is another one

    def test_without_a_likelihood_it_is_that_of_the_localization(self) -> None:
        found = REGRESSION.measure(config(nbeta=0.0))
        assert off(found["chi"]["matrix"], REGRESSION.exact(0.0, GAMMA)) < 0.25
        assert found.refinements["a"]["llc"]["mean"] == 0.0


class TestTheFormula:
    def test_error_bars_are_those_of_chance(self) -> None:
        """Of 8 chains whose draws are independent: Student's t with 7 degrees of freedom, over 150 seeds."""
        part, exact = PARTS["all"], REGRESSION.exact(NBETA, GAMMA)[:, 2]
        scale = torch.linalg.cholesky(REGRESSION.posterior(part)).mT
        residual = REGRESSION.y - REGRESSION.x @ REGRESSION.solution
        errors = []
        for seed in range(150):
            moved = torch.randn(8, 50, 4, generator=torch.Generator().manual_seed(seed)).double() @ scale
            found = susceptibility({"all": (moved @ REGRESSION.x.mT - residual).square() / 2})
            errors.append((found["matrix"][:, 0] - exact) / found["stderr"][:, 0])
        z = torch.stack(errors)
        assert 1.1 < float(z.square().mean()) < 1.8  # 7/5
        assert 0.03 < float((z.abs() > 2.365).double().mean()) < 0.08  # 5 %

    def test_it_is_exact_for_draws_that_fill_the_posterior_evenly(self) -> None:
        """Quasi-random draws, whose error is far below that of chance."""
        points = torch.quasirandom.SobolEngine(4, scramble=True, seed=0).draw(2**13).double().clamp(1e-6, 1 - 1e-6)
        normal = torch.special.ndtri(points)
        planted = {}
        for name, part in PARTS.items():
            covariance = REGRESSION.posterior(part)
            moved = torch.zeros(len(normal), 4).double()
            moved[:, part] = normal[:, : len(part)] @ torch.linalg.cholesky(covariance).mT
            residual = REGRESSION.y - REGRESSION.x @ REGRESSION.solution
            planted[name] = ((moved @ REGRESSION.x.mT - residual).square() / 2)[None]
        assert off(susceptibility(planted)["matrix"], REGRESSION.exact(NBETA, GAMMA)) < 0.02


class Superposition(nn.Module):
    """c = 5 features in two dimensions: a square and a dead unit at 0; the dead column is what moves."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(4) * math.pi / 2
        self.square = nn.Parameter(torch.stack([angles.cos(), angles.sin()]).double(), requires_grad=False)
        self.dead = nn.Parameter(torch.zeros(2).double())


def superposition_losses(module: Superposition, features: torch.Tensor) -> torch.Tensor:
    """Of x = mu e_j, mu uniform on [0, 1]: the mean square of mu is 1/3, and ReLU(W'Wx) goes with mu."""
    w = torch.cat([module.square, module.dead[:, None]], dim=1)
    outputs = (w.mT @ w @ features.mT).clamp(min=0).mT
    return (features - outputs).square().sum(1) / 3


@pytest.fixture(scope="module")
def dead_unit() -> Measurement:
    sampler = SamplerConfig(
        LeimkuhlerMatthews(0.004),
        nbeta=1000.0,
        localization=0.0,
        num_chains=48,
        num_draws=100,
        num_burnin_steps=200,
        num_steps_bw_draws=12,
        batch_size=None,
        engine="vectorized",
    )
    return estimate(
        Superposition(),
        [torch.eye(5).double()],
        superposition_losses,
        observables={"chi": Susceptibility()},
        sampler=sampler,
        refinements={"dead": Refinement("dead")},
    )


class TestADeadUnit:
    """t<K> = 1/2 and t^2 Var K = 1/2 with K = r^4 / 15, for two weights that are worth one."""

    def test_its_refined_llc_is_a_half(self, dead_unit: Measurement) -> None:
        llc = dead_unit.refinements["dead"]["llc"]
        assert llc["mean"] == pytest.approx(0.5, abs=0.04)
        assert llc["variance_llc"] == pytest.approx(0.5, abs=0.1)
        assert dead_unit.refinements["dead"]["num_parameters"] == 2

    def test_it_works_for_the_living_and_against_itself(self, dead_unit: Measurement) -> None:
        chi = dead_unit["chi"]["matrix"][:, 0]
        assert float(chi[:4].mean()) == pytest.approx(-2.379e-6, rel=0.15)
        assert float(chi[4]) == pytest.approx(9.516e-6, rel=0.15)


def draws(phi: torch.Tensor, losses: torch.Tensor) -> list[Draw]:
    """Of chains ``(C, T)`` and ``(C, T, N)``."""
    return [
        Draw(chain, index, None, one, one.mean(), one.mean(), reference_losses=one)
        for chain, own in enumerate(losses)
        for index, one in enumerate(own)
    ]


def susceptibility(parts: dict[str, torch.Tensor], **arguments: Any) -> dict[str, Any]:
    """From planted losses ``(C, T, N)`` of every part."""
    chi = Susceptibility(**arguments)
    responses = chi.refine([Part(name, of_weights=True) for name in parts])
    num_chains, num_draws, size = next(iter(parts.values())).shape
    point = ReferencePoint(0, 0.0, torch.zeros(size), torch.arange(size), 1.0, 1.0, num_chains, num_draws, key="chi")
    chi.reset(point)
    for name, losses in parts.items():
        responses[name].reset(point)
        for draw in draws(losses.mean(-1), losses):
            responses[name].update(draw)
    return chi.compute()


class TestNumbers:
    def planted(self, seed: int, size: int = 6) -> torch.Tensor:
        return torch.randn(4, 50, size, generator=torch.Generator().manual_seed(seed)).double()

    def test_it_is_minus_the_covariance_over_all_draws(self) -> None:
        losses = self.planted(0)
        flat = losses.flatten(0, 1)
        phi = flat.mean(1)
        expected = -torch.stack([torch.cov(torch.stack([phi, flat[:, i] - phi]))[0, 1] for i in range(6)])
        torch.testing.assert_close(susceptibility({"p": losses})["matrix"][:, 0], expected)

    def test_a_shift_of_a_whole_chain_counts(self) -> None:
        """Chains that have not met are no noise to be centred away: the pooled covariance sees them."""
        losses = self.planted(0)
        losses[0, :, 0] += 5.0
        found = susceptibility({"p": losses})
        assert float(found["matrix"][0, 0]) < -0.5
        assert float(found["stderr"][0, 0]) > 0.3

    def test_nothing_is_significant_five_times_in_a_hundred(self) -> None:
        """Losses of one chain against the mean of another are an exact null: here the mean is made independent."""
        shares = []
        for seed in range(40):
            noise = self.planted(seed, size=40)
            centred = noise - noise.mean(-1, keepdim=True)
            phi = torch.randn(4, 50, 1, generator=torch.Generator().manual_seed(seed + 1000)).double()
            shares.append(susceptibility({"p": centred + phi})["significant"])
        assert 0.03 < sum(shares) / len(shares) < 0.07

    def test_one_chain_has_no_error(self) -> None:
        found = susceptibility({"p": self.planted(0)[:1]})
        assert bool(found["stderr"].isnan().all())
        assert math.isnan(found["significant"])
        assert bool(found["matrix"].isfinite().all())

    def test_means_by_label(self) -> None:
        parts = {"p": self.planted(0), "q": self.planted(1)}
        labels = ["cat", "dog", "cat", "dog", "cat", "cat"]
        found = susceptibility(parts, labels=labels)
        rows = [place for place, label in enumerate(labels) if label == "dog"]
        assert found["dog_to_q"] == pytest.approx(float(found["standardized"][rows, 1].mean()))
        assert {name for name in found if "_to_" in name} == {"cat_to_p", "cat_to_q", "dog_to_p", "dog_to_q"}

    def test_standardized(self) -> None:
        matrix = torch.randn(30, 4, generator=torch.Generator().manual_seed(3)).double() * torch.tensor([1, 10, 0.1, 5])
        found, share = standardize(matrix)
        z = (matrix - matrix.mean(0)) / matrix.std(0, correction=0)
        torch.testing.assert_close(found, z - z.mean(1, keepdim=True))
        assert share == pytest.approx(float(4 * z.mean(1).square().sum() / z.square().sum()))

    def test_a_part_that_was_not_measured_changes_nothing_of_the_others(self) -> None:
        matrix = torch.randn(30, 3, generator=torch.Generator().manual_seed(3)).double()
        gone = torch.cat([matrix, torch.full((30, 1), torch.nan)], dim=1)
        found, share = standardize(gone)
        torch.testing.assert_close(found[:, :3], standardize(matrix)[0])
        assert share == standardize(matrix)[1]
        assert bool(found[:, 3].isnan().all())
        assert components(found, 2)[1] == pytest.approx(components(found[:, :3], 2)[1])

    def test_components_are_those_of_the_covariance(self) -> None:
        matrix, _ = standardize(torch.randn(30, 4, generator=torch.Generator().manual_seed(3)).double())
        coordinates, shares = components(matrix, 3)
        spectrum = torch.linalg.eigvalsh(matrix.mT @ matrix).flip(0)
        assert shares == pytest.approx((spectrum / spectrum.sum())[:3].tolist())
        torch.testing.assert_close(coordinates.square().sum(0), spectrum[:3])

    def test_draws_of_a_chain_that_failed_are_taken_back(self) -> None:
        needs = Needs(reference_losses=True)
        losses = self.planted(0)
        response, other = Response(needs), Response(needs)
        point = ReferencePoint(0, 0.0, torch.zeros(6), torch.arange(6), 1.0, 1.0, num_chains=4, num_draws=50)
        for one in (response, other):
            one.reset(point)
        for draw in draws(losses.mean(-1), losses):
            response.update(draw)
            if draw.chain != 2:
                other.update(draw)
        response.discard(2)
        left, right = response.column(), other.column()
        assert left is not None
        assert right is not None
        assert torch.equal(left.per_chain, right.per_chain)


class TestTokens:
    def test_rows_are_tokens_and_labels_follow(self) -> None:
        def losses(module: Any, batch: torch.Tensor) -> torch.Tensor:
            return (module.w[0] * batch).square() + module.w[1].square()  # (B, T)

        found = estimate(
            Weights(2),
            [torch.arange(12.0).view(3, 4)],
            losses,
            observables={"chi": Susceptibility(labels=[0, 1, 1], per_token=True)},
            sampler=settings(num_draws=10),
            refinements={"one": Refinement("w", slices={"w": 0}), "both": Refinement("w")},
        )["chi"]
        assert found["matrix"].shape == (12, 2)
        assert found["matrix"][:, 0].argmin() == 11  # the token that the weight is multiplied with most
        assert "1_to_one" in found


class TestBadInput:
    def measured(self, observable: Susceptibility, **refinements: Refinement) -> Measurement:
        return estimate(
            Weights(2),
            TWO_SAMPLES,
            Quadratic(torch.ones(2)),
            observables={"llc": LLC(), "chi": observable},
            sampler=settings(),
            refinements=refinements,
        )

    def test_without_a_part(self) -> None:
        with pytest.raises(ValueError, match=r"hold parts of the network for a Susceptibility .* got none"):
            self.measured(Susceptibility())

    def test_with_other_data_or_losses_alone(self) -> None:
        other = Refinement(loss_fn=behavioral(lambda module, batch: module.w[None], "mse"))
        with pytest.raises(ValueError, match=r"got \['function'\]"):
            self.measured(Susceptibility(), function=other)

    def test_labels_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="one label for each of the 2 samples"):
            self.measured(Susceptibility(labels=[1, 2, 3]), one=Refinement("w"))

    def test_labels_and_parts_whose_means_would_be_logged_under_one_name(self) -> None:
        one_name = Susceptibility(labels=["a", "a_to_w"])
        with pytest.raises(ValueError, match="'a' with 'w_to_w' and 'a_to_w' with 'w' are both 'a_to_w_to_w'"):
            self.measured(one_name, w_to_w=Refinement("w"), w=Refinement("w"))
        found = self.measured(Susceptibility(labels=["a", "a_to_w"]), w_to=Refinement("w"))
        assert {"a_to_w_to", "a_to_w_to_w_to"} <= found["chi"].keys()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"estimator": "three_chain"}, '"one_chain" or "two_chain"'),
            ({"per_token": True, "probes": TWO_SAMPLES}, "`per_token` without `probes`"),
        ],
    )
    def test_arguments(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Susceptibility(**arguments)
