"""From a sweep to its jobs: composes conf/, expands the grid, checks every setting, cuts each stage's slice.

The only room that imports Hydra. Nothing here imports torch.
"""
