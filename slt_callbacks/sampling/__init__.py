"""Chains that sample the local posterior. No Lightning, no W&B."""
