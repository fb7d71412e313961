"""Expands a sweep into points, each with the checked settings of one run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from pipeline.core.settings import TARGET, SettingsError, build, canonical, nearest
from pipeline.sweeps.budget import sized
from pipeline.sweeps.checks import Checked, Checks
from pipeline.sweeps.compose import (
    MISSING,
    Override,
    chosen,
    composed,
    data_root,
    not_swept,
    parsed,
    resolved,
    tasks,
)
from pipeline.sweeps.nodes import Node, flat, has, put
from pipeline.sweeps.settings import CHOICES, SIZES, Request, Sweep, points, slug

SINGLE = ("evaluation", "tracker", "hardware", "report")
"""Groups with one choice for a whole sweep."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep: the files it chose, the values of the axes that no name has, and its whole settings."""

    choices: dict[str, str]
    settings: Node
    size: list[Any] | None
    label: str
    axes: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's name in paths and tables."""
        return str(self.settings["model"].get("name", self.choices["model"]))

    @property
    def name(self) -> str:
        """The run's name, such as demo-nf4-lora-r8-s0; the same in every sweep."""
        size = [f"{self.size[0].removeprefix('max_')[0]}{self.size[1]}"] if self.size else []
        parts = [self.model, self.choices["quantization"], self.choices["adapter"], *size]
        return "-".join([*parts, f"s{self.settings['seed']}"])

    @property
    def title(self) -> str:
        """The run's name in this sweep: `name`, and the values of the other axes."""
        return "-".join([self.name, *(slug(key, value) for key, value in self.axes.items())])


@dataclass(frozen=True)
class Grid:
    """A sweep, expanded: its points, the nodes of its tasks and of the other groups, and remarks for the plan."""

    sweep: Sweep
    points: list[Point]
    tasks: dict[str, Checked]
    single: Node
    remarks: list[str]


def expand(request: Request, checks: Checks) -> Grid:
    """Compose, set, check and multiply out what `request` asks for.

    Raises:
        SettingsError: a setting is wrong; nothing has been run or written.
    """
    overrides = parsed(request.overrides)
    sweep = _sweep(chosen("sweep", request.sweep), overrides)
    not_swept(overrides, sweep)
    mine = [override for override in overrides if override.group not in ("sweep", "task")]
    remarks: list[str] = []
    nodes = _nodes(sweep, mine, remarks)
    _axes_exist(sweep, nodes)
    remarks += _replaced(sweep, mine) + _lacking(sweep, mine)
    if sweep.budget and (axes := [axis for axis in SIZES if getattr(sweep, axis)]):
        remarks.append(f"sweep.budget decides the sizes; not used: {', '.join(f'sweep.{axis}' for axis in axes)}")
    root = data_root(overrides)
    found = _Expansion(sweep, nodes, frozenset(override.key for override in mine), root, checks, remarks).points()
    single = {group: _checked(checks, nodes[group]["-"], group).node for group in SINGLE}
    names = [chosen("task", name, "sweep.task") for name in sweep.task]
    names += [chosen("task", point.settings["training"]["task"], "training.task") for point in found]
    own = [override for override in overrides if override.group == "task"]
    return Grid(sweep, found, _tasks(tasks(list(dict.fromkeys(names)), root), own, checks), single, remarks)


def _sweep(name: str, overrides: list[Override]) -> Sweep:
    node = composed((("sweep", name),))["sweep"]
    if node.get("name") != name:
        raise SettingsError(f"sweep.name: conf/sweep/{name}.yaml says {node.get('name')!r}. Write name: {name}.")
    for override in overrides:
        if override.group == "sweep" and override.path:
            node = put(node, override.path, override.value, override.key)
    sweep = build(node, "sweep")
    assert isinstance(sweep, Sweep)
    for adapter in sweep.per_adapter:
        chosen("adapter", adapter, "sweep.per_adapter")
    return sweep


def _nodes(sweep: Sweep, overrides: list[Override], remarks: list[str]) -> dict[str, dict[str, Node]]:
    """Return group -> file -> node with the overrides in it; a group with one choice has it under `-`."""
    names = {axis: list(dict.fromkeys(n for grid in sweep.grids() for n in grid[axis])) for axis in CHOICES}
    for axis, files in names.items():
        for name in files:
            chosen(axis, name, f"sweep.{axis}")
    nodes: dict[str, dict[str, Node]] = {axis: {} for axis in CHOICES}
    for row in zip_longest(*names.values()):  # as few compositions as the longest axis has files
        row_choices = {axis: name or names[axis][0] for axis, name in zip(names, row, strict=True)}
        config = composed(tuple(row_choices.items()))
        for axis, name in row_choices.items():
            nodes[axis][name] = config[axis]
    config = composed(tuple((o.key, chosen(o.key, o.value)) for o in overrides if o.key in SINGLE))
    nodes |= {group: {"-": config[group]} for group in SINGLE}
    for override in overrides:
        if override.path:
            _override(nodes[override.group], override, remarks)
    return nodes


def _override(nodes: dict[str, Node], override: Override, remarks: list[str]) -> None:
    """Set one key in each file of its group that has it; in all, to be refused, where none has it."""
    having = [name for name, node in nodes.items() if has(node, override.path)] or list(nodes)
    for name in having:
        nodes[name] = put(nodes[name], override.path, override.value, override.key)
    if others := [name for name in nodes if name not in having]:
        remarks.append(f"{override.text} concerns {', '.join(having)}; {', '.join(others)}: no such setting")


def _axes_exist(sweep: Sweep, nodes: dict[str, dict[str, Node]]) -> None:
    """Refuse a dotted axis that no chosen file has."""
    keys = {key for grid in sweep.grids() for key in grid if "." in key}
    keys |= {key for values in sweep.per_adapter.values() for key in values}
    for key in sorted(keys):
        group, _, rest = key.partition(".")
        if group not in CHOICES or not any(has(node, rest.split(".")) for node in nodes[group].values()):
            axes = [group] if group in CHOICES else CHOICES
            known = {f"{axis}.{k}" for axis in axes for node in nodes[axis].values() for k in flat(node) if k != TARGET}
            raise SettingsError(
                f"{key}: the sweep sets it, and no file that it chose has it.{nearest(key, sorted(known))} "
                f"Allowed: {', '.join(sorted(known))}."
            )


def _replaced(sweep: Sweep, overrides: list[Override]) -> list[str]:
    """Say which values of `per_adapter` the user's own values replace."""
    return [
        f"{override.text} replaces the sweep's own {override.key}={values[override.key]} of {adapter}"
        for override in overrides
        for adapter, values in sweep.per_adapter.items()
        if override.key in values and adapter in sweep.adapter
    ]


def _lacking(sweep: Sweep, overrides: list[Override]) -> list[str]:
    """Say which adapters take a setting from conf/ that the sweep gives others one by one, such as a learning rate."""
    adapters = list(dict.fromkeys(name for grid in sweep.grids() for name in grid["adapter"]))
    for_all = {override.key for override in overrides} | set(sweep.axes)
    keys = sorted({key for name in adapters for key in sweep.per_adapter.get(name, {})} - for_all)
    without = {key: [name for name in adapters if key not in sweep.per_adapter.get(name, {})] for key in keys}
    return [
        f"{', '.join(names)}: no {key} in the sweep's per_adapter; the value of conf/ is taken"
        for key, names in without.items()
        if names
    ]


@dataclass(frozen=True)
class _Expansion:
    sweep: Sweep
    nodes: dict[str, dict[str, Node]]
    overridden: frozenset[str]
    data_root: str | None
    checks: Checks
    remarks: list[str]

    def points(self) -> list[Point]:
        """Return the points of all grids, each once; two different ones of one name are an error."""
        grids = self.sweep.grids()
        shown = [axis for axis in ("optimizer", "training") if len({name for grid in grids for name in grid[axis]}) > 1]
        found: dict[str, Point] = {}
        idle = dict(enumerate(self.sweep.exclude))
        for number, grid in enumerate(grids):
            before = len(found)
            for choices, values in self._combinations(grid):
                fitting = self.sweep.excluded_by(choices | values)
                idle = {n: entry for n, entry in idle.items() if n not in fitting}
                if not fitting:
                    point = self._point(choices, values, shown)
                    found.setdefault(canonical([point.choices, point.settings]), point)
            if number and len(found) == before:
                self._remark(f"sweep.include: {self.sweep.include[number - 1]} adds no point")
        self.remarks.extend(f"sweep.exclude: {entry} fits no point" for entry in idle.values())
        if not found:
            raise SettingsError("sweep.exclude: no point of the sweep is left.")
        named: dict[str, Point] = {}
        for point in found.values():
            if (other := named.setdefault(point.title, point)) is not point:
                raise SettingsError(_two_of_one_name(point, other))
        return list(found.values())

    def _combinations(self, grid: Mapping[str, list[Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the choices of files, and with each the values of the other axes."""
        for choices in points({axis: grid[axis] for axis in CHOICES}):
            for values in points(self._applicable(grid, choices)):
                yield choices, values

    def _applicable(self, grid: Mapping[str, list[Any]], choices: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the axes of values that the files of `choices` have; an adapter without rank ignores ranks."""
        settings: Node = {axis: self.nodes[axis][name] for axis, name in choices.items()} | {"seed": None}
        found = {
            axis: values
            for axis, values in grid.items()
            if axis not in CHOICES and has(settings, SIZES.get(axis, axis).split("."))
        }
        if "budget" in grid and self.checks.check(settings["adapter"], "adapter").size:
            return {axis: values for axis, values in found.items() if axis not in SIZES} | {"budget": grid["budget"]}
        return found

    def _point(self, choices: dict[str, Any], values: dict[str, Any], shown: list[str]) -> Point:
        settings: Node = {axis: self.nodes[axis][name] for axis, name in choices.items()}
        own = self.sweep.per_adapter.get(choices["adapter"], {})
        given = {key: value for key, value in own.items() if key not in self.overridden}
        given |= {SIZES.get(axis, axis): value for axis, value in values.items() if axis != "budget"}
        for key, value in given.items():
            settings = put(settings, key.split("."), value, key)
        settings = resolved(settings, self.data_root)
        seed = settings["seed"]
        if type(seed) is not int or seed < 0:
            raise SettingsError(f"seed: must be a whole number of at least 0, got {seed!r}.")
        checked = {axis: _checked(self.checks, settings[axis], axis) for axis in CHOICES}
        if "budget" in values:
            checked["adapter"], said = sized(self.checks, checked, values["budget"], self.overridden)
            self._remark(f"{said} ({choices['adapter']} on {choices['model']})")
        return Point(
            choices=choices,
            settings={axis: one.node for axis, one in checked.items()} | {"seed": settings["seed"]},
            size=checked["adapter"].size,
            label=checked["adapter"].label or choices["adapter"],
            axes={axis: choices[axis] for axis in shown} | {axis: v for axis, v in values.items() if "." in axis},
        )

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


def _checked(checks: Checks, node: Node, where: str) -> Checked:
    """Check one node; what a user must fill in is said by its key."""
    if keys := list(_missing(node, where)):
        raise SettingsError(f"{keys[0]}: needs a value and has none. Say --config overrides='{keys[0]}=...'.")
    return checks.check(node, where)


def _missing(node: object, where: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{where}.{key}")
    elif node == MISSING:
        yield where


def _two_of_one_name(one: Point, other: Point) -> str:
    left, right = flat(one.settings), flat(other.settings)
    differing = sorted(key for key in left | right if left.get(key) != right.get(key))
    said = "; ".join(f"{key}: {left.get(key)} and {right.get(key)}" for key in differing[:5])
    return (
        f"sweep: two points have the one name {one.title!r} and differ in {said}. "
        f"Give them names of their own, or make it an axis: sweep.axes={{{differing[0]}: [...]}}."
    )


def _tasks(nodes: Node, overrides: list[Override], checks: Checks) -> dict[str, Checked]:
    """Return the checked nodes of tasks with the user's values in them."""
    nodes = dict(nodes)
    for override in overrides:
        task, *path = override.path
        if task not in nodes:
            raise SettingsError(
                f"{override.key}: the sweep has no task {task!r}.{nearest(task, list(nodes))} "
                f"Its tasks: {', '.join(nodes)}."
            )
        nodes[task] = put(nodes[task], path, override.value, override.key)
    found = {}
    for name, node in nodes.items():
        if lacking := [part for part in ("data", "generation", "scoring") if not node.get(part)]:
            raise SettingsError(f"task.{name}.{lacking[0]}: conf/task/{name}.yaml must have it.")
        found[name] = _checked(checks, node, f"task.{name}")
    return found
