"""Puts a method's layers on a base."""

from pipeline.adapters.base import AdapterSettings, Method
from pipeline.models.load import Base


def adapt(base: Base, adapter: AdapterSettings, seed: int, total_steps: int) -> Method:
    """Return the method with its layers placed on `base`, on the base's device; nothing moves afterwards.

    Args:
        base: a loaded base; whatever sat on it is taken off.
        adapter: settings of the method.
        seed: of every draw that the method makes.
        total_steps: of the training, for methods that follow a schedule.
    """
    method = adapter.method(seed=seed, total_steps=total_steps)
    base.attach(method.place(base.frozen()))
    return method
