"""Puts a method's layers on a base."""

from pipeline.adapters import files
from pipeline.adapters.base import AdapterSettings, Method, Places
from pipeline.core import records
from pipeline.core.settings import SettingsError
from pipeline.models.load import Base
from pipeline.models.places import refuse_overlap
from pipeline.quantization.base import Format
from pipeline.quantization.none import Dense


def adapt(base: Base, adapter: AdapterSettings, seed: int, total_steps: int) -> Method:
    """Return the method with its layers placed on `base`, on the base's device; nothing moves afterwards.

    Args:
        base: a loaded base; whatever sat on it is taken off.
        adapter: settings of the method.
        seed: of every draw that the method makes.
        total_steps: of the training, for methods that follow a schedule.

    Raises:
        SettingsError: the method does not go with this base.
    """
    method = method_on(base.format, base.offered(), adapter, seed, total_steps)
    base.attach(method.placed)
    return method


def method_on(format_: Format, places: Places, adapter: AdapterSettings, seed: int, total_steps: int) -> Method:
    """Return the method with its layers made for `places`, which are stored in `format_`.

    Raises:
        SettingsError: the method does not go with them.
    """
    method = adapter.method(seed=seed, total_steps=total_steps)
    check_format(method, format_)
    refuse_overlap(method.place(places))
    return method


def check_format(method: Method, format_: Format) -> None:
    """Refuse a format of weights that the method does not go with.

    Raises:
        SettingsError: the base is quantized and must not be, or the other way round.
    """
    dense = isinstance(format_, Dense)
    allowed, reason = method.unquantized_base if dense else method.quantized_base
    if not allowed:
        wanted, do = ("quantized", "nf4-double") if dense else ("not quantized", "none")
        raise SettingsError(
            f"adapter: {method.settings.label} needs a base that is {wanted}, got {format_.name}: {reason}. "
            f"Set quantization to {do}."
        )


def restore(base: Base, adapter: AdapterSettings, train: records.Record) -> Method:
    """Return the trained method of a record of `finetune`, its layers placed on `base`, to compute and not to train.

    Raises:
        RecordError: a file of the adapter is missing, damaged, or not the one that was trained.
    """
    method = adapt(base, adapter, train.settings["seed"], train.settings["training"]["steps"])
    folder = train.path.parent / "adapter"
    for name, expected in train.result["adapter_files"].items():
        records.check_sha256(folder / name, expected)
    files.load(method, folder)
    return method.eval()
