"""The comparison: lines (a base, or a method at one size and format over its seeds) by columns (protocol, rule, state).

It is plain data, kept as `aggregate.json`; tables, figures and report are drawn from it and compute nothing.
"""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Base of the parts of a comparison: immutable plain data."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Part):
    """One number of a protocol: a score by one rule in one state. Two protocols never share a column."""

    task: str
    protocol: str
    role: str
    rule: str
    unit: str
    better: str
    state: str
    leading: bool
    """Whether the rule is the one that speaks for its task in the main table."""

    @property
    def key(self) -> str:
        """Name the column in `Line.cells` and in files."""
        return f"{self.protocol}/{self.rule}/{self.state}"

    def sibling(self, state: str) -> str:
        """Return the key of the column of the same protocol and rule in another state."""
        return f"{self.protocol}/{self.rule}/{state}"

    @property
    def sign(self) -> int:
        """Return 1 where higher is better, -1 where lower is."""
        return 1 if self.better == "higher" else -1


class Cell(Part):
    """One score with its noise.

    `mark` is "best" (apart from every other line of its model), "tie" (best within noise) or "";
    `shift` is "better" or "worse" where a merged state differs from the trained one beyond noise.
    """

    score: float
    low: float
    high: float
    by_seed: dict[str, float]
    items: int
    failures: int
    truncated: int
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    p_best: float | None = None
    mark: str = ""
    shift: str = ""
    p_shift: float | None = None


class Survival(Part):
    """How much of an update one state kept, mean over seeds; None where the update is zero.

    `exact` is the share of sites whose merge changed no code; None where the state has no codes, or makes them anew.
    """

    relative_update: float | None
    survival: float | None
    error: float | None
    exact: float | None = None


class Note(Part):
    """Something about a line that its numbers do not say: a seed that diverged, a record that is missing."""

    status: str
    where: str
    reason: str


class Line(Part):
    """One row of the table; a base has no method."""

    key: str
    model: str
    quantization: str
    adapter: str | None
    method: str
    size_axis: str | None
    size: int | None
    rank: int | None
    variant: str
    seeds: tuple[str, ...]
    folders: tuple[str, ...]
    trained_parameters: int | None
    shipped_parameters: int | None
    kept: tuple[str, ...]
    notes: tuple[Note, ...]
    skipped: dict[str, str]
    survival: dict[str, Survival]
    cells: dict[str, Cell]

    @property
    def is_base(self) -> bool:
        """Return whether this is a base alone."""
        return self.adapter is None

    @property
    def size_text(self) -> str:
        """Return such as `rank 8`, or `rank 4 of 8` for one of the ranks held at once."""
        if self.rank is not None:
            return f"rank {self.rank}" + (f" of {self.size}" if self.size is not None else "")
        return f"{(self.size_axis or '').replace('_', ' ')} {'' if self.size is None else self.size}".strip()

    @property
    def name(self) -> str:
        """Return what a person calls the line, without its model."""
        return ", ".join(part for part in (self.method, self.size_text, self.variant, self.quantization) if part)


class TaskInfo(Part):
    """One evaluation of the comparison."""

    name: str
    protocol: str
    role: str


class Comparison(Part):
    """Everything that the tables and the figures show."""

    name: str
    overrides: tuple[str, ...]
    state: str
    states: tuple[str, ...]
    tasks: tuple[TaskInfo, ...]
    confidence: float
    draws: int
    seed: int
    missing: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    p_pairs: dict[str, dict[str, float]]
    """Corrected p of each pair of lines in the leading target column of each model, by line key."""

    def leading(self, role: str) -> list[Column]:
        """Return the columns of the leading rules of the tasks of one role, states in their order."""
        return [column for column in self.columns if column.leading and column.role == role and column.state != "base"]

    @property
    def target(self) -> Column | None:
        """Return the column that the table is about: the target's leading rule in the shown state."""
        return next((column for column in self.leading("target") if column.state == self.state), None)
