import csv
import io

import pytest

from pipeline.aggregation import layout, tables, wording
from pipeline.aggregation.compare import compare
from pipeline.aggregation.figures import draw
from pipeline.aggregation.rows import collect
from pipeline.aggregation.sweep import load
from tests.aggregation.made_up import SMALL, STATES


def compared(plan):
    sweep = load(plan)
    return compare(sweep, collect(sweep))


@pytest.fixture(scope="module")
def comparison(demo):
    return compared(demo)


def test_the_head_says_protocols_states_items_and_seeds(comparison):
    head = "\n".join(wording.head(comparison))
    for said in ("gsm8k-0shot-demo-v1 (target): n = 150; strict (% ↑), flexible (% ↑)", "ppl-256-demo-v1: n = 40"):
        assert said in head
    assert all(state in head for state in STATES)
    assert "20 lines, 2 seeds a line" in head
    assert "95% interval" in head
    assert "PARTIAL" not in head


def test_every_column_is_one_protocol_one_rule_one_state(comparison):
    keys = [column.key for column in comparison.columns]
    assert len(set(keys)) == len(keys)
    headings = [heading.lines for heading in layout.main(comparison).headings if heading.marked]
    assert len(set(headings)) == len(headings) == 3 + 3
    assert {protocol for protocol, _, _ in headings} == {task.protocol for task in comparison.tasks}
    assert {state for _, _, state in headings} == set(STATES)


def test_every_rule_in_every_state_stands_somewhere(comparison):
    sheets = layout.details(comparison)
    shown = {heading.lines for sheet in sheets for heading in sheet.headings if heading.marked}
    assert len(shown) == 3 * (2 + 2 + 1 + 4)
    failures = [heading.lines[0] for heading in sheets[0].headings if heading.lines[1] == "%"]
    assert failures == ["no answer found, strict", "cut short", "no answer found, flexible"]


def test_bases_come_first_then_method_size_and_format(comparison):
    names = [line.name for line in comparison.lines]
    assert names[:4] == ["base alone, none", "base alone, nf4-double", "LoRA, rank 2, none", "LoRA, rank 2, nf4-double"]
    assert names[6:9] == ["DyLoRA, rank 1 of 8, none", "DyLoRA, rank 1 of 8, nf4-double", "DyLoRA, rank 2 of 8, none"]
    assert len(names) == 2 + 4 + 8 + 4 + 4


def test_what_ships_and_what_was_trained(comparison):
    (parameters,) = [k for k, h in enumerate(layout.main(comparison).headings) if h.lines[0] == "trained parameters"]
    texts = {row.line.name: row.entries[parameters].text for row in layout.main(comparison).rows}
    assert texts["LoRA, rank 2, none"] == "1,024"
    assert texts["DyLoRA, rank 2 of 8, none"] == "1,024 of 4,096"
    assert texts["base alone, none"] == "0"


@pytest.mark.parametrize("render", [tables.markdown, tables.latex, tables.text])
def test_what_went_wrong_is_in_every_table(comparison, render):
    found = render(comparison).replace("\\", "")
    assert "2 of 2 seeds diverged" in found
    assert "1 of 2 seeds diverged" in found
    assert "the loss is not finite" in found
    assert "the base is not quantized" in found
    assert "code kept: finetune" in found
    assert "(1/2)" in found


def test_no_bold_within_noise(comparison):
    marks = [cell.mark for line in comparison.lines for cell in line.cells.values()]
    assert marks.count("tie") > 5
    assert tables.markdown(comparison).count("**") == 2 * tables.latex(comparison).count(r"\textbf{")
    bold = sum(entry.mark == "best" for sheet in sheets(comparison) for row in sheet.rows for entry in row.entries)
    assert tables.latex(comparison).count(r"\textbf{") == bold


def sheets(comparison):
    return [layout.main(comparison), *layout.details(comparison), layout.survival(comparison)]


def test_csv_has_plain_numbers_of_every_cell(comparison):
    rows = list(csv.DictReader(io.StringIO(tables.table_csv(comparison).decode())))
    assert len(rows) == len(comparison.lines)
    for row, line in zip(rows, comparison.lines, strict=True):
        for key, cell in line.cells.items():
            if not line.is_base:
                assert float(row[f"{key} score"]) == cell.score
                assert float(row[f"{key} low"]) <= cell.score <= float(row[f"{key} high"])
                assert row[f"{key} mark"] == cell.mark
    assert rows[0]["gsm8k-0shot-demo-v1/strict/trained score"]
    assert [row["remarks"] for row in rows if row["method"] == "AdaLoRA"][2] == "2 of 2 seeds diverged"


def test_markdown_tables_are_tables(comparison):
    blocks = [block.splitlines() for block in tables.markdown(comparison).split("\n\n") if block.startswith("| ")]
    assert len(blocks) == 1 + 4 + 1
    for block in blocks:
        assert len({line.replace(r"\|", "").count("|") for line in block}) == 1
        assert set(block[1]) <= set("|-: ")


def test_latex_is_balanced(comparison):
    found = tables.latex(comparison)
    assert found.count(r"\begin{table*}") == found.count(r"\end{table*}") == 6
    for line in found.splitlines():
        bare = line.replace(r"\{", "").replace(r"\}", "")
        if r"\resizebox" not in line and r"\end{tabular}}" not in line:
            assert bare.count("{") == bare.count("}"), line
    assert not [line for line in found.splitlines() if "%" in line.replace(r"\%", "") and not line.endswith(("%", "}"))]
    assert found.isascii()


def test_a_partial_table_says_so_and_lists_what_is_missing(make):
    missing, stale = "tiny-nf4-double-lora-rank-2-s1", "tiny-nf4-double-dylora-rank-8-s0"
    comparison = compared(make(**SMALL, missing={missing}, stale={stale}))
    assert len(comparison.missing) == 2
    found = tables.markdown(comparison)
    assert "PARTIAL TABLE: 2 records are missing or do not fit" in found
    assert f"{missing}: runs/{missing}-00000000/train.json: there is no such record." in found.replace("\\", "")
    assert "was made with other settings than this sweep's" in found
    by_name = {line.name: line for line in comparison.lines}
    partial = by_name["LoRA, rank 2, nf4-double"]
    assert [note.status for note in partial.notes] == ["missing"]
    assert {cell.mark for cell in partial.cells.values()} == {""}
    assert "DyLoRA, rank 1 of 8, nf4-double" in by_name


def test_a_sweep_of_which_nothing_ran_has_a_table_too(make):
    names = {
        f"tiny-nf4-double-{point}-s{s}" for s in (0, 1) for point in ("lora-rank-2", "lora-rank-8", "dylora-rank-8")
    }
    comparison = compared(make(**SMALL, missing=names))
    assert len(comparison.missing) == 6
    assert "2 of 2 seeds missing" in tables.markdown(comparison)
    assert "base alone" in tables.text(comparison)


def test_a_sweep_of_which_everything_diverged_shows_its_bases(make):
    names = {
        f"tiny-nf4-double-{point}-s{s}" for s in (0, 1) for point in ("lora-rank-2", "lora-rank-8", "dylora-rank-8")
    }
    comparison = compared(make(**SMALL, diverged=names))
    assert comparison.missing == ()
    rows = {row.line.name: [entry.text for entry in row.entries] for row in layout.main(comparison).rows}
    assert rows["LoRA, rank 2, nf4-double"].count("diverged") == 5
    assert sum("±" in text for text in rows["base alone, nf4-double"]) == 3
    assert draw(comparison, {}, [])


def test_survival_is_shown_for_every_merged_state(comparison):
    texts = {row.line.name: [entry.text for entry in row.entries[3:]] for row in layout.survival(comparison).rows}
    assert texts["LoRA, rank 2, nf4-double"] == ["8.00", "100.0", "62.0"]
    assert texts["LoRA, rank 2, none"] == ["8.00", "100.0", "n/a"]
    assert texts["DyLoRA, rank 1 of 8, nf4-double"] == ["", "no update", "no update"]
    assert texts["AdaLoRA, rank 8, none"] == ["", "", ""]


def test_decimals_follow_the_interval(comparison):
    assert layout._places(4.2) == 1
    assert layout._places(0.35) == 2
    assert layout._places(0.012) == 3
    assert layout._places(0) == 1
    assert wording.number(-1.25, 1) == "\N{MINUS SIGN}1.2"
    assert wording.number(3.0, 1, signed=True) == "+3.0"
