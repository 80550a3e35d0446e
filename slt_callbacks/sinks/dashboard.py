"""A W&B workspace that shows what is logged, with ``slt/step`` on the x axes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, overload

from slt_callbacks.basics import keys as logged
from slt_callbacks.basics.keys import key_of
from slt_callbacks.figures.kinds import (
    COMPRESSIBILITY,
    COST,
    FREE_ENERGY,
    HEALTH,
    IN_FORCE,
    INFLUENCE,
    KERNEL,
    LLC,
    SUSCEPTIBILITY,
    TRAJECTORY,
    Plot,
)

_WIDTH, _HEIGHT = 8, 6  # of a panel on W&B's grid of 24 columns: three in a row


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
    compressibility: Sequence[str] = ...,
    metrics: Sequence[str] = ...,
    free_energy: Sequence[str] = ...,
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
    compressibility: Sequence[str] = ...,
    metrics: Sequence[str] = ...,
    free_energy: Sequence[str] = ...,
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
    compressibility: Sequence[str] = (),
    metrics: Sequence[str] = (),
    free_energy: Sequence[str] = (),
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
        compressibility: Keys of the `Compressibility` observables; none, no section.
        metrics: Keys of the `Metrics` observables, or of your own: a plot each of all their numbers; none, no section.
        free_energy: Keys of the `LLC` observables with `num_train_samples`; none, no section.
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
    given = {"llc": llc, "kernel": kernel, "influence": influence, "refinements": refinements}
    given |= {"susceptibility": susceptibility, "trajectory": trajectory, "compressibility": compressibility}
    given |= {"metrics": metrics, "free_energy": free_energy}
    _check_lists(**given)
    workspaces, panels = _workspaces()
    content = _Panels(panels).content(given)
    sections = [
        workspaces.Section(name=title, panels=_arranged(made, panels), is_open=True)
        for title, made in content.items()
        if made
    ]
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=logged.STEP),
    )
    return workspace.save().url if save else workspace


class _Panels:
    """The panels of every section; `logged.STEP` is the axis of each line plot."""

    def __init__(self, panels: Any) -> None:
        self._panels = panels

    def content(self, keys: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """The panels of each section by its title; of what there are no keys, none."""
        refined = keys["refinements"]
        return {
            "LLC": self.llc(keys["llc"]) if keys["llc"] else [],
            "Refined LLC": self.refinements(keys["llc"] or ("llc",), refined) if refined else [],
            "Free energy": self.free_energy(keys["free_energy"]) if keys["free_energy"] else [],
            "Stages": self.stages(),
            "Loss kernel": self.kernel(keys["kernel"]) if keys["kernel"] else [],
            "Influence": self.influence(keys["influence"]) if keys["influence"] else [],
            "Susceptibility": self.susceptibility(keys["susceptibility"]) if keys["susceptibility"] else [],
            "Trajectory": self.trajectory(keys["trajectory"]) if keys["trajectory"] else [],
            "Compressibility": self.compressibility(keys["compressibility"]) if keys["compressibility"] else [],
            "Metrics": [self.all_of(key) for key in keys["metrics"]],
            "Health and cost": self.health(),
        }

    def llc(self, keys: Sequence[str]) -> list[Any]:
        return self.plots(LLC.plots, keys)

    def free_energy(self, keys: Sequence[str]) -> list[Any]:
        image = self._image("Loss against LLC on lines of equal free energy", logged.FREE_ENERGY)
        return [image, *self.plots([FREE_ENERGY, Plot("n, the training samples", ["num_train_samples"])], keys)]

    def refinements(self, keys: Sequence[str], names: Sequence[str]) -> list[Any]:
        def of_each(observables: Sequence[str], *numbers: str) -> list[str]:
            return [key_of(key, name, number) for key in observables for name in names for number in numbers]

        return [
            self._line("Refined LLC", of_each(keys, "mean")),
            self._image("Refined LLCs over the stages", logged.REFINEMENTS),
            self._line("R-hat of the refinements", of_each(["health"], "rhat")),
            self._line("Chains of the refinements that were dropped", of_each(["health"], "failed_chains")),
            self._line("Uncertainty of the refined LLC: standard error, and spread", of_each(keys, "stderr", "std")),
            self._line("Refined LLC by the variance of the loss", of_each(keys, "variance_llc")),
            self._line("Loss of the refinements", of_each(keys, "reference_loss")),
            self._line("Step size of the refinements' chains", of_each(["health"], "step_size")),
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
        images = [self._image("Loss kernel", key_of(key, "map")) for key in keys]
        return images + self.plots(KERNEL.plots, keys)

    def influence(self, keys: Sequence[str]) -> list[Any]:
        images = [self._image("Influence", key_of(key, "map")) for key in keys]
        return images + self.plots(INFLUENCE.plots, keys) + [self._table(key_of(key, "events")) for key in keys]

    def susceptibility(self, keys: Sequence[str]) -> list[Any]:
        return [
            *(self._image("Which data each part works for", key_of(key, "map")) for key in keys),
            *(self._image("Samples by what works for them", key_of(key, "components")) for key in keys),
            *self.plots(SUSCEPTIBILITY.plots, keys),
        ]

    def trajectory(self, keys: Sequence[str]) -> list[Any]:
        images = [self._image("Where training moves in function space", key_of(key, "map")) for key in keys]
        return images + self.plots(TRAJECTORY.plots, keys)

    def compressibility(self, keys: Sequence[str]) -> list[Any]:
        return [
            *self.plots(COMPRESSIBILITY.plots, keys),
            *(self._image("Loss against bits a weight", key_of(key, "quantization")) for key in keys),
            *(self._image("Loss against the rank", key_of(key, "factorization")) for key in keys),
        ]

    def health(self) -> list[Any]:
        return self.plots([*HEALTH, *IN_FORCE], ["health"]) + self.plots(COST, ["cost"])

    def plots(self, plots: Sequence[Plot], keys: Sequence[str]) -> list[Any]:
        """Line plots of these numbers, the observables' side by side."""
        return [self._plot(plot, keys) for plot in plots]

    def all_of(self, key: str) -> Any:
        """A line plot of all numbers of one observable."""
        return self._plot(Plot(key, ["*"]), [key])

    def _plot(self, plot: Plot, keys: Sequence[str]) -> Any:
        names = [key_of(key, name) for name in plot.numbers for key in keys]
        if not any("*" in name for name in plot.numbers):
            return self._line(plot.title, names)
        pattern = "|".join(name.replace("*", ".*") for name in names)
        return self._panels.LinePlot(title=plot.title, x=logged.STEP, metric_regex=pattern)

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
