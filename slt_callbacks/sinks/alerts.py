"""Alerts of W&B runs, each of which remembers what it has sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from slt_callbacks.basics.keys import ALERTS
from slt_callbacks.sinks.each import logger_name, to_each
from slt_callbacks.sinks.wandb import is_wandb, wandb_run
from slt_callbacks.sinks.writing import replace_file

# Seconds between two alerts of one title: within a minute W&B would drop the second, and a jump up and one down are two
# pieces of news. The detectors have pauses of their own. 0 would stand for the minute.
_AT_ONCE = 0.001
_FILE = "slt-alerts.json"
# Alerts of a kind that a run remembers: what is resumed from further back is rare, and what is sent must stay small.
_KEPT = 500

# What each run has sent: its summary takes a millisecond to be asked.
_SENT: WeakKeyDictionary[Any, dict[str, list[int | str]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class News:
    """What an alert is about: two that are equal tell of the same.

    Attributes:
        kind: Such as ``slt/llc/mean jump``; there are few of them.
        onset: Training step at which it began, and what else tells it from others of this kind.
    """

    kind: str
    onset: int | str


def send_alert(loggers: Sequence[Any], title: str, text: str, news: News | None = None) -> bool:
    """Send an alert to every W&B run among the loggers, unless the run has sent it before.

    A training run that is resumed from before an event finds it again, and goes on in the same W&B run.

    Args:
        loggers: The trainer's loggers.
        title: Constant and under 64 characters.
        text: The numbers.
        news: By what a run remembers it; None to send it in any case.

    Returns:
        Whether there was a run.

    Raises:
        PartlyFailedError: If a run does not take it; the others have it.

    Example:
        >>> send_alert([], "LLC jump", "up by 12.3 between step 900 and 950")  # no WandbLogger: nobody was told
        False
    """
    runs: list[Any] = []

    def send(logger: Any) -> None:
        run = wandb_run(logger)
        if run is None or any(run is other for other in runs):
            return
        runs.append(run)
        if news is None or news.onset not in _sent_by(run).get(news.kind, []):
            run.alert(title=title, text=text, level="WARN", wait_duration=_AT_ONCE)
            if news is not None:
                _remember(run, news)

    to_each(filter(is_wandb, loggers), send, logger_name)
    return bool(runs)


def _sent_by(run: Any) -> dict[str, list[int | str]]:
    """By kind; what an earlier process has sent in the same run as well."""
    if run not in _SENT:
        before = [run.summary.get(ALERTS) or {}, *_of_earlier_processes(run)]
        kinds = {kind for one in before for kind in one}
        _SENT[run] = {kind: [onset for one in before for onset in one.get(kind, [])] for kind in kinds}
    return _SENT[run]


def _remember(run: Any, news: News) -> None:
    """In the run's summary, which W&B gives back when the run is resumed; offline it gives nothing back."""
    sent = _sent_by(run)
    sent[news.kind] = [*sent.get(news.kind, []), news.onset][-_KEPT:]
    run.summary[ALERTS] = dict(sent)
    if _is_offline(run):
        replace_file(Path(run.dir) / _FILE, json.dumps(sent).encode())


def _of_earlier_processes(run: Any) -> list[dict[str, list[int | str]]]:
    """Of an offline run that is resumed; each process has a folder of its own, which the run's name ends."""
    if not _is_offline(run) or not run.settings.resume:
        return []
    return [json.loads(path.read_text()) for path in Path(run.dir).parents[1].glob(f"*-{run.id}/files/{_FILE}")]


def _is_offline(run: Any) -> bool:
    return bool(run.offline) and not run.disabled
