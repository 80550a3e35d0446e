"""One measurement without a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial

from torch import nn

from slt_callbacks.basics.plain import shown
from slt_callbacks.data.drawing import Reference, draw_reference
from slt_callbacks.losses.functions import LossFn
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.measuring.refinement import Refinement, RefinementSet
from slt_callbacks.observables.base import Observable
from slt_callbacks.sampling.config import SamplerConfig


def estimate(
    module: nn.Module,
    reference: Reference,
    loss_fn: LossFn | None = None,
    *,
    observables: Mapping[str, Observable] | None = None,
    sampler: SamplerConfig | None = None,
    refinements: Mapping[str, Refinement] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure a module once, with no Trainer. The module, and every global generator, is left as it was.

    Args:
        module: Any module with a trainable parameter.
        reference: Samples to measure on: a Dataset, a DataLoader (its dataset), a list of batches, or a function that
            returns one of these.
        loss_fn: ``(module, batch) -> losses``, one a sample ``(B,)``, one a token ``(B, T)`` (averaged over T), or a
            scalar mean. None: the module's ``per_sample_loss(batch)``, else the loss of its ``training_step``.
        observables: What to measure, by key; None for ``{"llc": LLC()}``.
        sampler: Settings of the chains; None for the defaults.
        refinements: Posteriors to sample beside the main one, by name: see `Refinement`.
        num_samples: Samples drawn from `reference` (seeded), at most so many for refinements; None for all of them.
        seed: Of the choice of samples and of the chains.

    Returns:
        The measurement: ``measurement["llc"]["mean"]`` and so on.

    Raises:
        TypeError: If `module`, `reference`, `loss_fn`, `sampler`, `seed` or an observable is of the wrong kind.
        ValueError: If a setting is out of range, `reference` is empty, too small or not finite, nothing is trainable,
            or `loss_fn` returns the wrong shape or no gradient.

    Example:
        >>> import torch
        >>> class Quadratic(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(2))
        >>> def loss_fn(module, batch):
        ...     return 0.5 * module.w.square().sum().expand(len(batch))
        >>> from slt_callbacks import SGLD
        >>> config = SamplerConfig(SGLD(1e-3), nbeta=200.0, localization=0.0, num_draws=2000)
        >>> measurement = estimate(Quadratic(), [torch.zeros(2, 1)], loss_fn, sampler=config)
        >>> abs(measurement["llc"]["mean"] - 1.0) < 0.15  # half the number of parameters
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected `module` to be a torch.nn.Module, but got {shown(module)}.")
    if sampler is not None and not isinstance(sampler, SamplerConfig):
        raise TypeError(f"Expected `sampler` to be a SamplerConfig, but got {shown(sampler)}.")
    beside = RefinementSet(refinements).drawn(partial(draw_reference, seed=seed, at_most=num_samples))
    drawn = draw_reference(reference, num_samples, seed)
    estimator = Estimator(drawn, loss_fn, observables, sampler, seed, refinements=beside)
    if beside.by_name:  # in a run, one that raises costs its own numbers; here it is a mistake to be told
        estimator.check(module)
    measurement = estimator.measure(module)
    if measurement.failed:
        warnings.warn(f"The measurement failed: {measurement.error}.", stacklevel=2)
    for name, error in measurement.failed_refinements():
        warnings.warn(f"The measurement of refinements[{name!r}] failed: {error}.", stacklevel=2)
    return measurement
