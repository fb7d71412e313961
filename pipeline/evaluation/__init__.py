"""Asks a model in every state for replies and log-likelihoods, and turns what was kept of them into scores."""
