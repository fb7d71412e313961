"""The committed matrix is whole, has no hole that is not allowed, and is what the cells do today."""

import pytest

from pipeline.core import records
from tests.matrix import page, run
from tests.matrix.bases import ARCHITECTURES
from tests.matrix.cell import DEFECT, OK, REFUSED, tried

RECORD = records.read(run.RECORD, "matrix")
CELLS = {cell[:3]: cell[3] for cell in page.cells(RECORD)}
QUANTIZED = set(run.FORMATS) - {"none"}
SLICED = ("gpt2", "falcon-old", "falcon-new")
"""By slices of fused projections; what takes a part out of a weight takes it out of the whole one."""
NOT_MERGED = ("houlsby", "pfeiffer", "adamix-houlsby", "meft", "norm-tuning")
"""A nonlinearity, a norm, or streams between blocks: nothing that the weight of a linear layer could hold."""
# Each architecture meets each format, and each adapter both of them: every pair, in a ninth of the cube.
PAIRS = [
    pytest.param(adapter, format_, architecture, marks=[] if format_ == "nf4" else [pytest.mark.slow])
    for one, adapter in enumerate(run.ADAPTERS)
    for other, format_ in enumerate(run.FORMATS)
    for architecture in [list(ARCHITECTURES)[(one + other) % len(ARCHITECTURES)]]
]


def allowed(adapter: str, format_: str, architecture: str, step: str) -> bool:
    """Say whether a method may refuse; whatever else is refused is a defect."""
    if step != "train":
        return step in ("absorb", "peft") or adapter in NOT_MERGED
    if adapter in ("full", "last-layers"):
        return format_ in QUANTIZED
    return (adapter, format_) == ("loftq", "none") or (adapter in ("loftq", "pissa") and architecture in SLICED)


def test_the_record_has_every_cell_of_the_files_that_there_are():
    every = {(a, f, m) for a in run.ADAPTERS for f in run.FORMATS for m in ARCHITECTURES}
    assert set(CELLS) == every, "run `make matrix`"


def test_no_cell_has_a_defect_and_none_refuses_what_it_may_not():
    for (adapter, format_, architecture), told in CELLS.items():
        for step, outcome in told.items():
            assert not outcome.startswith(DEFECT)
            assert outcome == OK or outcome.startswith(REFUSED)
            assert outcome == OK or allowed(adapter, format_, architecture, step), (
                adapter,
                format_,
                architecture,
                step,
                outcome,
            )


def test_scales_of_rows_and_group_constants_ship_as_trained():
    """What the base's own codes can take, they take, slices of fused projections included; scales of columns never."""
    for (adapter, format_, _), told in CELLS.items():
        if adapter == "qa-lora" and format_ == "int4-affine":
            assert told["absorb"] == OK
        if adapter == "ia3" and format_ in ("nf4", "fp4", "int4", "int4-affine", "int8"):
            assert told["absorb"] == OK or "scale of columns" in told["absorb"]
            assert "slices" not in told["absorb"]


def test_the_page_is_made_of_the_record():
    assert run.PAGE.read_text(encoding="utf-8") == page.page(RECORD), "run `make matrix`"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("adapter", "format_", "architecture"), PAIRS)
def test_a_cell_does_what_the_record_says(adapter, format_, architecture):
    assert tried(run.ADAPTERS[adapter], run.FORMATS[format_], architecture) == CELLS[adapter, format_, architecture]


def test_pairs_are_covered():
    cells = [param.values for param in PAIRS]
    axes = (run.ADAPTERS, run.FORMATS, ARCHITECTURES)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len({(cell[one], cell[other]) for cell in cells}) == len(axes[one]) * len(axes[other])
