"""What one measurement costs and how it samples: one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from slt_callbacks.basics.plain import shown
from slt_callbacks.sampling.averaged import LeimkuhlerMatthews
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
from slt_callbacks.sampling.underdamped import SGHMC, SGNHT

ENGINES = ("auto", "sequential", "vectorized")
MOST_BURN_IN = 88
"""Steps that ``num_burnin_steps="auto"`` is at most: a chain that has to go further costs more than it tells."""


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the chains. They stay fixed over a run, or the LLC curve has no meaning.

    **nbeta** is how sharply losses count. Larger values look at a smaller neighbourhood and cost more steps.

    **localization** ties the chains to the weights. A chain forgets in about ``2 / (step_size * localization)`` steps,
    and burn-in should be a few of these. If the LLC is far below zero, the weights are not in a valley at this scale:
    early in training that is the truth, later a larger localization looks closer.

    **The step** is best left at "auto", which `LeimkuhlerMatthews`, the default, may change from one measurement to the
    next, and the other dynamics hold as long as it suits (see there). A step that you chose yourself is never changed:
    watch ``slt/health/stability``. With one label a sample it is the noise of minibatches that limits a step, in
    proportion to the batch: steps, batches and their number can be traded for each other, and none is cheaper. With one
    loss a token, small minibatches (``batch_size=4``) tell the most.

    **Is it enough?** ``slt/health/rhat`` above 1.1 means that the chains have not agreed: more burn-in, more draws, or
    a larger localization. In early training, or at a curvature a hundred times the localization, chains of this length
    have not converged, whatever the sampler: R-hat says so. `calibrate` sweeps step size, `nbeta` and `localization` on
    one checkpoint.

    **What it costs.** With C chains of B burn-in steps and T draws a first measurement takes C (B + T) gradient steps,
    and a later one about C (B / 5 + T): chains keep their displacement from the weights, and only have to follow what
    has changed since. Burn-in goes on while a drift test says that they still move. With the defaults that is at most
    952 steps, and about 670 afterwards, whatever the model. What limits an "auto" step is looked for at the weights and
    along a chain that is sent ahead the first time, and at one chain in turn afterwards, in a few passes over four
    minibatches.

    Args:
        dynamics: How a chain moves: `LeimkuhlerMatthews`, `SGLD`, `RMSPropSGLD`, `SGHMC`, `SGNHT` or your own
            `Dynamics`.
        nbeta: Inverse temperature times samples; None for n / ln n, n the size of the reference set.
        localization: Strength gamma of the tie to the current weights.
        num_chains: Independent chains C; their spread gives the standard error.
        num_draws: Draws a chain T.
        num_burnin_steps: Steps before the first draw. With persistent chains, those of the first measurement and the
            most that a later one may take. "auto": one and a half times 2 / (step_size localization), in which the
            flattest direction forgets where it began, between 8 and 88; ``slt/health/num_burnin_steps`` tells how
            many it were.
        num_steps_bw_draws: SGLD steps from one draw to the next.
        batch_size: Reference samples in a gradient step, without replacement and reshuffled (a remainder waits for the
            next shuffle); None for all of them. "auto": 8 where the loss gives one a token, else 32; a loss that
            compares samples gets as many as a training batch has.
        block_size: Most samples in one forward pass; larger batches are accumulated. None for no limit.
        engine: "sequential": one chain after the other, any module, least memory; "vectorized": all at once through
            `torch.func`, for small steps and modules that `torch.vmap` can batch (others run one by one, and a line of
            information says why); "auto": at the first measurement a few steps of each decide, for the whole run, where
            chains of 100 steps or more make that worth it. The draws agree to float tolerance: for the same bits on
            every machine, name an engine.
        compile: Whether `torch.compile` makes one program of the vectorized engine's forward and backward pass, once
            a run. It takes a C++ compiler or a GPU and up to a minute of the first measurement, and pays for itself
            over many of them; what cannot be compiled runs as it is, and a line of information says so.
        acceptance: Whether ``slt/health/acceptance`` is found: the mean over chains of the probability with which a
            Metropolis test on the whole reference set would accept one step of SGLD, with the step size in use, from
            where a chain stands at its first draw. For SGLD 0.9 to 0.95 is usually sound, but it falls with the number
            of stiff directions: at a step bias of 2 % it is 0.98 with 100 of them and 0.84 with 10,000. The steps of
            `LeimkuhlerMatthews` are longer than SGLD's may be, and right where it is low. It takes two gradients of the
            whole set a chain. Else it is NaN.

    Raises:
        TypeError: If `dynamics` has no `init` and `step`.
        ValueError: If a number is outside its range.

    Source: the settings of algorithm 1 of Lau et al. (arXiv 2308.12108); what each does to the estimate: Hitchcock &
    Hoogland (arXiv 2507.21449).

    Example:
        >>> SamplerConfig(num_chains=2, num_draws=10, num_burnin_steps=5).num_steps
        15
    """

    # by name: LightningCLI finds no class in a protocol
    dynamics: LeimkuhlerMatthews | SGLD | RMSPropSGLD | SGHMC | SGNHT | Dynamics = field(
        default_factory=LeimkuhlerMatthews
    )
    nbeta: float | None = None
    localization: float = 100.0
    num_chains: int = 4
    num_draws: int = 150
    num_burnin_steps: int | Literal["auto"] = "auto"
    num_steps_bw_draws: int = 1
    batch_size: int | Literal["auto"] | None = "auto"
    block_size: int | None = None
    engine: Literal["auto", "sequential", "vectorized"] = "auto"
    compile: bool = False
    acceptance: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics) or isinstance(self.dynamics, type):
            raise TypeError(
                f"Expected `dynamics` to be an object with `step_size`, `init` and `step`, such as SGLD(), but got "
                f"{shown(self.dynamics)}."
            )
        for name in ("num_chains", "num_draws", "num_steps_bw_draws"):
            _check_count(name, getattr(self, name), 1)
        if self.num_burnin_steps != "auto":
            _check_count("num_burnin_steps", self.num_burnin_steps, 0, ' or "auto"')
        for name in ("batch_size", "block_size"):
            if getattr(self, name) is not None and (name, getattr(self, name)) != ("batch_size", "auto"):
                _check_count(name, getattr(self, name), 1, ' or "auto"' if name == "batch_size" else "")
        for name in ("nbeta", "localization"):
            _check_weight(name, getattr(self, name))
        if self.engine not in ENGINES:
            raise ValueError(f"Expected `engine` to be one of {ENGINES}, but got {self.engine!r}.")
        for name in ("compile", "acceptance"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"Expected `{name}` to be True or False, but got {getattr(self, name)!r}.")
        if self.compile and self.engine == "sequential":
            raise ValueError(
                'Expected `engine` to be "vectorized" or "auto" with `compile=True`, but got "sequential".'
            )

    @property
    def num_steps(self) -> int:
        """Gradient steps of one cold chain: burn-in, and from the first draw up to and with the last; at most."""
        return self.most_burnin_steps + self.num_draw_steps

    @property
    def most_burnin_steps(self) -> int:
        """Steps before the first draw; what they may be where they are "auto"."""
        return MOST_BURN_IN if self.num_burnin_steps == "auto" else self.num_burnin_steps

    @property
    def num_draw_steps(self) -> int:
        """Gradient steps from the first draw up to and with the last."""
        return (self.num_draws - 1) * self.num_steps_bw_draws + 1


def _check_count(name: str, value: object, least: int, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive integer" if least else "an integer >= 0"
        raise ValueError(f"Expected `{name}` to be {wanted}{otherwise}, but got {value!r}.")


def _check_weight(name: str, value: object) -> None:
    if value is None and name == "nbeta":
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"Expected `{name}` to be a finite number >= 0, but got {value!r}.")
