"""Spans of time in words."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A span of time as a person would say it, to two digits or so.

    Example:
        >>> [duration(seconds) for seconds in (0.123, 5.5, 75, 4800, 2.5 * 86400)]
        ['120 ms', '5.5 s', '1 min 15 s', '1 h 20 min', '2 days 12 h']
    """
    if seconds < 0.995:
        return f"{float(f'{1000 * seconds:.2g}'):g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if round(seconds) < _MINUTE:
        return f"{seconds:.0f} s"
    if round(seconds) < _HOUR:
        return _two(round(seconds), _MINUTE, "min", 1, "s")
    if round(seconds / _MINUTE) * _MINUTE < _DAY:
        return _two(round(seconds / _MINUTE) * _MINUTE, _HOUR, "h", _MINUTE, "min")
    whole = round(seconds / _HOUR) * _HOUR
    return _two(whole, _DAY, "day" if whole < 2 * _DAY else "days", _HOUR, "h")


def _two(seconds: int, large: int, its_name: str, small: int, other_name: str) -> str:
    rest = seconds % large // small
    return f"{seconds // large} {its_name}" + (f" {rest} {other_name}" if rest else "")
