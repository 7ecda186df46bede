"""Floor 3: generation from a model with its cache."""
