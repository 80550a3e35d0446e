"""The same measurements over saved checkpoints, and the command line."""
