"""Settings of a sweep, and of the command line around it."""

import itertools
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.settings import Settings, SettingsError, nearest

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Names = Annotated[list[Name], Field(min_length=1)]

CHOICES = ("model", "quantization", "adapter", "optimizer", "training")
"""Axes that choose a file of conf/<axis>/ each."""
SIZES = {"rank": "adapter.rank", "block_size": "adapter.block_size"}
"""Axes that set one key of the adapters that have it."""
ALIASES = {"task.train_rows": "training.train_rows"}
"""Keys by the name that the literature has for them, and by their own."""


class Sweep(Settings):
    """A grid: every combination of the lists, without `exclude`, with the grids of `include`.

    `axes` and `per_adapter` name settings by dotted key. An entry of `include` replaces some axes and keeps the others.
    """

    name: Name
    model: Names
    quantization: Names
    adapter: Names
    optimizer: Names
    training: Names
    rank: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    block_size: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    budget: list[Annotated[float, Field(gt=0)]] = Field(default=[], description="trainable parameters, for a size")
    seed: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    task: Names
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    per_adapter: dict[str, dict[str, Any]] = Field(default={})
    include: list[dict[str, Any]] = Field(default=[])
    exclude: list[dict[str, Any]] = Field(default=[])

    named: ClassVar[tuple[str, ...]] = (*CHOICES, *SIZES, "budget", "seed")

    @field_validator(*CHOICES, *SIZES, "budget", "seed", "task")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{twice[0]!r} stands there twice, and two points of a sweep cannot have one name")
        return values

    @field_validator("axes")
    @classmethod
    def _dotted(cls, axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if wrong := [key for key in axes if "." not in key]:
            raise ValueError(f"{wrong[0]!r} must be a dotted key such as training.learning_rate; seed, rank and the "
                             f"like are lists of the sweep itself: sweep.{wrong[0]}=[...]")  # fmt: skip
        return own_names(axes)

    def grids(self) -> list[dict[str, list[Any]]]:
        """Return the sweep's grid and one more for each entry of `include`: axis or dotted key -> values."""
        own = {axis: getattr(self, axis) for axis in self.named} | self.axes
        own = {axis: values for axis, values in own.items() if values}
        extra = [self._checked(entry, "include") for entry in self.include]
        return [own, *(own | {a: v if isinstance(v, list) else [v] for a, v in entry.items()} for entry in extra)]

    def excluded_by(self, point: Mapping[str, Any]) -> list[int]:
        """Return which entries of `exclude` fit `point`."""
        entries = [self._checked(entry, "exclude") for entry in self.exclude]
        return [n for n, entry in enumerate(entries) if all(point.get(axis) == v for axis, v in entry.items())]

    def _checked(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
        for axis in entry:
            if axis not in self.named and "." not in axis:
                raise SettingsError(
                    f"sweep.{where}: there is no axis {axis!r}.{nearest(axis, list(self.named))} "
                    f"Allowed: {', '.join(self.named)}, or a dotted key such as adapter.alpha."
                )
        return own_names(entry)


class Request(Settings):
    """What `snakemake --config` asked for."""

    sweep: str = "default"
    overrides: tuple[str, ...] = ()
    code: Literal["rerun", "keep"] | None = None
    retry: Literal["failed"] | None = None

    @property
    def told(self) -> str:
        """What chooses the sweep and its settings, as a command line has it."""
        words = [f"sweep={self.sweep}"] if self.sweep != "default" else []
        words += [f"overrides={' '.join(self.overrides)}"] if self.overrides else []
        return f" --config {shlex.join(words)}" if words else ""


def split(given: str | list[str] | tuple[str, ...]) -> list[str]:
    """Split `a=1 b=[2, 3]` at the spaces outside of brackets and quotes."""
    if not isinstance(given, str | list | tuple):
        raise SettingsError(f"overrides: must be text such as 'training.steps=100', got {given!r}.")
    text = given if isinstance(given, str) else " ".join(map(str, given))
    words, depth, quote = [""], 0, ""
    for char in text:
        quote = ("" if char == quote else quote) if quote else char * (char in "'\"")
        depth += 0 if quote else (char in "[{(") - (char in "]})")
        if char.isspace() and depth <= 0 and not quote:
            words.append("")
        else:
            words[-1] += char
    return [word for word in words if word]


def own_names(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same values under the keys' own names."""
    return {ALIASES.get(key, key): value for key, value in keys.items()}


def slug(key: str, value: object) -> str:
    """Return how an axis shows in a name: `adapter.alpha`, 16.0 -> `alpha16.0`, in the letters that paths may have."""
    return re.sub(r"[^a-z0-9.-]", "", f"{key.rpartition('.')[2]}{value}".lower().replace("_", "-"))


def points(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return every combination of `grid`, in a stable order."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class Tracker(Settings):
    """Where curves go beside a job's log. No result depends on it, so no job is told of it by its params."""

    kind: Literal["none", "wandb"]
    project: str | None = Field(default=None, description="name that the tracker files the runs under")

    @model_validator(mode="after")
    def _filed(self) -> "Tracker":
        if self.kind != "none" and not self.project:
            raise ValueError(f"project must be a name where kind is {self.kind}, got {self.project!r}")
        return self
