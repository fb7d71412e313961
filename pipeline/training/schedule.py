"""Learning-rate schedules."""

import math

from pipeline.training.settings import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` (0-based) of `steps`.

    Linear warm-up reaches the peak at step `warmup_steps`; the decay ends at `final_fraction` of the peak.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.shape == "constant":
        return peak
    done = (step - schedule.warmup_steps) / max(1, steps - 1 - schedule.warmup_steps)
    shape = 1 - done if schedule.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)
