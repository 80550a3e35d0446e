"""Weights & Biases: one row a measurement, on an x axis of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import wandb

from slt_callbacks.basics import keys
from slt_callbacks.basics.keys import PREFIX, key_of
from slt_callbacks.figures.images import correlation_map
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.stages import report_figure
from slt_callbacks.observables.media import Picture
from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.files import caption, write_matrices
from slt_callbacks.sinks.rows import Rows

# Seconds between two alerts of one title: within a minute W&B would drop the second, and a jump up and one down are two
# pieces of news. The detectors have pauses of their own. 0 would stand for the minute.
_AT_ONCE = 0.001


class WandbSink:
    """Logs to the runs of the trainer's WandbLoggers, and never ends them.

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

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Find the runs and write the settings."""
        self._last_step = 0
        self._rows = [Rows(run) for run in _runs_of(loggers)]
        for rows in self._rows:
            rows.run.config.update({PREFIX: dict(config)}, allow_val_change=True)

    def publish(self, publication: Publication) -> None:
        """One row, on W&B's own terms: a user's rows must survive it."""
        self._last_step = publication.measurement.step
        scalars: dict[str, Any] = {**publication.scalars, "trainer/global_step": publication.log_step}
        for rows in self._rows:
            rows.add(scalars, self._last_step, partial(_media, publication))
        if publication.matrices:
            self._pending = publication
            if publication.events:
                self._log_matrices()

    def finish(self, report: Report) -> None:
        """Stages and their figure in their last form; where nothing has happened, the charts say it all."""
        if report.rows:
            stages = [asdict(stage) for stage in report.stages]
            for rows in self._rows:
                rows.add({}, self._last_step, partial(_story, report.rows, stages, report))

    def close(self) -> None:
        """The last row and matrices; the runs belong to the user."""
        self._log_matrices()
        for rows in self._rows:
            rows.close(self._last_step)
        self._rows = []

    def _log_matrices(self) -> None:
        """One compressed artifact, at events and at the end: a table of a matrix would take seconds."""
        publication, self._pending = self._pending, None
        if publication is None:
            return
        for run in (rows.run for rows in self._rows):
            artifact = wandb.Artifact(f"{PREFIX}-matrices-{run.id}", type=f"{PREFIX}-matrices")
            with artifact.new_file("matrices.npz", mode="wb") as file:
                write_matrices(file, publication.measurement.step, publication.matrices)
            run.log_artifact(artifact)


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


def send_alert(loggers: Sequence[Any], title: str, text: str) -> bool:
    """Send an alert to every W&B run among the loggers.

    Args:
        loggers: The trainer's loggers.
        title: Constant and under 64 characters.
        text: The numbers.

    Returns:
        Whether there was a run.

    Example:
        >>> send_alert([], "LLC jump", "up by 12.3 between step 900 and 950")  # no WandbLogger: nobody was told
        False
    """
    runs = _runs_of(loggers)
    for run in runs:
        run.alert(title=title, text=text, level="WARN", wait_duration=_AT_ONCE)
    return bool(runs)


def wandb_run(logger: Any) -> Any | None:
    """The W&B run of a Lightning logger, or None for another kind of logger, or off rank 0."""
    experiment = getattr(logger, "experiment", None)
    return experiment if isinstance(experiment, wandb.Run) else None


def _runs_of(loggers: Sequence[Any]) -> list[Any]:
    """Each once: a WandbLogger goes on in the run that it finds."""
    runs = [run for run in map(wandb_run, loggers) if run is not None]
    return [run for place, run in enumerate(runs) if not any(run is other for other in runs[:place])]


def _media(publication: Publication) -> dict[str, Any]:
    media = _story(publication.events, publication.stages, publication.report) if publication.events else {}
    media |= {key_of(key): _table(rows) for key, rows in publication.tables.items()}
    return media | {key_of(key): _image(publication, picture) for key, picture in publication.pictures.items()}


def _story(
    events: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]], report: Report | None
) -> dict[str, Any]:
    story: dict[str, Any] = {keys.EVENTS: _table(events), keys.STAGES: _table(stages)}
    figure = None if report is None else report_figure(report)
    if report is not None and figure is not None:
        story[keys.FIGURE] = wandb.Image(figure, caption=f"up to step {report.history[-1].step}")
    return story


def _image(publication: Publication, picture: Picture) -> wandb.Image:
    return wandb.Image(correlation_map(picture.matrix), caption=caption(publication.measurement.step, picture.caption))


def _table(rows: Sequence[Mapping[str, Any]]) -> wandb.Table:
    """Rows with different fields as one table; a field that a row lacks is empty."""
    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(
        columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows], allow_mixed_types=True
    )
