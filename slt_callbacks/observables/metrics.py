"""Any torchmetrics metric at the fork: what the model does there, beside how degenerate it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.basics.keys import as_part
from slt_callbacks.basics.plain import shown
from slt_callbacks.data.batches import Batch, map_leaves
from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.fork_view import ForkView
from slt_callbacks.observables.needs import Needs

_MOST_CLASSES = 100  # numbers of one result that are logged one by one
_TRIED = 2  # samples before training

_Metric = Metric | MetricCollection


class Metrics:
    """Torchmetrics metrics of the model at the fork, in eval mode and without gradient: no chain is run for them.

    What is asked is a private copy, made when this object is and reset before every measurement: the state, device and
    hooks of the metrics that were given stay as they are, and nothing is synchronized between processes, for each of
    them evaluates all samples. Of two ranks both find the same.

    `inspect` returns floats by name, which are logged as ``slt/<key>/<name>``; NaN where a metric gives NaN:

    * a metric with one number: the name it was given under; a single `Metric` that of its class, as in a collection;
    * one with a number a class ``(C,)``: ``<name>_0``, ``<name>_1``, ... where they are at most 100;
    * one that returns a dict, such as a `ClasswiseWrapper` or a `MetricCollection`: ``<name>_<entry>``, or the entry
      alone of a single `MetricCollection`; a slash in it becomes a hyphen;
    * anything larger, such as a confusion matrix ``(C, C)`` or more than 100 classes: left out of the log, but kept as
      a tensor under its name in the measurement, and in the file of matrices.

    Args:
        metrics: A `Metric`, a `MetricCollection`, or a dict of these by names without a slash. All of them are given
            what `predict` returns; from keyword arguments each takes those that its `update` knows.
        predict: ``(module, batch) -> arguments``, called with a private copy of the module and a batch as the loss gets
            it. A tuple is the positional arguments of ``Metric.update``, a dict its keyword arguments, anything else
            (a tensor, a list) its only argument.
        data: Samples of its own, as a monitor takes `reference`; all of them are kept in memory. None for the reference
            set.

    Raises:
        TypeError: If `metrics` are none, or `predict` cannot be called; when a metric returns what holds no numbers.
        ValueError: If there is no metric, or a name is empty or has a slash; when two numbers have one name; from
            `rehearse` if the metrics do not take what `predict` returns.

    Example:
        >>> from torchmetrics.classification import BinaryAccuracy
        >>> from slt_callbacks import estimate
        >>> inputs, targets = torch.tensor([[1.0], [2.0], [-3.0], [4.0]]), torch.tensor([1, 1, 1, 0])
        >>> behavior = Metrics({"accuracy": BinaryAccuracy()}, lambda net, batch: (net(batch[0])[:, 0] > 0, batch[1]))
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> loss_fn = lambda net, batch: (net(batch[0])[:, 0] - batch[1]).square()
        >>> measurement = estimate(net, [(inputs, targets)], loss_fn, observables={"behavior": behavior})
        >>> measurement["behavior"]["accuracy"], measurement["cost"]["sgld_steps"]
        (0.5, 0)
    """

    def __init__(
        self,
        metrics: Metric | MetricCollection | Mapping[str, Metric | MetricCollection],
        predict: Callable[[nn.Module, Batch], Any],
        data: Reference | ReferenceSet | None = None,
    ) -> None:
        if not callable(predict):
            raise TypeError(
                "Expected `predict` to be a function (module, batch) that returns the arguments of Metric.update, but "
                f"got {shown(predict)}."
            )
        self._metrics = [(name, _private(metric)) for name, metric in _by_name(metrics)]
        self._predict = predict
        self.needs = Needs(samples=data, forward_passes=1)

    def rehearse(self, fork: ForkView) -> None:
        """Try two samples before training.

        Raises:
            TypeError: If a metric returns what holds no numbers.
            ValueError: If the metrics do not take what `predict` returns, or two numbers have one name.
        """
        try:
            fed = self._fed(fork, fork.batches(_TRIED))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                "Expected `predict` to return the arguments of Metric.update, as a tuple, as a dict or as the only "
                f"one, but on {_TRIED} samples there was {type(error).__name__}: {error}"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two samples may have one class, or no spread
            found = []
            for name, metric in fed:
                with suppress(Exception):  # two samples need not be enough for it
                    found.append((name, metric.compute()))
        _told(found)

    @torch.no_grad()
    def inspect(self, fork: ForkView) -> dict[str, Any]:
        """The numbers at the fork, by name; see the class.

        Raises:
            TypeError: If a metric returns what holds no numbers.
            ValueError: If two numbers have one name.
        """
        return _told((name, metric.compute()) for name, metric in self._fed(fork, fork.batches()))

    def matrices(self, result: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What is too large for the log."""
        return {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}

    @torch.no_grad()
    def _fed(self, fork: ForkView, batches: Iterable[Batch]) -> list[tuple[str, _Metric]]:
        """Fresh copies of the metrics that have seen all batches."""
        fresh = [(name, copy.deepcopy(metric).to(fork.device)) for name, metric in self._metrics]
        # A collection of one gives a metric those keyword arguments alone that it knows.
        asked = [one if isinstance(one, MetricCollection) else MetricCollection({"one": one}) for _, one in fresh]
        for batch in batches:
            positional, named = _arguments(self._predict(fork.module, batch), fork.device)
            for metric in asked:
                metric.update(*positional, **named)
        return fresh


def _by_name(metrics: Any) -> list[tuple[str, _Metric]]:
    """Those given, each with what its results are named after; nothing for a collection, which names them itself."""
    if isinstance(metrics, Metric):
        return [(type(metrics).__name__, metrics)]
    if isinstance(metrics, MetricCollection):
        metrics = {"": metrics}
    elif isinstance(metrics, Mapping):
        for name in metrics:
            if not isinstance(name, str) or not name or "/" in name:
                raise ValueError(f"Expected the keys of `metrics` to be names without a slash, but got {name!r}.")
    found = list(metrics.items()) if isinstance(metrics, Mapping) else [("", metrics)]
    for _, metric in found:
        if not isinstance(metric, (Metric, MetricCollection)):
            raise TypeError(
                "Expected `metrics` to be a torchmetrics Metric, a MetricCollection, or a dict of these such as "
                f'{{"accuracy": BinaryAccuracy()}}, but got {shown(metric)}.'
            )
    if not any(isinstance(part, Metric) for _, metric in found for part in metric.modules()):
        raise ValueError('Expected `metrics` to hold at least one, such as {"accuracy": BinaryAccuracy()}.')
    return found


def _private(metric: _Metric) -> _Metric:
    """A copy without a sample that asks no other process.

    The processes that it may have been told to gather from cannot be copied, and are not asked.
    """
    parts = [part for part in metric.modules() if isinstance(part, Metric)]
    groups = [part.process_group for part in parts if part.process_group is not None]
    own = copy.deepcopy(metric, {id(group): None for group in groups})
    for part in own.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = _alone
    own.reset()
    return own


def _alone() -> bool:
    """Whether there are other processes to gather from."""
    return False


def _arguments(predicted: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, where the metrics are."""
    moved = map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, predicted)
    if isinstance(moved, Mapping):
        return (), dict(moved)
    return (moved if isinstance(moved, tuple) else (moved,)), {}


def _told(results: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Floats, and tensors that are too large to be logged, by name."""
    found: dict[str, Any] = {}
    for given, result in results:
        for name, value in _flat(given, result):
            if name in found:
                raise ValueError(
                    f"Expected the results of `metrics` to have different names, but there are two called {name!r}: "
                    "rename one of the metrics."
                )
            found[name] = value
    return found


def _flat(name: str, result: Any) -> Iterator[tuple[str, Any]]:
    """A result by name: one number, one a class, or those of a dict."""
    if isinstance(result, Mapping):
        for key, value in result.items():
            entry = as_part(str(key))
            yield from _flat(f"{name}_{entry}" if name else entry, value)
        return
    try:
        value = torch.as_tensor(result, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"Expected every metric to give numbers, but {name!r} gave {shown(result)}: leave it out, or wrap it in "
            "one that makes numbers of it."
        ) from error
    if value.ndim == 0:
        yield name, float(value)
    elif value.ndim == 1 and len(value) <= _MOST_CLASSES:
        yield from ((f"{name}_{place}", float(number)) for place, number in enumerate(value))
    else:
        yield name, value
