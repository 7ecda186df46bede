"""Tasks on the same inputs, told apart by their descriptions only. Floor 1."""
