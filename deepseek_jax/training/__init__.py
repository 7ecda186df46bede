"""Floor 4: state, step, loop, checkpoints, metrics."""
