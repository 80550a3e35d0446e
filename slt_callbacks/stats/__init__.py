"""Moments, diagnostics and intervals, on arrays."""
