"""Likely bugs, put into a copy of the package one at a time: each must be caught by a test."""
