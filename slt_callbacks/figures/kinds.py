"""What is shown of each kind of observable, in a report and on a dashboard, and how it is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Plot:
    """One chart.

    Attributes:
        title: What it shows.
        numbers: Names of the numbers in it, or patterns such as ``distance/*``.
        rule: A value that they are read against; None for none.
    """

    title: str
    numbers: Sequence[str]
    rule: float | None = None

    def matches(self, names: Collection[str]) -> list[str]:
        """Those of the names that belong into it, in the order of the patterns.

        Example:
            >>> Plot("Distances", ["distance/*"]).matches(["speed", "distance/ridge"])
            ['distance/ridge']
        """
        found = [name for pattern in self.numbers for name in names if fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found))

    def label(self, name: str) -> str:
        """A number's name without what the title says of all of them.

        Example:
            >>> Plot("Distances", ["distance/*"]).label("distance/ridge"), Plot("Speed", ["speed"]).label("speed")
            ('ridge', 'speed')
        """
        (common, star, _) = self.numbers[0].partition("*")
        return name.removeprefix(common) if star and len(self.numbers) == 1 else name


@dataclass(frozen=True)
class Kind:
    """One kind of observable.

    Attributes:
        title: Of its section.
        reads: How it is read, in a sentence or two.
        mark: A number that no other kind logs; nothing for the kind of what is not known.
        plots: What is shown of its numbers.
    """

    title: str
    reads: str
    mark: str
    plots: Sequence[Plot]


KERNEL = Kind(
    "Loss kernel",
    "How the losses of two samples move together over the draws: red squares are samples that the model treats alike.",
    "effective_rank",
    (
        Plot("Alignment with the last kernel", ["alignment"]),
        Plot("Correlation within classes minus between", ["class_contrast"]),
        Plot("Effective rank", ["effective_rank"]),
        Plot("Summed variance of the losses", ["trace"]),
    ),
)
INFLUENCE = Kind(
    "Influence",
    "What a training sample (row) does for a query (column): positive helps, negative harms.",
    "sign_flips",
    (
        Plot("How much influence has moved", ["shift"]),
        Plot("Pairs that changed sides", ["sign_flips"]),
        Plot("Mean influence of groups", ["group/*"]),
    ),
)
SUSCEPTIBILITY = Kind(
    "Susceptibility",
    "Which data each part of the network works for: below 0 (blue) it does, above (red) it works against them.",
    "uniform_share",
    (
        Plot("Share of the first component", ["pc1_share"]),
        Plot("Share that all parts have in common", ["uniform_share"]),
        Plot("Share of entries beyond noise: 0.05 is none", ["significant"]),
    ),
)
TRAJECTORY = Kind(
    "Trajectory",
    "Where training moves in the space of outputs. A random walk has large first components too: compare the shares "
    "with those of the null.",
    "explained_1",
    (
        Plot("Share of the components, beside a random walk", ["explained_1", "null_1", "explained_2", "null_2"]),
        Plot("Speed", ["speed"]),
        Plot("Distance to the references", ["distance/*"]),
    ),
)
COMPRESSIBILITY = Kind(
    "Compressibility",
    "How far the weights can be coarsened before the loss rises by the tolerance: a simpler network needs fewer bits "
    "and a smaller rank.",
    "critical_*",
    (Plot("Critical bits a weight", ["critical_bits"]), Plot("Critical share of the rank", ["critical_rank"])),
)
KINDS = (KERNEL, INFLUENCE, SUSCEPTIBILITY, TRAJECTORY, COMPRESSIBILITY)

FREE_ENERGY = Plot("Free energy in nats: n times the loss, and the LLC times ln n", ["free_energy"])
HEALTH = (
    Plot("R-hat: the chains agree below 1.05", ["rhat"], rule=1.05),
    Plot("Effective sample size", ["ess"]),
    Plot("Drift of the chains", ["drift"]),
    Plot("Chains dropped", ["failed_chains"]),
    Plot("Share of the longest stable step: explodes at 1", ["stability"], rule=1.0),
    Plot("Noise of minibatches, relative to the LLC", ["noise_bias"]),
    Plot("Discretization bias: sound below 0.05", ["step_bias"], rule=0.05),
)
COST = (
    Plot("Seconds a measurement", ["seconds"]),
    Plot("Share of the training time", ["overhead"]),
    Plot("Measurements left out", ["skipped"]),
)


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind of an observable with these numbers; None for one of the user's own.

    Example:
        >>> kind_of(["trace", "effective_rank"]).title, kind_of(["accuracy"])
        ('Loss kernel', None)
    """
    return next((kind for kind in KINDS if any(fnmatchcase(name, kind.mark) for name in names)), None)
