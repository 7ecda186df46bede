"""Floor 3: Linen modules, thin shells that own parameters, dtypes and axis names."""
