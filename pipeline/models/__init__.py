"""Loads a base, finds its sites, puts adapters on them, rebuilds the states that are shipped."""
