"""Logged numbers in words."""

from __future__ import annotations

import re

_ALONE = ("behavior",)  # observables whose numbers need not be told whose they are: their users have named them

# What these say of them, whatever their observable is called: no other kind logs such names.
_NAMES = {
    "reference_loss": "loss",
    "free_energy": "free energy",
    "variance_llc": "LLC by the variance of the loss",
    "critical_bits": "critical bits",
    "critical_rank": "critical rank",
}
_PATTERNS = (
    (re.compile(r"explained_(\d+)"), "{0} component's share of the {1}"),
    (re.compile(r"null_(\d+)"), "{0} component's share of a random walk"),
    (re.compile(r"pc(\d+)_share"), "{0} component's share of the {1}"),
)
# Words that others may use as well: what they say under the keys that the documentation gives them.
_UNDER = {
    "llc/stderr": "standard error of the LLC",
    "llc/std": "spread of the LLC over chains",
    "llc/num_train_samples": "training samples",
    "kernel/trace": "summed variance of the losses",
    "kernel/effective_rank": "effective rank of the kernel",
    "kernel/alignment": "kernel's alignment with the last one",
    "kernel/class_contrast": "kernel's contrast of classes",
    "kernel/label_alignment": "kernel's alignment with the classes",
    "influence/shift": "shift of the influence",
    "influence/sign_flips": "pairs whose influence changed sides",
    "influence/peaks": "pairs whose influence turned",
    "influence/group_flips": "groups whose influence changed sides",
    "influence/group_peaks": "groups whose influence turned",
    "susceptibility/uniform_share": "share of the susceptibility that all parts have in common",
    "susceptibility/significant": "share of susceptibilities beyond noise",
    "trajectory/speed": "speed of the trajectory",
    "health/failed_chains": "chains dropped",
    "health/num_valid_draws": "draws",
    "health/rhat": "R-hat",
    "health/ess": "effective sample size",
    "health/drift": "drift of the chains",
    "health/step_size": "step size of the chains",
    "health/step_bias": "bias by the step size",
    "health/step_gap": "excess of the LLC with steps twice as long",
    "health/stability": "share of the longest stable step",
    "health/noise_bias": "bias by minibatches",
    "health/acceptance": "acceptance of the chains",
    "health/num_burnin_steps": "steps of burn-in",
    "health/num_parameters": "weights that move",
    "health/nbeta": "nbeta",
    "health/localization": "localization",
    "cost/seconds": "seconds a measurement",
    "cost/sgld_steps": "gradient steps of the chains",
    "cost/overhead": "share of the training time",
    "cost/skipped": "measurements left out",
    "cost/failed": "measurements failed",
}


def in_words(key: str) -> str:
    """What a person calls a number.

    Args:
        key: ``observable/name`` or ``observable/refinement/name``, as in `Measurement.scalars`.

    Example:
        >>> [in_words(key) for key in ("llc/mean", "llc/head0.1/mean", "llc/reference_loss", "behavior/accuracy")]
        ['LLC', 'head0.1', 'loss', 'accuracy']
        >>> [in_words(key) for key in ("trajectory/distance/bigram", "kernel/effective_rank", "influence/group/a_to_b")]
        ['distance to bigram', 'effective rank of the kernel', 'influence of a on b']
        >>> in_words("trajectory/explained_3"), in_words("susceptibility/code_to_head0.1")
        ("3rd component's share of the trajectory", 'susceptibility of head0.1 to code')
    """
    observable, *middle, name = key.split("/")
    whose = "/".join(middle)
    if middle[:1] == ["distance"]:
        return f"distance to {name}"
    if name == "mean":
        of = "" if observable == "llc" else observable
        return f"{whose} ({of})" if whose and of else whose or of or "LLC"
    if observable in _ALONE:
        return name.replace("_", " ")
    if not middle or middle == ["group"]:
        related = _related(observable, name, of_group=bool(middle))
        if related:
            return related
    words = _told(observable, name)
    return f"{words} of {whose}" if whose else words


def ordinal(number: int) -> str:
    """1st, 2nd, and so on.

    Example:
        >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 22)]
        ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _related(observable: str, name: str, of_group: bool) -> str:
    """A number of two things, such as data and a part; empty for any other."""
    first, between, second = name.partition("_to_")
    if not between:
        return ""
    if of_group:
        return f"{observable} of {first} on {second}"
    return f"susceptibility of {second} to {first}" if observable == "susceptibility" else ""


def _told(observable: str, name: str) -> str:
    found = _NAMES.get(name) or _UNDER.get(f"{observable}/{name}")
    if found:
        return found
    for pattern, words in _PATTERNS:
        match = pattern.fullmatch(name)
        if match:
            return words.format(ordinal(int(match[1])), observable)
    return f"{observable} {name.replace('_', ' ')}"
