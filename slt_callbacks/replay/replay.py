"""The same measurements, and the same detection, over the saved checkpoints of a run that is already over."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from slt_callbacks.basics.plain import shown
from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, draw_reference
from slt_callbacks.executors.base import check_executor
from slt_callbacks.executors.inline import InlineExecutor
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.refinement import RefinementSet
from slt_callbacks.observables.panel import check_observables
from slt_callbacks.recording.story import Story
from slt_callbacks.recording.watch import Watch
from slt_callbacks.replay.archive import Archive
from slt_callbacks.replay.source import CheckpointSource
from slt_callbacks.sinks.files import FileSink
from slt_callbacks.sinks.loggers import LoggerSink
from slt_callbacks.sinks.wandb import WandbSink
from slt_callbacks.weights.checkpoints import in_step_order

if TYPE_CHECKING:
    from slt_callbacks.data.drawing import Reference
    from slt_callbacks.executors.base import Executor
    from slt_callbacks.losses.functions import LossFn
    from slt_callbacks.measuring.measurement import Measurement
    from slt_callbacks.measuring.refinement import Refinement
    from slt_callbacks.observables.base import Observable
    from slt_callbacks.recording.watch import Detector
    from slt_callbacks.sampling.config import SamplerConfig
    from slt_callbacks.sinks.base import Publication
    from slt_callbacks.weights.checkpoints import OnSkip, SavedStep
    from slt_callbacks.weights.snapshot import Snapshot

_COLD = {"chains": "cold"}  # another curve than that of chains which go on
_GLANCE = 0.5  # seconds between two looks at whether there is something to record


def replay_checkpoints(
    checkpoints: Iterable[str | Path],
    module: type[nn.Module],
    reference: Reference,
    loss_fn: LossFn | None = None,
    *,
    observables: Mapping[str, Observable] | None = None,
    sampler: SamplerConfig | None = None,
    refinements: Mapping[str, Refinement] | None = None,
    num_samples: int | None = None,
    detectors: Mapping[str, Detector | Sequence[Detector]] | None = None,
    init_args: Mapping[str, Any] | None = None,
    output: str | Path = "runs/replay",
    loggers: Sequence[Any] = (),
    device: str | torch.device = "cpu",
    trust: bool = False,
    progress: bool = True,
    on_skip: OnSkip | None = None,
    seed: int = 0,
    executor: Executor | None = None,
) -> list[Measurement]:
    """Measure saved checkpoints in step order, as `SLTMonitor` would have measured the run.

    Chains go on from one checkpoint to the next, and detectors look for jumps and stages. With the monitor's reference,
    settings and seed, and a checkpoint at each of its steps, the numbers are the monitor's own. `output` holds
    ``measurements.csv``, ``events.json``, ``stages.csv``, ``changes.csv``, ``stages.png``, ``report.html``, and what is
    needed to go on: called again, also after a crash, only checkpoints after the last finished one are measured. With
    other `detectors` none is measured again: they are shown the measurements that are there.

    Args:
        checkpoints: Lightning checkpoints, or files with a ``state_dict`` and a name such as ``step=100.pt``; or
            folders of ``.ckpt`` files.
        module: The class of the module.
        reference: As in `SLTMonitor`.
        loss_fn: As in `SLTMonitor`.
        observables: As in `SLTMonitor`.
        sampler: As in `SLTMonitor`.
        refinements: As in `SLTMonitor`; all of them at every checkpoint.
        num_samples: As in `SLTMonitor`.
        detectors: As in `SLTMonitor`. Of your own classes only dataclasses tell their arguments: after a change of
            another's, give another `output`.
        init_args: Arguments of `module` that the checkpoints do not hold.
        output: Folder for the results.
        loggers: Lightning loggers that get one row a checkpoint; a W&B run among them stays open.
        device: Where the chains run.
        trust: Whether checkpoints may hold any Python object, which can run code when it is read.
        progress: Whether to show a progress bar.
        on_skip: Told of a checkpoint that is left out, and why; None for a warning.
        seed: Of the choice of samples and of the chains.
        executor: Where to measure, such as ``RayExecutor(num_workers=8)`` or ``ProcessExecutor(num_workers=2)``; None
            for this process, where chains go on from one checkpoint to the next. With an executor every measurement
            stands alone, so that many can be made at once: chains begin at the weights, "auto" is found anew, and what
            observables compare with the checkpoint before is NaN. A checkpoint whose worker is lost is measured once
            more; what is finished is recorded in step order.

    Returns:
        Every measurement in `output`, in step order, those of earlier calls included.

    Raises:
        FileNotFoundError: If a checkpoint does not exist.
        TypeError: If an argument has the wrong type.
        ValueError: If no checkpoint has a step, two have the same, `output` holds a replay with other settings, or as
            `estimate`.
        LossFnError: If the loss function raises on the first checkpoint.

    Example:
        >>> import tempfile
        >>> from slt_callbacks import SamplerConfig
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (0, 10):
        ...     torch.save({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, folder / f"step={step}.pt")
        >>> measurements = replay_checkpoints(
        ...     folder.glob("*.pt"), nn.Linear, [torch.ones(4, 2)], lambda net, x: net(x).square().mean(1),
        ...     init_args={"in_features": 2, "out_features": 1}, output=folder / "replay", progress=False,
        ...     sampler=SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=2))
        >>> [measurement.step for measurement in measurements]
        [0, 10]
        >>> sorted(path.name for path in (folder / "replay").glob("*.*"))
        ['changes.csv', 'events.json', 'measurements.csv', 'measurements.jsonl', 'report.html', 'settings.json',
         'stages.csv']
    """
    _check(module, device, executor)
    skip = _warn if on_skip is None else on_skip
    saved = in_step_order(checkpoints, skip, trust)
    shown = check_observables(observables)
    draw = partial(draw_reference, seed=seed, at_most=DEFAULT_NUM_SAMPLES)
    drawn, beside = draw(reference, num_samples), RefinementSet(refinements).drawn(draw)
    estimator = Estimator(drawn, loss_fn, shown, sampler, seed, persistent=True, refinements=beside)
    watch = Watch(copy.deepcopy(detectors), shown, refinements=beside.by_name)  # they may have seen another replay
    settings = _settings(estimator, watch, module, loss_fn, shown) | ({} if executor is None else _COLD)
    archive = Archive(output, settings)
    archive.restore(estimator, watch)
    story = Story(watch, shown, before=archive.measurements)
    todo = _left(saved, archive, skip)
    source = CheckpointSource(todo, module, init_args, device, trust, seed, skip, progress)
    with _told(story, loggers, archive.folder, settings):
        _measure_all(source, estimator, archive, story, executor, progress)
        story.finish()
    archive.write_tables(story)
    return archive.measurements


def _measure_all(
    source: CheckpointSource,
    estimator: Estimator,
    archive: Archive,
    story: Story,
    executor: Executor | None,
    progress: bool,
) -> None:
    """Every snapshot in its turn; the loss is tried on the first."""
    here = InlineExecutor(partial(_line, progress))
    place: Executor = here if executor is None else executor
    opened = False
    try:
        for snapshot in source:
            if not opened:
                _tried(place, estimator, snapshot)
                place.open(estimator if executor is None else Apart(estimator))
                opened = True
            place.submit(snapshot)
            for measurement in place.poll():
                archive.add(_recorded(story, measurement), estimator, story)
        while opened and (found := _rest(place)):
            for measurement in found:
                archive.add(_recorded(story, measurement), estimator, story)
    finally:
        if opened:
            place.close()


def _tried(place: Executor, estimator: Estimator, snapshot: Snapshot) -> None:
    """Try the loss, as it will be asked.

    Raises:
        TypeError: If something cannot be given to another process, or as `Estimator.check`.
    """
    estimator.check(snapshot.module)
    if hasattr(place, "rehearse"):
        estimator.check(place.rehearse(estimator, snapshot.module))


def _rest(place: Executor) -> list[Measurement]:
    """What has been finished of what is left, a little later; nothing when there is no more."""
    while getattr(place, "pending", 0):
        if found := place.drain(_GLANCE):
            return found
    return place.drain()


def _settings(
    estimator: Estimator, watch: Watch, module: type[nn.Module], loss_fn: Any, observables: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for measurements to belong to one replay, and the detectors."""
    refinements = estimator.refinements.told()
    return {
        **estimator.settings.of_curve(module, loss_fn, observables),
        **({"refinements": refinements} if refinements else {}),
        "detectors": watch.settings(),
    }


def _recorded(story: Story, measurement: Measurement) -> Publication:
    """Take a measurement, under the step where Lightning logs the metrics of the batch that ended with its own."""
    if measurement.failed:  # weights that cannot be measured give a record of NaN, as they do in the monitor
        warnings.warn(f"The measurement at step {measurement.step} failed: {measurement.error}.", stacklevel=3)
    for name, error in measurement.failed_refinements():
        warnings.warn(f"refinements[{name!r}] failed at step {measurement.step}: {error}.", stacklevel=3)
    return story.record(measurement, log_step=max(measurement.step - 1, 0))


def _left(saved: Sequence[SavedStep], archive: Archive, skip: OnSkip) -> list[SavedStep]:
    """What is to be measured: chains and detectors go forward only."""
    finished = {measurement.step for measurement in archive.measurements}
    last = max(finished, default=-1)
    for one in saved:
        if one.step < last and one.step not in finished:
            skip(
                one.path,
                f"step {one.step} lies before step {last}, which is already measured: give another `output` to measure "
                "them in order.",
            )
    return [one for one in saved if one.step > last]


@contextmanager
def _told(story: Story, loggers: Sequence[Any], folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    story.open([LoggerSink(), WandbSink(), FileSink(folder)], loggers, config)
    try:
        yield
    finally:
        story.close()


@contextmanager
def _line(progress: bool, snapshot: Snapshot, total: int) -> Iterator[Callable[[int], None]]:
    """A second bar, of the measurement that is under way."""
    shown = {"desc": f"Step {snapshot.step}", "total": total, "unit": "sgld step"}
    with tqdm(**shown, position=1, leave=False, disable=not progress) as line:
        yield lambda steps: line.update(steps) and None


def _check(module: Any, device: str | torch.device, executor: Any) -> None:
    check_executor(executor)
    _check_module(module)
    _check_device(device)


def _check_module(module: Any) -> None:
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise TypeError(f"Expected `module` to be a class of LightningModule or nn.Module, but got {shown(module)}.")


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'Expected `device` to name a device such as "cpu" or "cuda", but got {device!r}: {reason}'
        ) from error


def _warn(path: Path, reason: str) -> None:
    warnings.warn(f"{path} is left out: {reason}", stacklevel=3)
