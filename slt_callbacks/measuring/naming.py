"""Logged numbers in words."""

from __future__ import annotations

_ALONE = ("behavior",)  # observables whose numbers need not be told whose they are: their users have named them


def in_words(key: str) -> str:
    """What a person calls a number.

    Args:
        key: ``observable/name`` or ``observable/refinement/name``, as in `Measurement.scalars`.

    Example:
        >>> [in_words(key) for key in ("llc/mean", "llc/head0.1/mean", "llc/reference_loss", "behavior/accuracy")]
        ['LLC', 'head0.1', 'loss', 'accuracy']
        >>> [in_words(key) for key in ("trajectory/distance/bigram", "kernel/effective_rank", "influence/group/a_to_b")]
        ['distance to bigram', 'kernel effective rank', 'influence of a on b']
    """
    observable, *middle, name = key.split("/")
    whose, words = "/".join(middle), name.replace("_", " ")
    if middle[:1] == ["distance"]:
        return f"distance to {name}"
    if middle == ["group"] and "_to_" in name:
        first, _, second = name.partition("_to_")
        return f"{observable} of {first} on {second}"
    if name == "mean":
        of = "" if observable == "llc" else observable
        return f"{whose} ({of})" if whose and of else whose or of or "LLC"
    if observable in _ALONE or name.startswith("critical_"):
        return words
    words = {"reference_loss": "loss", "free_energy": "free energy"}.get(name) or f"{observable} {words}"
    return f"{words} of {whose}" if whose else words
