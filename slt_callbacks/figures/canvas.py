"""An empty figure of matplotlib, without pyplot, and names that fit into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LETTERS = 30


def empty_figure(drawn_by: str, width: float, height: float) -> Figure:
    """A figure that writes PNG through Agg: pyplot, with the user's windows and backend, is left alone.

    Args:
        drawn_by: The function that draws, for the message.
        width: In inches.
        height: In inches.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> empty_figure("my_figure", 4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{drawn_by} draws with matplotlib, which is not installed: pip install 'slt-callbacks[examples]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def short(name: str) -> str:
    """A name that leaves room for the picture: of a long one the end, which tells one module from another.

    Example:
        >>> short("head0.1"), short("transformer.blocks.11.attention.heads.3")
        ('head0.1', '…r.blocks.11.attention.heads.3')
    """
    return name if len(name) <= _MOST_LETTERS else f"…{name[1 - _MOST_LETTERS :]}"
