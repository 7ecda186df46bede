"""Floor 2: Linen modules, thin shells that own parameters, dtypes and axis names."""
