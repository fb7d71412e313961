"""Measurements whose records are kept in docs/results."""
