"""Floor 1: pure array functions; no Linen, no config files, no mesh."""
