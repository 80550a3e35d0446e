"""The story of a run: its history, the detectors that watch it, its events."""
