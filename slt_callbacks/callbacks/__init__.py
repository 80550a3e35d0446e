"""Floor 5: the callback. The only floor that imports Lightning."""

from slt_callbacks.callbacks.monitor import SLTMonitor
from slt_callbacks.callbacks.reactions import Alert, SaveCheckpoint, StopTraining
from slt_callbacks.callbacks.replay import replay_checkpoints
from slt_callbacks.callbacks.schedule import log_linear_steps

__all__ = ["Alert", "SLTMonitor", "SaveCheckpoint", "StopTraining", "log_linear_steps", "replay_checkpoints"]
