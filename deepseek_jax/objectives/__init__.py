"""Floor 1: losses on arrays, never on a model."""
