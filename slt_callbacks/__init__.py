"""Live singular-learning-theory measurements for PyTorch Lightning.

`SLTMonitor` is the callback; `estimate` is one measurement without a Trainer. The names below stand in the order of the
floors they live on. Floors that need Lightning or W&B are imported at first use: the numeric core stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slt_callbacks.calibrate import Calibration, CalibrationPoint, calibrate
from slt_callbacks.detection import JumpDetector, JumpEvent, Stage, StageDetector, StageEvent
from slt_callbacks.estimate import Estimator, Measurement, estimate
from slt_callbacks.observables import LLC, Influence, LossKernel, Observable, ReferencePoint
from slt_callbacks.sampling import SGLD, Draw, Dynamics, RMSPropSGLD, SamplerConfig

if TYPE_CHECKING:
    from slt_callbacks.callbacks import (
        Alert,
        SaveCheckpoint,
        SLTMonitor,
        StopTraining,
        log_linear_steps,
        replay_checkpoints,
    )
    from slt_callbacks.sinks import FileSink, LoggerSink, MemorySink, Sink, WandbSink, stage_figure
    from slt_callbacks.sinks.calibration import calibration_figure
    from slt_callbacks.sinks.dashboard import dashboard

__version__ = "0.1.0"

# isort: off
__all__ = [  # noqa: RUF022  # by floor
    # sampling
    "SGLD",
    "RMSPropSGLD",
    "SamplerConfig",
    "Dynamics",
    "Draw",
    # observables
    "LLC",
    "LossKernel",
    "Influence",
    "Observable",
    "ReferencePoint",
    # detection
    "JumpDetector",
    "JumpEvent",
    "Stage",
    "StageDetector",
    "StageEvent",
    # one measurement
    "Estimator",
    "Measurement",
    "estimate",
    # many, to choose the settings
    "Calibration",
    "CalibrationPoint",
    "calibrate",
    # sinks
    "FileSink",
    "LoggerSink",
    "MemorySink",
    "Sink",
    "WandbSink",
    "stage_figure",
    "calibration_figure",
    "dashboard",
    # callbacks
    "SLTMonitor",
    "log_linear_steps",
    "Alert",
    "SaveCheckpoint",
    "StopTraining",
    "replay_checkpoints",
]

_LAZY = {
    "FileSink": "slt_callbacks.sinks",
    "LoggerSink": "slt_callbacks.sinks",
    "MemorySink": "slt_callbacks.sinks",
    "Sink": "slt_callbacks.sinks",
    "WandbSink": "slt_callbacks.sinks",
    "stage_figure": "slt_callbacks.sinks",
    "calibration_figure": "slt_callbacks.sinks.calibration",
    "dashboard": "slt_callbacks.sinks.dashboard",
    "SLTMonitor": "slt_callbacks.callbacks",
    "Alert": "slt_callbacks.callbacks",
    "SaveCheckpoint": "slt_callbacks.callbacks",
    "StopTraining": "slt_callbacks.callbacks",
    "log_linear_steps": "slt_callbacks.callbacks",
    "replay_checkpoints": "slt_callbacks.callbacks",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
