"""Settings of evaluation that hold for all tasks. Light: read by every plan."""

from typing import Literal

from pydantic import Field, field_validator

from pipeline.core.settings import Settings, nearest

STATES = ("trained", "merged-original", "merged-dequantized", "requantized-original", "requantized-dequantized")
"""What a fine-tune can be scored as; pipeline/models/states.py says what each is."""


class Evaluation(Settings):
    """Which states of a fine-tune are scored, and in what arithmetic."""

    states: tuple[str, ...] = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = Field(description="compute dtype of every forward")

    @field_validator("states")
    @classmethod
    def _known(cls, states: tuple[str, ...]) -> tuple[str, ...]:
        for index, state in enumerate(states):
            if state not in STATES:
                raise ValueError(
                    f"there is no state {state!r}.{nearest(state, list(STATES))} Allowed: {', '.join(STATES)}"
                )
            if state in states[:index]:
                raise ValueError(f"every state may be named once, {state!r} is there twice")
        return states
