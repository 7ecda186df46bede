"""Floor 5: held-out measurements, baselines, plots and the report."""
