"""Floor 1: statistics of chains. Tensors in, numbers out; nothing here knows about models."""

from slt_callbacks.stats.diagnostics import drift, effective_sample_size, split_rhat
from slt_callbacks.stats.intervals import moderated_variance, sign_quantile
from slt_callbacks.stats.moments import (
    ChainMoments,
    ChainSummary,
    Moments,
    RunningMoments,
    Spread,
    merge,
    moments_of,
    pool_within,
)

__all__ = [
    "ChainMoments",
    "ChainSummary",
    "Moments",
    "RunningMoments",
    "Spread",
    "drift",
    "effective_sample_size",
    "merge",
    "moderated_variance",
    "moments_of",
    "pool_within",
    "sign_quantile",
    "split_rhat",
]
