"""Settings of evaluation that hold for all tasks. Light: read by every plan."""

from typing import Literal

from pydantic import Field

from pipeline.core.settings import Settings


class Evaluation(Settings):
    """Which states of a fine-tune are scored, and in what arithmetic."""

    states: tuple[str, ...] = Field(min_length=1, description="of pipeline/models/states.py")
    precision: Literal["fp32", "bf16"] = Field(description="compute dtype of every forward")
