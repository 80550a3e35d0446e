"""Weights & Biases: one row a measurement, on an x axis of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import wandb

from slt_callbacks.basics import keys
from slt_callbacks.basics.keys import PREFIX, key_of
from slt_callbacks.figures.free_energy import free_energy_report
from slt_callbacks.figures.pictures import image_of
from slt_callbacks.figures.refinements import refinement_report
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.stages import report_figure
from slt_callbacks.observables.media import Picture, Scatter
from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.each import logger_name, to_each
from slt_callbacks.sinks.files import A_STORY, caption, write_matrices
from slt_callbacks.sinks.rows import Rows
from slt_callbacks.sinks.seldom import Seldom


class WandbSink:
    """Logs to the runs of the trainer's WandbLoggers, and never ends them.

    An offline run is a folder: ``wandb leet FOLDER`` opens it as a dashboard in the terminal, with the charts on
    ``slt/step``, and ``wandb leet inspect --json FILE.wandb`` prints its records, which is how the tests of this
    repository read runs back.

    Every key is defined against ``slt/step``, the optimizer steps at the fork. The settings go to the run's config
    under ``slt``. A row waits for whoever logs next, or for the next measurement; see `Rows`.

    Example:
        >>> from types import SimpleNamespace
        >>> from slt_callbacks import Measurement
        >>> logger = SimpleNamespace(experiment=wandb.init(mode="disabled"))  # in a Trainer: WandbLogger(project=...)
        >>> sink = WandbSink()
        >>> sink.open([logger], {"nbeta": 10.0})
        >>> sink.publish(Publication(Measurement(3, {}), {"slt/step": 3, "slt/llc/mean": 1.5}, log_step=2))
        >>> sink.close()
        >>> logger.experiment.config["slt"]["nbeta"], logger.experiment.summary["slt/llc/mean"]
        (10.0, 1.5)
        >>> logger.experiment.finish()
    """

    def __init__(self) -> None:
        self._rows: list[Rows] = []
        self._last_step = 0
        self._pending: Publication | None = None
        self._seldom = Seldom()

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Find the runs and write the settings.

        Raises:
            PartlyFailedError: If a logger has no run to give; the others' are open. So everywhere below.
        """
        self._last_step = 0
        self._rows = []
        self._seldom = Seldom()

        def begin(logger: Any) -> None:
            run = wandb_run(logger)
            if run is not None and not any(run is rows.run for rows in self._rows):
                self._rows.append(Rows(run))
                run.config.update({PREFIX: dict(config)}, allow_val_change=True)

        to_each(loggers, begin, logger_name)

    def publish(self, publication: Publication) -> None:
        """One row, on W&B's own terms: a user's rows must survive it; tables of many events now and then."""
        self._last_step = publication.measurement.step
        scalars: dict[str, Any] = {**publication.scalars, "trainer/global_step": publication.log_step}
        if publication.matrices:
            self._pending = publication
        tells = bool(publication.events) and self._seldom.due(len(publication.events))
        news = self._matrices() if publication.matrices and tells else None

        def write(rows: Rows) -> None:
            try:
                rows.add(scalars, self._last_step, partial(_media, publication, tells))
            finally:
                _log_matrices(rows.run, news)

        self._to_each(write)

    def finish(self, report: Report) -> None:
        """Stages and their figures in their last form; where nothing has happened, the charts say it all.

        Of refinements, and of loss against LLC, they do not: no chart has one beside the other, so that these figures
        are shown in any case.
        """
        if report.rows:
            told = partial(_story, report.rows, report.stage_rows, report)
        elif len(report.history) >= A_STORY and (report.refined, report.weighed) != (None, None):
            told = partial(_side_by_side, report)
        else:
            return
        self._to_each(lambda rows: rows.add({}, self._last_step, told))

    def close(self) -> None:
        """The last row and matrices; the runs belong to the user."""
        last = self._matrices()

        def end(rows: Rows) -> None:
            try:
                rows.close(self._last_step)
            finally:
                _log_matrices(rows.run, last)

        try:
            self._to_each(end)
        finally:
            self._rows = []

    def _to_each(self, give: Callable[[Rows], None]) -> None:
        to_each(self._rows, give, lambda rows: _run_name(rows.run))

    def _matrices(self) -> Publication | None:
        """Those that are still to be written."""
        publication, self._pending = self._pending, None
        return publication


class OwnRun:
    """A run of our own, in the place of a Trainer's WandbLogger; it begins when it is first asked for.

    Args:
        options: Of ``wandb.init``.

    Example:
        >>> own = OwnRun(mode="disabled")
        >>> own.finish()  # it has not begun
        >>> wandb_run(own) is own.experiment
        True
        >>> own.finish()
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._run: Any = None

    @property
    def experiment(self) -> Any:
        """The run."""
        if self._run is None:
            self._run = wandb.init(**self._options)
        return self._run

    def finish(self) -> None:
        """End the run, if it has begun."""
        if self._run is not None:
            self._run.finish()


def wandb_run(logger: Any) -> Any | None:
    """The W&B run of a Lightning logger, or None for another kind of logger, or off rank 0."""
    try:
        experiment = getattr(logger, "experiment", None)
    except Exception:
        if _is_wandb_logger(logger):
            raise
        return None  # another kind's troubles come to light where it is to log
    return experiment if isinstance(experiment, wandb.Run) else None


def is_wandb(logger: Any) -> bool:
    """Whether a logger is W&B's, and `WandbSink` sees to it.

    Example:
        >>> is_wandb(OwnRun(mode="disabled")), is_wandb("csv")
        (True, False)
    """
    return _is_wandb_logger(logger) or wandb_run(logger) is not None


def _is_wandb_logger(logger: Any) -> bool:
    """By the name of the class: the package pytorch_lightning has one of its own, and its run may be out of reach."""
    return any(base.__name__ in ("WandbLogger", "OwnRun") for base in type(logger).__mro__)


def _run_name(run: Any) -> str:
    return f"the W&B run {run.name or run.id}"


def _log_matrices(run: Any, publication: Publication | None) -> None:
    """One compressed artifact, at events and at the end: a table of a matrix would take seconds."""
    if publication is None:
        return
    artifact = wandb.Artifact(f"{PREFIX}-matrices-{run.id}", type=f"{PREFIX}-matrices")
    with artifact.new_file("matrices.npz", mode="wb") as file:
        write_matrices(file, publication.measurement.step, publication.matrices)
    run.log_artifact(artifact)


def _media(publication: Publication, tells: bool) -> dict[str, Any]:
    media = _story(publication.events, publication.stages, publication.report) if tells else {}
    media |= {key_of(key): _table(rows) for key, rows in publication.tables.items()}
    step = publication.measurement.step
    images = {key_of(key): _image(step, picture) for key, picture in publication.pictures.items()}
    return media | {key: image for key, image in images.items() if image is not None}


def _story(
    events: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]], report: Report | None
) -> dict[str, Any]:
    story: dict[str, Any] = {keys.EVENTS: _table(events), keys.STAGES: _table(stages)}
    if report is not None:
        story |= {keys.CHANGES: _table(report.change_rows)} if report.changes else {}
        story |= _drawn(keys.FIGURE, report_figure(report), report) | _side_by_side(report)
    return story


def _side_by_side(report: Report) -> dict[str, Any]:
    """Figures of what no chart of W&B has in one."""
    refined = _drawn(keys.REFINEMENTS, refinement_report(report), report)
    return refined | _drawn(keys.FREE_ENERGY, free_energy_report(report), report)


def _drawn(key: str, figure: Any, report: Report) -> dict[str, Any]:
    if figure is None:
        return {}
    return {key: wandb.Image(figure, caption=f"up to step {report.history[-1].step}")}


def _image(step: int, shown: Picture | Scatter) -> wandb.Image | None:
    image = image_of(shown)
    return None if image is None else wandb.Image(image, caption=caption(step, shown))


def _table(rows: Sequence[Mapping[str, Any]]) -> wandb.Table:
    """Rows with different fields as one table; a field that a row lacks is empty."""
    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(
        columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows], allow_mixed_types=True
    )
