"""Statistics of the draws."""
