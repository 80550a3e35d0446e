"""Batches of any structure, and the fixed samples that every measurement looks at."""
