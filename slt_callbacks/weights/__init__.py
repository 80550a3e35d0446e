"""The weights of a module: forked, and read from checkpoints."""
