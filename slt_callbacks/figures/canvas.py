"""An empty figure of matplotlib, without pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
