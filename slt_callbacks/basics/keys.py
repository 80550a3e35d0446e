"""The grammar of logged keys: ``slt/<observable>/<number>``, and the names that the package keeps for itself."""

from __future__ import annotations

PREFIX = "slt"


def key_of(*parts: str) -> str:
    """The logged key of what has these parts.

    Example:
        >>> key_of("llc", "mean"), key_of("llc/mean")
        ('slt/llc/mean', 'slt/llc/mean')
    """
    return "/".join((PREFIX, *parts))


STEP = key_of("step")
STAGE, JUMP, PHI = key_of("stage"), key_of("jump"), key_of("detection", "phi")
FAILED_CHAINS, STEP_SIZE = key_of("health", "failed_chains"), key_of("health", "step_size")
# Tables and pictures of a run.
STAGES, EVENTS, CHANGES = key_of("stages"), key_of("events"), key_of("changes")
FIGURE, REFINEMENTS, FREE_ENERGY = key_of("figure"), key_of("refinements"), key_of("free_energy")
# In a W&B run's summary: what it has sent.
ALERTS = key_of("alerts")

RESERVED_NAMES = tuple(
    dict.fromkeys(
        ["health", "cost"]
        + [key.split("/")[1] for key in (STEP, STAGE, JUMP, PHI, STAGES, EVENTS, FIGURE, REFINEMENTS)]
        + [key.split("/")[1] for key in (CHANGES, FREE_ENERGY)]
    )
)
"""What stands after ``slt/`` and is no observable's."""


def parts_of(key: str) -> tuple[str, str]:
    """Observable and name of a number, of ``slt/observable/name``; the name may have parts of its own.

    Example:
        >>> parts_of("slt/influence/group/a_to_b")
        ('influence', 'group/a_to_b')
    """
    observable, _, name = key.removeprefix(f"{PREFIX}/").partition("/")
    return observable, name


def is_logged(key: object) -> bool:
    """Whether it has the form of a number's key.

    Example:
        >>> is_logged("slt/llc/mean"), is_logged("llc/mean"), is_logged("slt/llc")
        (True, False, False)
    """
    return isinstance(key, str) and key.startswith(f"{PREFIX}/") and bool(parts_of(key)[1])


def is_mean(key: str) -> bool:
    """Whether a logged key is an LLC: of our observables it alone has a mean.

    Example:
        >>> is_mean("slt/llc/mean"), is_mean("slt/kernel/trace")
        (True, False)
    """
    return parts_of(key)[1] == "mean"


def as_part(text: str) -> str:
    """A text as one part of a key, which a slash would divide.

    Example:
        >>> as_part("cats/dogs")
        'cats-dogs'
    """
    return text.replace("/", "-")
