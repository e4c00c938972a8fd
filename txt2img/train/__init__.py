"""Training: data, loop, stages, losses and checkpoints."""
