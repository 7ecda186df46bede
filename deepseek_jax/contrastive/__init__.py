"""Contrastive pretraining: spans of one document lie near each other. Floor 6."""
