"""Floor 4: where measurements go. The only floor that imports wandb and PIL."""

from slt_callbacks.sinks.base import PREFIX, STEP_KEY, Publication, Report, Sink, publish_media, publish_scalars
from slt_callbacks.sinks.figures import stage_figure
from slt_callbacks.sinks.files import FileSink
from slt_callbacks.sinks.images import correlation_map
from slt_callbacks.sinks.loggers import LoggerSink
from slt_callbacks.sinks.memory import MemorySink
from slt_callbacks.sinks.wandb import WandbSink, send_alert

__all__ = [
    "PREFIX",
    "STEP_KEY",
    "FileSink",
    "LoggerSink",
    "MemorySink",
    "Publication",
    "Report",
    "Sink",
    "WandbSink",
    "correlation_map",
    "publish_media",
    "publish_scalars",
    "send_alert",
    "stage_figure",
]
