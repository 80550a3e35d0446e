"""Online detection of jumps and stages in a measured series: floats in, events out; numpy only.

Example:
    >>> from slt_callbacks import JumpDetector, StageDetector
    >>> jumps, stages = JumpDetector(), StageDetector()
    >>> jumps.update(0, 1.0, stderr=0.1) is None, stages.update(0, 1.0, stderr=0.1)
    (True, [])
"""
