"""Floor 5: state, step, loop, checkpoints, metrics."""
