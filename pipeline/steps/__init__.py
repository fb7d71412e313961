"""One training step and one decoding step."""
