"""Floor 4: generation from a model with its cache."""
