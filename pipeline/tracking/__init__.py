"""Experiment tracking beside the records: a job appends to a journal, and a process of its own writes W&B from it."""
