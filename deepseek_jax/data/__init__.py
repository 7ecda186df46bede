"""Floor 1: text, tokenizers, packed rows; numpy only, no model."""
