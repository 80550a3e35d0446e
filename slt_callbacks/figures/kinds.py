"""What is shown of each kind of observable, in a report and on a dashboard, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from slt_callbacks.figures.steps import RHAT
from slt_callbacks.measuring.naming import ordinal

_NUMBERED = (
    (re.compile(r"explained_(\d+)"), "{0} component"),
    (re.compile(r"null_(\d+)"), "{0} of a random walk"),
    (re.compile(r"pc(\d+)_share"), "{0} component"),
)
_TURNS = {
    "sign_flips": "pairs: sides",
    "peaks": "pairs: direction",
    "group_flips": "groups: sides",
    "group_peaks": "groups: direction",
}
_WALK = {"null_1": "of a random walk", "null_2": "of a random walk"}


@dataclass(frozen=True)
class Plot:
    """One chart.

    Attributes:
        title: What it shows.
        numbers: Names of the numbers in it, or patterns such as ``distance/*``.
        rule: A value that they are read against; None for none.
        words: What the legend calls a number, by its name.
        apart: Whether numbers of two things, ``a_to_b``, have a chart for each a. What is not measured every time, as
            parts of a network that are taken in turn, is joined over the gaps.
    """

    title: str
    numbers: Sequence[str]
    rule: float | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False

    def matches(self, names: Collection[str]) -> list[str]:
        """Those of the names that belong into it, in the order of the patterns.

        Example:
            >>> Plot("Distances", ["distance/*"]).matches(["speed", "distance/ridge"])
            ['distance/ridge']
        """
        found = [name for pattern in self.numbers for name in names if fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found))

    def label(self, name: str) -> str:
        """A number's name without what the title says of all of them, in words where it is ours.

        Example:
            >>> Plot("Distances", ["distance/*"]).label("distance/ridge"), Plot("Speed", ["speed"]).label("speed")
            ('ridge', 'speed')
            >>> Plot("Shares", ["explained_*"]).label("explained_2"), Plot("Groups", ["group/*"]).label("group/a_to_b")
            ('2nd component', 'a on b')
        """
        if name in self.words:
            return self.words[name]
        for pattern, words in _NUMBERED:
            match = pattern.fullmatch(name)
            if match:
                return words.format(ordinal(int(match[1])))
        (common, star, _) = self.numbers[0].partition("*")
        short = name.removeprefix(common) if star and len(self.numbers) == 1 else name
        return short.replace("_to_", " on ", 1)


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


LLC = Kind(
    "Local learning coefficient",
    "How complex the model is where it stands: half the number of its weights if all of them matter to the loss, and "
    "less where they do not.",
    "variance_llc",
    (
        Plot("Local learning coefficient", ["mean"]),
        Plot("Loss on the reference set", ["reference_loss"]),
        Plot(
            "Uncertainty of the LLC",
            ["stderr", "std"],
            words={"stderr": "its standard error", "std": "spread over chains"},
        ),
        Plot("LLC by the variance of the loss", ["variance_llc"]),
    ),
)
KERNEL = Kind(
    "Loss kernel",
    "How the losses of two samples move together over the draws: red squares are samples that the model treats alike.",
    "effective_rank",
    (
        Plot(
            "Alignment of the kernel: 1 is the same",
            ["alignment", "label_alignment"],
            words={"alignment": "with the last kernel", "label_alignment": "with the classes"},
        ),
        Plot("Correlation within classes minus between", ["class_contrast"]),
        Plot("Effective rank: directions that the losses move in", ["effective_rank"]),
        Plot("Summed variance of the losses", ["trace"]),
    ),
)
INFLUENCE = Kind(
    "Influence",
    "What a training sample (row) does for a query (column): above 0 (red) it helps, below (blue) it harms.",
    "sign_flips",
    (
        Plot("How far influence has moved since the last measurement", ["shift"]),
        Plot("How many have certainly changed", [*_TURNS], words=_TURNS),
        Plot("Mean influence of groups: above 0 the first helps the second", ["group/*"]),
    ),
)
SUSCEPTIBILITY = Kind(
    "Susceptibility",
    "Which data each part of the network works for: below 0 (blue) it does, above (red) it works against them.",
    "uniform_share",
    (
        Plot("Mean susceptibility to", ["*_to_*"], apart=True),
        Plot("Shares of the components", ["pc*_share"]),
        Plot("Share that all parts have in common", ["uniform_share"]),
        Plot("Share of entries beyond noise: 0.05 is none", ["significant"]),
    ),
)
TRAJECTORY = Kind(
    "Trajectory",
    "Where training moves in the space of outputs. A random walk has large first components too: only what is above "
    "its share says anything.",
    "explained_1",
    (
        Plot("Distance of the outputs to the references", ["distance/*"]),
        Plot("Share of the 1st component in the way so far", ["explained_1", "null_1"], words=_WALK),
        Plot("Share of the 2nd component", ["explained_2", "null_2"], words=_WALK),
        Plot("Shares of later components", ["explained_[3-9]*", "null_[3-9]*"]),
        Plot("Speed: change of the outputs in a training step", ["speed"]),
    ),
)
COMPRESSIBILITY = Kind(
    "Compressibility",
    "How far the weights can be coarsened before the loss rises by the tolerance: a simpler network needs fewer bits "
    "and a smaller rank.",
    "critical_*",
    (
        Plot("Bits a weight that are needed (critical bits)", ["critical_bits"]),
        Plot("Share of the rank that is needed (critical rank)", ["critical_rank"]),
    ),
)
KINDS = (LLC, KERNEL, INFLUENCE, SUSCEPTIBILITY, TRAJECTORY, COMPRESSIBILITY)

FREE_ENERGY = Plot("Free energy in nats: n times the loss, and the LLC times ln n", ["free_energy"])
HEALTH = (
    Plot(f"R-hat: 1 is best, above {RHAT:g} the chains disagree", ["rhat"], rule=RHAT),
    Plot(
        "Draws, and how many independent ones they are worth",
        ["ess", "num_valid_draws"],
        words={"ess": "worth", "num_valid_draws": "draws"},
    ),
    Plot("Drift of the chains in standard errors: sound within 2", ["drift"]),
    Plot("Chains dropped", ["failed_chains"]),
    Plot("Share of the longest stable step: explodes at 1", ["stability"], rule=1.0),
    Plot("Bias of the LLC by minibatches, as a share", ["noise_bias"]),
    Plot("Bias of the LLC by the step size: sound below 0.05", ["step_bias"], rule=0.05),
)
COST = (
    Plot("Seconds a measurement", ["seconds"]),
    Plot("Gradient steps a measurement", ["sgld_steps"]),
    Plot("Time for measuring over time for training", ["overhead"]),
    Plot("Measurements left out, or failed", ["skipped", "failed"], words={"skipped": "left out", "failed": "failed"}),
)
IN_FORCE = (
    Plot("Step size of the chains", ["step_size"]),
    Plot("Excess of the LLC with steps twice as long", ["step_gap"]),
    Plot("Acceptance of the chains", ["acceptance"]),
    Plot("Steps of burn-in", ["num_burnin_steps"]),
    Plot("Weights that move", ["num_parameters"]),
    Plot("nbeta", ["nbeta"]),
    Plot("localization", ["localization"]),
)
"""What the sampler was set to, of ``health``: a dashboard shows it, and a report in its table."""


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind of an observable with these numbers; None for one of the user's own.

    Example:
        >>> kind_of(["trace", "effective_rank"]).title, kind_of(["accuracy"])
        ('Loss kernel', None)
    """
    return next((kind for kind in KINDS if any(fnmatchcase(name, kind.mark) for name in names)), None)
