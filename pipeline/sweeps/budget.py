"""A budget of trainable parameters instead of a size: what a method can make of it on a model."""

from collections.abc import Mapping

from pipeline.core.settings import SettingsError
from pipeline.sweeps.checks import Checked, Checks


def sized(
    checks: Checks, checked: Mapping[str, Checked], budget: float, overridden: frozenset[str]
) -> tuple[Checked, str]:
    """Return the adapter at the largest size that `budget` allows on the model, and a remark on it.

    Args:
        checks: what knows how large an adapter is.
        checked: the nodes of the point, by group; the adapter's has a size.
        budget: trainable parameters.
        overridden: keys that the user has set.

    Raises:
        SettingsError: no size fits, the user has chosen one, or the model's shape is not known to a plan.
    """
    model, quantization, adapter = (checked[group].node for group in ("model", "quantization", "adapter"))
    assert checked["adapter"].size is not None
    if (key := f"adapter.{checked['adapter'].size[0]}") in overridden:
        raise SettingsError(f"{key}: got a value of your own, but sweep.budget chooses it. Give up one of them.")
    shape = checks.shape(model)
    if shape is None:
        raise SettingsError(f"sweep.budget: the shape of model {model['name']} is not known before it is made.")
    found = checks.largest(shape, quantization, adapter, checked["training"].node["steps"], budget)
    axis, size = found["size"]
    remark = f"budget {budget:,.0f}: {axis} {size}, {found['parameters']:,} trainable parameters"
    return checks.check(found["adapter"], "adapter"), remark
