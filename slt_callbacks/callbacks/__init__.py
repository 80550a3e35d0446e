"""The callback, and all that only a Trainer can tell. The only floor that imports lightning."""
