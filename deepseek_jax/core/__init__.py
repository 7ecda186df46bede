"""Floor 0: frozen typed settings and what can be counted from them."""
