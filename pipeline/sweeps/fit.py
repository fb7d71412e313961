"""Refuses what cannot run before anything runs: each point of a sweep against its model, tasks and hardware."""

from collections.abc import Iterator

from pipeline.core.leases import visible
from pipeline.core.settings import SettingsError
from pipeline.sweeps.checks import Checks
from pipeline.sweeps.grid import Grid, Point
from pipeline.sweeps.nodes import Node


def check(grid: Grid, checks: Checks) -> None:
    """Refuse a sweep in which a run is bound to fail.

    Raises:
        SettingsError: the key, what was got, what is allowed, what to do.
    """
    _check_single(grid.single)
    for point in grid.points:
        settings = point.settings
        shape = checks.shape(settings["model"])
        if shape is None:
            continue
        asked = (settings[group] for group in ("quantization", "adapter", "optimizer"))
        try:
            found = checks.fit(shape, *asked, settings["training"]["steps"])
        except SettingsError as error:
            raise SettingsError(f"{error} (run {point.title})") from None
        for key, got, allowed in _too_long(grid, point, found["context"]):
            raise SettingsError(
                f"{key}: got {got}, allowed up to {allowed}: {point.model} reads at most {found['context']} tokens. "
                "Lower it, or choose a model with a longer context."
            )


def _check_single(single: Node) -> None:
    """Refuse choices of the whole sweep that contradict each other."""
    states, shown = single["evaluation"]["states"], single["report"]["state"]
    if shown not in states:
        raise SettingsError(
            f"report.state: got {shown!r}, which is not evaluated. Allowed: {', '.join(states)} (evaluation.states)."
        )
    hardware = single["hardware"]
    if hardware["device"] == "cuda" and not hardware["gpus"] and not visible():
        raise SettingsError(
            "hardware.device: got 'cuda' with hardware.gpus=0, and this machine has no GPU. Allowed: cpu, or with "
            "hardware=gpu jobs that ask for one."
        )


def _too_long(grid: Grid, point: Point, context: int | None) -> Iterator[tuple[str, int, int]]:
    """Yield key, value and limit of every length beyond the context of a model (None: it has no limit)."""
    if context is None:
        return
    if (length := point.settings["training"]["max_length"]) > context:
        yield "training.max_length", length, context
    for name in grid.sweep.task:
        generation = grid.tasks[name].node["generation"]
        if (window := generation.get("context") or 0) > context:
            yield f"task.{name}.generation.context", window, context
        if (new := generation.get("max_new_tokens") or 0) >= context:  # a prompt has at least one token
            yield f"task.{name}.generation.max_new_tokens", new, context - 1
