"""Floor 2: fork a module and sample its local posterior. No Lightning, no W&B."""

from slt_callbacks.sampling.batches import map_leaves, num_rows
from slt_callbacks.sampling.chains import Chain, Draw, Engine, Sampler, SequentialEngine, make_chains, warm_round
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.dynamics import SGLD, Dynamics, RMSPropSGLD, resolve_step_size
from slt_callbacks.sampling.engines import SHORTEST_RACE, EngineChoice, is_worth_it, time_ratio
from slt_callbacks.sampling.fork import Fork
from slt_callbacks.sampling.loss import LossFn, LossFnError, check_loss, losses_of, resolve_loss
from slt_callbacks.sampling.memory import ChainMemory
from slt_callbacks.sampling.objective import Objective
from slt_callbacks.sampling.posterior import LocalPosterior, default_nbeta
from slt_callbacks.sampling.probes import Probe, split_from
from slt_callbacks.sampling.ranks import Alone, Exchange, RankFailedError, Ranks, is_out_of_memory
from slt_callbacks.sampling.reference import DEFAULT_NUM_SAMPLES, Reference, ReferenceSet, draw_reference
from slt_callbacks.sampling.rng import generator, isolated_rng, seed_from
from slt_callbacks.sampling.tokens import TokenObjective
from slt_callbacks.sampling.vectorized import VectorizedEngine

__all__ = [
    "DEFAULT_NUM_SAMPLES",
    "SGLD",
    "SHORTEST_RACE",
    "Alone",
    "Chain",
    "ChainMemory",
    "Draw",
    "Dynamics",
    "Engine",
    "EngineChoice",
    "Exchange",
    "Fork",
    "LocalPosterior",
    "LossFn",
    "LossFnError",
    "Objective",
    "Probe",
    "RMSPropSGLD",
    "RankFailedError",
    "Ranks",
    "Reference",
    "ReferenceSet",
    "Sampler",
    "SamplerConfig",
    "SequentialEngine",
    "TokenObjective",
    "VectorizedEngine",
    "check_loss",
    "default_nbeta",
    "draw_reference",
    "generator",
    "is_out_of_memory",
    "is_worth_it",
    "isolated_rng",
    "largest_curvature",
    "losses_of",
    "make_chains",
    "map_leaves",
    "num_rows",
    "resolve_loss",
    "resolve_step_size",
    "seed_from",
    "split_from",
    "time_ratio",
    "warm_round",
]
