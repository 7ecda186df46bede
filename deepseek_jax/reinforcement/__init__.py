"""Reward models and policies that learn from rewards. Floor 6."""
