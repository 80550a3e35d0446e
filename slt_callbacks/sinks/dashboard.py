"""A W&B workspace that shows what is logged, with ``slt/step`` on the x axes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, overload

from slt_callbacks.basics import keys as logged
from slt_callbacks.basics.keys import key_of

_WIDTH, _HEIGHT = 8, 6  # of a panel on W&B's grid of 24 columns: three in a row
_HEALTH = (
    ("R-hat: the chains agree below 1.05", "rhat"),
    ("Effective sample size", "ess"),
    ("Drift of the chains", "drift"),
    ("Chains dropped", "failed_chains"),
    ("Discretization bias: sound below 0.05", "step_bias"),
)
_COST = (
    ("Seconds a measurement", "seconds"),
    ("Share of the training time", "overhead"),
    ("Measurements left out", "skipped"),
)


@overload
def dashboard(
    entity: str,
    project: str,
    *,
    name: str = ...,
    llc: Sequence[str] = ...,
    kernel: Sequence[str] = ...,
    influence: Sequence[str] = ...,
    refinements: Sequence[str] = ...,
    susceptibility: Sequence[str] = ...,
    trajectory: Sequence[str] = ...,
    save: Literal[True] = ...,
) -> str: ...


@overload
def dashboard(
    entity: str,
    project: str,
    *,
    name: str = ...,
    llc: Sequence[str] = ...,
    kernel: Sequence[str] = ...,
    influence: Sequence[str] = ...,
    refinements: Sequence[str] = ...,
    susceptibility: Sequence[str] = ...,
    trajectory: Sequence[str] = ...,
    save: Literal[False],
) -> Any: ...


def dashboard(
    entity: str,
    project: str,
    *,
    name: str = "Singular learning theory",
    llc: Sequence[str] = ("llc",),
    kernel: Sequence[str] = ("kernel",),
    influence: Sequence[str] = ("influence",),
    refinements: Sequence[str] = (),
    susceptibility: Sequence[str] = (),
    trajectory: Sequence[str] = (),
    save: bool = True,
) -> Any:
    """Make a W&B workspace for a project that `SLTMonitor` logs to: LLC, stages, kernel, influence, and health.

    Args:
        entity: The user or team that owns the project.
        project: Its name.
        name: Of the workspace, without emoji; saving always makes a new one.
        llc: Keys of the `LLC` observables; they share their plots.
        kernel: Keys of the `LossKernel` observables; none, no section.
        influence: Keys of the `Influence` observables; none, no section.
        refinements: Names of the `Refinement`s; none, no section.
        susceptibility: Keys of the `Susceptibility` observables; none, no section.
        trajectory: Keys of the `TrajectoryPCA` observables; none, no section.
        save: Whether to save it to W&B; False needs no network.

    Returns:
        The URL of the saved workspace; without `save` the ``wandb_workspaces.workspaces.Workspace`` itself, to change.

    Raises:
        ImportError: If wandb-workspaces is not installed: ``pip install 'slt-callbacks[workspace]'``.
        TypeError: If keys are given as one string.
        ValueError: If `entity` or `project` is empty.

    Example:
        >>> workspace = dashboard("my-team", "my-project", save=False)
        >>> [section.name for section in workspace.sections]
        ['LLC', 'Stages', 'Loss kernel', 'Influence', 'Health and cost']
    """
    _check_names(entity=entity, project=project)
    _check_lists(llc=llc, kernel=kernel, influence=influence, refinements=refinements)
    _check_lists(susceptibility=susceptibility, trajectory=trajectory)
    workspaces, panels = _workspaces()
    build = _Panels(panels)
    content = {
        "LLC": build.llc(llc) if llc else [],
        "Refined LLC": build.refinements(llc or ("llc",), refinements) if refinements else [],
        "Stages": build.stages(),
        "Loss kernel": build.kernel(kernel) if kernel else [],
        "Influence": build.influence(influence) if influence else [],
        "Susceptibility": build.susceptibility(susceptibility) if susceptibility else [],
        "Trajectory": build.trajectory(trajectory) if trajectory else [],
        "Health and cost": build.health(),
    }
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(name=title, panels=_arranged(made, panels), is_open=True)
            for title, made in content.items()
            if made
        ],
        settings=workspaces.WorkspaceSettings(x_axis=logged.STEP),
    )
    return workspace.save().url if save else workspace


class _Panels:
    """The panels of every section; `logged.STEP` is the axis of each line plot."""

    def __init__(self, panels: Any) -> None:
        self._panels = panels

    def llc(self, keys: Sequence[str]) -> list[Any]:
        return [
            self._line("Local learning coefficient", _each(keys, "mean")),
            self._line("Loss on the reference set", _each(keys, "reference_loss")),
            self._line("Standard error of the LLC", _each(keys, "stderr")),
            self._line("LLC from the variance of the loss", _each(keys, "variance_llc")),
        ]

    def refinements(self, keys: Sequence[str], names: Sequence[str]) -> list[Any]:
        return [
            self._line("Refined LLC", [key_of(key, name, "mean") for key in keys for name in names]),
            self._image("Refined LLCs over the stages", logged.REFINEMENTS),
            self._line("R-hat of the refinements", [key_of("health", name, "rhat") for name in names]),
        ]

    def stages(self) -> list[Any]:
        return [
            self._image("Loss and LLC with their stages", logged.FIGURE),
            self._line("Developmental stage", [logged.STAGE]),
            self._line("Jumps of the LLC: +1 up, -1 down", [logged.JUMP]),
            self._line("Noise of the curve over standard error", [logged.PHI]),
            self._table(logged.STAGES),
            self._table(logged.CHANGES),
            self._table(logged.EVENTS),
        ]

    def kernel(self, keys: Sequence[str]) -> list[Any]:
        return [
            *(self._image("Loss kernel", key_of(key, "map")) for key in keys),
            self._line("Alignment with the last kernel", _each(keys, "alignment")),
            self._line("Correlation within classes minus between", _each(keys, "class_contrast")),
            self._line("Effective rank", _each(keys, "effective_rank")),
            self._line("Summed variance of the losses", _each(keys, "trace")),
        ]

    def influence(self, keys: Sequence[str]) -> list[Any]:
        groups = "|".join(key_of(key, "group/.*") for key in keys)
        return [
            *(self._image("Influence", key_of(key, "map")) for key in keys),
            self._line("How much influence has moved", _each(keys, "shift")),
            self._line("Pairs that changed sides", _each(keys, "sign_flips")),
            self._panels.LinePlot(title="Mean influence of groups", x=logged.STEP, metric_regex=groups),
            *(self._table(key_of(key, "events")) for key in keys),
        ]

    def susceptibility(self, keys: Sequence[str]) -> list[Any]:
        return [
            *(self._image("Which data each part works for", key_of(key, "map")) for key in keys),
            *(self._image("Samples by what works for them", key_of(key, "components")) for key in keys),
            self._line("Share of the first component", _each(keys, "pc1_share")),
            self._line("Share that all parts have in common", _each(keys, "uniform_share")),
            self._line("Share of entries beyond noise: 0.05 is none", _each(keys, "significant")),
        ]

    def trajectory(self, keys: Sequence[str]) -> list[Any]:
        distances = "|".join(key_of(key, "distance/.*") for key in keys)
        shares = [key_of(key, f"{kind}_{place}") for key in keys for kind in ("explained", "null") for place in (1, 2)]
        return [
            *(self._image("Where training moves in function space", key_of(key, "map")) for key in keys),
            self._panels.LinePlot(title="Distance to reference predictors", x=logged.STEP, metric_regex=distances),
            self._line("Shares of the components, and those of a random walk", shares),
            self._line("Speed: change of the outputs a training step", _each(keys, "speed")),
        ]

    def health(self) -> list[Any]:
        return [
            *(self._line(title, [key_of("health", name)]) for title, name in _HEALTH),
            *(self._line(title, [key_of("cost", name)]) for title, name in _COST),
        ]

    def _line(self, title: str, keys: list[str]) -> Any:
        return self._panels.LinePlot(title=title, x=logged.STEP, y=keys)

    def _image(self, title: str, key: str) -> Any:
        return self._panels.MediaBrowser(title=title, media_keys=[key], num_columns=1)

    def _table(self, key: str) -> Any:
        return self._panels.WeavePanelSummaryTable(table_name=key)


def _check_names(**given: Any) -> None:
    for argument, value in given.items():
        if not isinstance(value, str) or not value:
            raise ValueError(f"Expected `{argument}` to be the name of a W&B {argument}, but got {value!r}.")


def _check_lists(**given: Any) -> None:
    for argument, keys in given.items():
        if isinstance(keys, str):
            raise TypeError(f"Expected `{argument}` to be a list of keys, such as [{keys!r}], but got {keys!r}.")


def _workspaces() -> tuple[Any, Any]:
    """The modules of wandb-workspaces, which is an extra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own, of pydantic's old validators
            return import_module("wandb_workspaces.workspaces"), import_module("wandb_workspaces.reports.v2")
    except ModuleNotFoundError as error:
        raise ImportError(
            "A dashboard needs the package wandb-workspaces: pip install 'slt-callbacks[workspace]'."
        ) from error


def _each(keys: Sequence[str], name: str) -> list[str]:
    return [key_of(key, name) for key in keys]


def _arranged(made: Sequence[Any], panels: Any) -> list[Any]:
    for place, panel in enumerate(made):
        row, column = divmod(place, 3)
        panel.layout = panels.Layout(x=column * _WIDTH, y=row * _HEIGHT, w=_WIDTH, h=_HEIGHT)
    return list(made)
