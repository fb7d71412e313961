"""Comparison tables of quantized parameter-efficient fine-tuning; `pipeline.adapt` for Python without a workflow."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `adapt`. Late, and by a name that no code digest follows: stages never call it."""
    if name != "adapt":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.core.settings import imported  # noqa: PLC0415  (the package itself must load nothing)

    return imported("pipeline.models.wrap").adapt
