"""Where measurements go. The only floor that imports wandb, but for the reactions."""
