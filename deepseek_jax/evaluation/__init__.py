"""Floor 4: held-out measurements, baselines, plots and the report."""
