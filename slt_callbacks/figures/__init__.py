"""Pictures, from records alone."""
