"""From a module to a `Measurement`."""
