"""Live singular-learning-theory measurements for PyTorch Lightning.

`SLTMonitor` is the callback; `estimate` is one measurement without a Trainer. Every name is imported at its first use,
from the file that it lives in: the numeric core stays light, and needs neither Lightning nor W&B.

Where to read on, beside the docstrings of what is named below:

* ``help("slt_callbacks.callbacks")``: what training may rely on, and the limits;
* ``help("slt_callbacks.callbacks.monitor")``: every number, picture and table that is logged;
* ``help("slt_callbacks.data")`` and ``help("slt_callbacks.losses")``: what may be given as a reference and as a loss;
* ``help(slt_callbacks.SamplerConfig)``: how to choose the settings, and what they cost;
* ``help("slt_callbacks.measuring")``: the way of a measurement; ``help("slt_callbacks.measuring.sharding")``: FSDP2.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slt_callbacks.callbacks.monitor import SLTMonitor
    from slt_callbacks.callbacks.reactions import Alert, SaveCheckpoint, StopTraining
    from slt_callbacks.callbacks.schedule import log_linear_steps
    from slt_callbacks.detection.changes import BoundaryChanges, Change
    from slt_callbacks.detection.jumps import JumpDetector, JumpEvent
    from slt_callbacks.detection.records import Stage, StageEvent
    from slt_callbacks.detection.stages import StageDetector
    from slt_callbacks.executors.process import ProcessExecutor
    from slt_callbacks.executors.ray import RayExecutor
    from slt_callbacks.figures.calibration import calibration_figure
    from slt_callbacks.figures.free_energy import free_energy_figure
    from slt_callbacks.figures.refinements import refinement_figure
    from slt_callbacks.figures.stages import stage_figure
    from slt_callbacks.losses.behavioral import behavioral
    from slt_callbacks.measuring.calibrate import Calibration, CalibrationPoint, calibrate
    from slt_callbacks.measuring.estimate import estimate
    from slt_callbacks.measuring.estimator import Estimator
    from slt_callbacks.measuring.measurement import Measurement
    from slt_callbacks.measuring.parts import attention_heads, child_modules
    from slt_callbacks.measuring.refinement import Refinement
    from slt_callbacks.observables.base import Observable, ReferencePoint
    from slt_callbacks.observables.compressibility import Compressibility
    from slt_callbacks.observables.influence import Influence
    from slt_callbacks.observables.llc import LLC
    from slt_callbacks.observables.loss_kernel import LossKernel
    from slt_callbacks.observables.metrics import Metrics
    from slt_callbacks.observables.susceptibility import Susceptibility
    from slt_callbacks.observables.trajectory import TrajectoryPCA
    from slt_callbacks.replay.replay import replay_checkpoints
    from slt_callbacks.sampling.averaged import LeimkuhlerMatthews
    from slt_callbacks.sampling.config import SamplerConfig
    from slt_callbacks.sampling.draws import Draw
    from slt_callbacks.sampling.dynamics import Dynamics
    from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
    from slt_callbacks.sampling.underdamped import SGHMC, SGNHT
    from slt_callbacks.sinks.base import Sink
    from slt_callbacks.sinks.dashboard import dashboard
    from slt_callbacks.sinks.files import FileSink
    from slt_callbacks.sinks.loggers import LoggerSink
    from slt_callbacks.sinks.memory import MemorySink
    from slt_callbacks.sinks.report import write_report
    from slt_callbacks.sinks.wandb import WandbSink
    from slt_callbacks.stats.trajectories import joint_trajectory

__version__ = "0.2.0"

# isort: off
__all__ = [  # noqa: RUF022  # by floor, as in `_HOMES`
    "SGLD",
    "RMSPropSGLD",
    "LeimkuhlerMatthews",
    "SGHMC",
    "SGNHT",
    "SamplerConfig",
    "Dynamics",
    "Draw",
    "LLC",
    "LossKernel",
    "Influence",
    "Susceptibility",
    "Metrics",
    "Compressibility",
    "TrajectoryPCA",
    "joint_trajectory",
    "Observable",
    "ReferencePoint",
    "JumpDetector",
    "JumpEvent",
    "Stage",
    "StageDetector",
    "StageEvent",
    "BoundaryChanges",
    "Change",
    "Estimator",
    "Measurement",
    "Refinement",
    "attention_heads",
    "child_modules",
    "behavioral",
    "estimate",
    "Calibration",
    "CalibrationPoint",
    "calibrate",
    "ProcessExecutor",
    "RayExecutor",
    "stage_figure",
    "refinement_figure",
    "free_energy_figure",
    "calibration_figure",
    "FileSink",
    "LoggerSink",
    "MemorySink",
    "Sink",
    "WandbSink",
    "dashboard",
    "write_report",
    "replay_checkpoints",
    "SLTMonitor",
    "log_linear_steps",
    "Alert",
    "SaveCheckpoint",
    "StopTraining",
]
# isort: on

_HOMES = {
    "sampling.langevin": ("SGLD", "RMSPropSGLD"),
    "sampling.averaged": ("LeimkuhlerMatthews",),
    "sampling.underdamped": ("SGHMC", "SGNHT"),
    "sampling.config": ("SamplerConfig",),
    "sampling.dynamics": ("Dynamics",),
    "sampling.draws": ("Draw",),
    "observables.llc": ("LLC",),
    "observables.loss_kernel": ("LossKernel",),
    "observables.influence": ("Influence",),
    "observables.susceptibility": ("Susceptibility",),
    "observables.trajectory": ("TrajectoryPCA",),
    "stats.trajectories": ("joint_trajectory",),
    "observables.metrics": ("Metrics",),
    "observables.compressibility": ("Compressibility",),
    "observables.base": ("Observable", "ReferencePoint"),
    "detection.jumps": ("JumpDetector", "JumpEvent"),
    "detection.records": ("Stage", "StageEvent"),
    "detection.changes": ("BoundaryChanges", "Change"),
    "detection.stages": ("StageDetector",),
    "measuring.estimator": ("Estimator",),
    "measuring.measurement": ("Measurement",),
    "measuring.refinement": ("Refinement",),
    "measuring.parts": ("attention_heads", "child_modules"),
    "losses.behavioral": ("behavioral",),
    "measuring.estimate": ("estimate",),
    "measuring.calibrate": ("Calibration", "CalibrationPoint", "calibrate"),
    "executors.process": ("ProcessExecutor",),
    "executors.ray": ("RayExecutor",),
    "figures.stages": ("stage_figure",),
    "figures.refinements": ("refinement_figure",),
    "figures.free_energy": ("free_energy_figure",),
    "figures.calibration": ("calibration_figure",),
    "sinks.files": ("FileSink",),
    "sinks.loggers": ("LoggerSink",),
    "sinks.memory": ("MemorySink",),
    "sinks.base": ("Sink",),
    "sinks.wandb": ("WandbSink",),
    "sinks.dashboard": ("dashboard",),
    "sinks.report": ("write_report",),
    "replay.replay": ("replay_checkpoints",),
    "callbacks.monitor": ("SLTMonitor",),
    "callbacks.schedule": ("log_linear_steps",),
    "callbacks.reactions": ("Alert", "SaveCheckpoint", "StopTraining"),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
