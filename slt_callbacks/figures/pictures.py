"""What observables show, as images: maps without names pixel by pixel, what has names with matplotlib."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from slt_callbacks.figures.canvas import empty_figure, short
from slt_callbacks.figures.curves import curve_figure
from slt_callbacks.figures.images import correlation_map, diverging
from slt_callbacks.figures.tracks import track_figure
from slt_callbacks.observables.media import Curve, Picture, Scatter, Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

# Okabe and Ito, the yellow left out, which is lost on white; a class has one of them and one of the markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "^", "s")
_MOST_CLASSES = len(_COLOURS) * len(_MARKERS)  # with a look of their own; the legend of more would leave the page
_MOST_WRITTEN = 12  # class names in the plot itself: more would cover one another
_LETTERS = 45  # of their size, that the plot has room for
_BLUE, _RED = "#053061", "#67001F"  # the ends of the scale
_MOST_INCHES, _MOST_ACROSS = 9.0, 6.0
_DPI = 110


def image_of(shown: Picture | Scatter) -> Image.Image | None:
    """The image of what an observable shows.

    Without matplotlib, which is an extra, a map with names loses these, and there is no image of points.

    Args:
        shown: A `Picture` or a `Scatter`.

    Example:
        >>> import torch
        >>> image_of(Picture(torch.eye(2), "two samples")).mode
        'P'
    """
    if isinstance(shown, Picture) and not shown.is_named:
        return correlation_map(shown.matrix, limit=shown.limit)
    try:
        return _rendered(_figure_of(shown))
    except ModuleNotFoundError as error:
        _log.info("A picture without names, or none: %s", error)
        return correlation_map(shown.matrix, limit=shown.limit) if isinstance(shown, Picture) else None


def scale_of(shown: Picture | Scatter) -> str:
    """What the colours of a map mean, in words; nothing for points.

    Example:
        >>> import torch
        >>> scale_of(Picture(torch.eye(2), "two samples"))
        'blue -1, white 0, red 1'
        >>> scale_of(Picture(torch.eye(2), "two heads", limit=0.5, ends=("helps", "harms")))
        'blue -0.5 (helps), white 0, red 0.5 (harms)'
    """
    if not isinstance(shown, Picture):
        return ""
    low, high = ("", "") if shown.ends is None else (f" ({end})" for end in shown.ends)
    return f"blue {-shown.limit:g}{low}, white 0, red {shown.limit:g}{high}"


def map_figure(picture: Picture) -> Figure:
    """A map with the names of its rows and columns, and its scale beside it.

    Args:
        picture: NaN is grey.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> figure = map_figure(Picture(torch.eye(2), "two heads", row_names=("cat", "dog")))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['cat', 'dog']
    """
    rows, columns = picture.matrix.shape
    width = max(_extent(columns, 4.0, len(picture.column_names)), _across(picture.column_names))
    height = _extent(rows, 3.2, len(picture.row_names))
    figure = empty_figure("map_figure", width + 2.0, height + 1.4)
    axes = figure.subplots()
    colours = axes.imshow(
        picture.matrix.double().numpy(),
        cmap=diverging(),
        vmin=-picture.limit,
        vmax=picture.limit,
        aspect="auto",
        interpolation="nearest",
    )
    _name(axes.yaxis, picture.row_names, 72 * height)
    _name(axes.xaxis, picture.column_names, 72 * width)
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, aspect=height / 0.2)
    if picture.ends is not None:
        bar.ax.set_xlabel(fill(picture.ends[0], 12), size=9, color=_BLUE)
        bar.ax.set_title(fill(picture.ends[1], 12), size=9, color=_RED)
    figure.suptitle(fill(picture.caption, int(13 * (width + 2.0))), x=0.01, ha="left", size=10)
    return figure


def scatter_figure(scatter: Scatter) -> Figure:
    """Points in a plane, a colour and a marker a class, the name of each written at its middle.

    Args:
        scatter: Of more classes than there are looks, the rarer ones are grey.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> figure = scatter_figure(Scatter(torch.zeros(3, 2), "three samples", ("first", "second")))
        >>> figure.axes[0].get_xlabel(), len(figure.axes[0].collections[0].get_offsets())
        ('first', 3)
    """
    figure = empty_figure("scatter_figure", 6.6, 5.2)
    axes = figure.subplots()
    points = scatter.points.double().numpy()
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    if scatter.classes is None:
        axes.scatter(points[:, 0], points[:, 1], s=16, c=_COLOURS[0], alpha=0.7, linewidths=0)
    else:
        _draw_classes(axes, points, scatter.classes.numpy(), scatter)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, handletextpad=0.2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(scatter.axis_labels[0])
    axes.set_ylabel(scatter.axis_labels[1])
    figure.suptitle(fill(scatter.caption, 80), x=0.01, ha="left", size=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure_of(shown: Picture | Scatter) -> Figure:
    if isinstance(shown, Picture):
        return map_figure(shown)
    if isinstance(shown, Curve):
        return curve_figure(shown)
    return track_figure(shown) if isinstance(shown, Track) else scatter_figure(shown)


def _draw_classes(axes: Axes, points: Any, classes: Any, scatter: Scatter) -> None:
    numbers, counts = np.unique(classes, return_counts=True)
    shown = sorted(numbers[np.argsort(-counts, kind="stable")][:_MOST_CLASSES].tolist())
    rest = ~np.isin(classes, shown)
    if rest.any():
        label = f"{len(numbers) - len(shown)} others"
        axes.scatter(points[rest, 0], points[rest, 1], s=10, c="0.75", linewidths=0, label=label)
    middles: dict[str, tuple[float, float, str]] = {}
    for place, number in enumerate(shown):
        own = points[classes == number]
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place // len(_COLOURS)]
        name = short(scatter.class_names[number]) if scatter.class_names else str(number)
        look: dict[str, Any] = {"c": colour, "marker": marker, "alpha": 0.6, "linewidths": 0}
        axes.scatter(own[:, 0], own[:, 1], s=18, label=name, **look)
        middles[name] = (*np.median(own, axis=0), colour)
    if len(shown) <= _MOST_WRITTEN and _apart(middles, points):
        for name, (x, y, colour) in middles.items():
            text = axes.text(x, y, name, color=colour, weight="bold", ha="center", va="center")
            text.set(path_effects=_outlined(), zorder=4)


def _apart(middles: Mapping[str, tuple[float, float, str]], points: Any) -> bool:
    """Whether names written there do not lie on one another; where they would, the legend says it."""
    size = float(np.ptp(points, axis=0).max()) / _LETTERS
    return all(
        abs(one[1] - other[1]) > 2 * size or abs(one[0] - other[0]) > (len(first) + len(second)) / 2 * size
        for (first, one), (second, other) in combinations(middles.items(), 2)
    )


def _outlined() -> list[Any]:
    """White around letters, which may lie on points of any colour."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _name(axis: Any, names: Sequence[str], room: float) -> None:
    """Names at the ticks, as large as the room allows, in points; across where they would run into one another."""
    texts = [short(name) for name in names]
    axis.set_ticks(range(len(texts)), texts)
    if not texts:
        return
    size = min(9.0, 0.8 * room / len(names))
    axis.set_tick_params(length=0, labelsize=size)
    if axis.axis_name == "x" and 0.65 * size * max(map(len, texts)) > room / len(names):
        axis.set_tick_params(rotation=90)


def _extent(count: int, least: float, names: int) -> float:
    """Of one side of a map, in inches: rows without names need no more room than the eye."""
    return min(max(least, 0.3 * count), _MOST_INCHES) if names else least


def _across(names: Sequence[str]) -> float:
    """In inches: what names need to stand side by side, which is easier to read; 0 where that would be too wide."""
    needed = len(names) * (0.65 * 9.0 * max((len(short(name)) for name in names), default=0) + 4) / 72
    return needed if needed <= _MOST_ACROSS else 0.0


def _rendered(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return Image.open(buffer).convert("RGB")
