"""Online detection of jumps and stages in a measured series: floats in, events out; numpy only.

Example:
    >>> from slt_callbacks.detection import JumpDetector, StageDetector
    >>> jumps, stages = JumpDetector(), StageDetector()
    >>> jumps.update(0, 1.0, stderr=0.1) is None, stages.update(0, 1.0, stderr=0.1)
    (True, [])
"""

from slt_callbacks.detection.jumps import JumpDetector, JumpEvent
from slt_callbacks.detection.noise import NoiseModel
from slt_callbacks.detection.stages import Stage, StageDetector, StageEvent

__all__ = ["JumpDetector", "JumpEvent", "NoiseModel", "Stage", "StageDetector", "StageEvent"]
