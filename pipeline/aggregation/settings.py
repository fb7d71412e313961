"""What a report shows and how its noise is computed."""

from pydantic import Field

from pipeline.core.settings import Settings


class Report(Settings):
    """Settings of the tables, figures and report; none of them touches a score."""

    state: str = "trained"
    """The state shown in the columns beside the target's score; the target is shown in every state."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals; two lines differ when their corrected p is below 1 - confidence."""
    draws: int = Field(default=2000, ge=100)
    """Bootstrap draws."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap draws."""
    samples: int = Field(default=6, ge=0)
    """Test items whose replies the report shows side by side."""
