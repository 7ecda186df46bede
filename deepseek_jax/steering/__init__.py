"""Training and measuring a decoder that is told its task in words. Floor 6."""
