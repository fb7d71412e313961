"""For those who use what was trained, from Python: a finished run, and several adapters on one base.

base, method = open_run(Path("results/runs/demo-nf4-double-dylora-r8-s0-1a2b3c4d"))
method.set_rank(4)                          # a DyLoRA computes at rank 4 from here on

adapters = Adapters(base)
adapters.load("sums", Path("sums/adapter"))
adapters.load("letters", Path("letters/adapter"))
adapters.use("sums")                        # nothing is read again
adapters.use(None)                          # the base alone
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.adapters import files, interop
from pipeline.adapters.base import AdapterSettings, Method
from pipeline.core import records
from pipeline.core.records import RecordError
from pipeline.core.results import stands_on
from pipeline.core.settings import SettingsError, build, nearest
from pipeline.models.adapt import adapt, restore
from pipeline.models.load import Base, load_base


def open_run(run: Path, *, device: str = "cpu", dtype: str = "fp32") -> tuple[Base, Method[Any, Any]]:
    """Return the base of a finished run and the trained method, placed on it to compute and not to train.

    Args:
        run: its folder below `runs/` of a results folder.
        device: "cpu" or a CUDA device.
        dtype: compute dtype, "fp32" or "bf16".

    Raises:
        RecordError: the run has not ended well, or a file is missing or damaged.
    """
    train = records.read(run / "train.json", "finetune")
    if train.status != "ok":
        raise RecordError(f"{train.path}: this run has no adapter, it ended {train.status} ({train.result['reason']}).")
    adapter = build(train.settings["adapter"], "adapter")
    assert isinstance(adapter, AdapterSettings)
    base = load_base(*stands_on(run), device=device, dtype=dtype)
    return base, restore(base, adapter, train)


class Adapters:
    """Several trained adapters on one base: each is loaded once, and at any time one of them or none computes.

    The base's weights are never touched, so the model computes bit for bit what each adapter alone would make of it,
    and with none what the base does.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.active: str | None = None
        self._methods: dict[str, Method[Any, Any]] = {}
        self._layers: Mapping[Any, Any] = {}
        base.detach()

    @property
    def methods(self) -> Mapping[str, Method[Any, Any]]:
        """Return what is loaded, by name."""
        return MappingProxyType(self._methods)

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter of a folder, ours or PEFT's own; which one computes does not change.

        Raises:
            RecordError: a file is missing or damaged, or belongs to another model.
            SettingsError: the name is taken, the method does not go with this base, or it is one of PEFT's that has no
                counterpart here.
        """
        if name in self._methods:
            raise SettingsError(f"{name}: an adapter of this name is loaded; give the other one another name.")
        try:
            self._methods[name] = self._loaded(folder).eval()
        finally:
            self.base.attach(self._layers)

    def _loaded(self, folder: Path) -> Method[Any, Any]:
        config = folder / files.CONFIG
        if (folder / files.RECORD).exists() or not config.exists():
            method = adapt(self.base, *files.made_of(folder))
            files.load(method, folder)
            return method
        settings, steps = interop.settings_of(json.loads(config.read_text(encoding="utf-8")), self.base.places)
        method = adapt(self.base, settings, seed=0, total_steps=steps)
        files.fill(method, folder / files.WEIGHTS)
        return method

    def use(self, name: str | None, at: int | None = None) -> None:
        """Let one adapter compute, at one of its points if it has any; None is the base alone.

        Raises:
            SettingsError: none of this name is loaded.
        """
        if name is not None and name not in self._methods:
            known = list(self._methods)
            raise SettingsError(
                f"{name}: no such adapter is loaded.{nearest(name, known)} Loaded: {', '.join(known) or 'none'}."
            )
        self._layers = {} if name is None else self._methods[name].export(at)
        self.base.attach(self._layers)
        self.active = name
