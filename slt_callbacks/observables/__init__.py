"""Floor 3: statistics of the draws. Each is reset, updated draw by draw, and computed."""

from slt_callbacks.observables.base import Observable, ReferencePoint
from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.observables.influence import Influence
from slt_callbacks.observables.labels import Labels
from slt_callbacks.observables.llc import LLC
from slt_callbacks.observables.loss_kernel import LossKernel
from slt_callbacks.observables.panel import Panel, check_observables
from slt_callbacks.observables.snapshots import Picture

__all__ = [
    "LLC",
    "ChainHealth",
    "Influence",
    "Labels",
    "LossKernel",
    "Observable",
    "Panel",
    "Picture",
    "ReferencePoint",
    "check_observables",
]
