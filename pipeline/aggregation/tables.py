"""Renders the sheets: Markdown, LaTeX (booktabs), CSV of plain numbers, and text for a terminal."""

import csv
import io
from textwrap import wrap

from pipeline.aggregation import layout, wording
from pipeline.aggregation.comparison import Comparison, Line
from pipeline.aggregation.layout import Entry, Sheet
from pipeline.aggregation.wording import MARKS, MINUS


def markdown(comparison: Comparison) -> str:
    """Return the comparison table, its details and its notes as Markdown."""
    first = layout.main(comparison)
    parts = [f"# {first.title}", _bullets(wording.head(comparison)), _markdown(first)]
    parts.append(_bullets(wording.legend(comparison)))
    reasons = wording.notes(comparison)
    if reasons:
        parts += ["## Notes", _bullets(reasons)]
    if comparison.missing:
        parts += ["## Missing", _bullets(comparison.missing)]
    for sheet in [*layout.details(comparison), layout.survival(comparison)]:
        if sheet is not None:
            parts += [f"## {sheet.title}", _markdown(sheet)]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """Return the tables as LaTeX `table*` environments; they need the packages booktabs and graphicx."""
    first = layout.main(comparison)
    caption = [*wording.head(comparison), *wording.legend(comparison), *wording.notes(comparison)]
    tables = [_latex(first, [first.title + ".", *caption])]
    for sheet in [*layout.details(comparison), layout.survival(comparison)]:
        if sheet is not None:
            tables.append(_latex(sheet, [sheet.title + "."]))
    return "% Needs \\usepackage{booktabs,graphicx}\n" + "\n".join(tables)


def text(comparison: Comparison) -> str:
    """Return the comparison table for a terminal, headings stacked."""
    sheet = layout.main(comparison)
    heads = [[part for line in heading.lines for part in wrap(line, 14)] for heading in sheet.headings]
    height = max(map(len, heads))
    cells = [[([""] * (height - len(head)) + head)[k] for head in heads] for k in range(height)]
    cells += [[_marked(entry) for entry in row.entries] for row in sheet.rows]
    lines = _aligned(cells, sheet)
    rule = "-" * len(lines[0])
    lines = [*(line.rstrip() for line in lines[:height]), rule, *(line.rstrip() for line in lines[height:])]
    return "\n".join(
        [*wording.head(comparison), "", *lines, "", *wording.legend(comparison), *wording.notes(comparison)]
    )


def table_csv(comparison: Comparison) -> bytes:
    """Return one row per line of the table and plain numbers of every rule in every state."""
    found = io.StringIO()
    columns = [column for column in comparison.columns if column.state != "base"]
    rows = [_plain(comparison, line) for line in comparison.lines]
    names = [*IDENTITY, *(f"{column.key} {part}" for column in columns for part in PARTS)]
    writer = csv.DictWriter(found, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return found.getvalue().encode()


IDENTITY = (
    "model", "method", "adapter", "size_axis", "size", "rank", "weights", "settings", "seeds", "trained_parameters",
    "shipped_parameters", "remarks",
)  # fmt: skip
PARTS = ("score", "low", "high", "seeds", "items", "gain", "gain_low", "gain_high", "mark", "shift")


def _plain(comparison: Comparison, line: Line) -> dict[str, object]:
    row: dict[str, object] = {
        "model": line.model, "method": line.method, "adapter": line.adapter, "size_axis": line.size_axis,
        "size": line.size, "rank": line.rank, "weights": line.quantization, "settings": line.variant,
        "seeds": " ".join(line.seeds), "trained_parameters": line.trained_parameters,
        "shipped_parameters": line.shipped_parameters, "remarks": "; ".join(wording.remarks(line)),
    }  # fmt: skip
    for column in comparison.columns:
        cell = line.cells.get(column.sibling("base") if line.is_base else column.key)
        if cell is not None and column.state != "base":
            numbers = cell.model_dump(include=set(PARTS)) | {"seeds": len(cell.by_seed)}
            row |= {f"{column.key} {part}": numbers[part] for part in PARTS}
    return row


def _marked(entry: Entry) -> str:
    return " ".join(part for part in (entry.text, MARKS[entry.mark], MARKS[entry.shift]) if part)


def _aligned(cells: list[list[str]], sheet: Sheet, gap: str = "  ") -> list[str]:
    widths = [max(len(row[k]) for row in cells) for k in range(len(sheet.headings))]
    return [
        gap.join(
            one.rjust(width) if heading.numeric else one.ljust(width)
            for one, width, heading in zip(row, widths, sheet.headings, strict=True)
        )
        for row in cells
    ]


def _bullets(sentences: list[str] | tuple[str, ...]) -> str:
    return "\n".join(f"- {_escaped(sentence)}" for sentence in sentences)


def _escaped(words: str) -> str:
    """Escape what Markdown would read as a table, emphasis or a tag."""
    for sign in "\\|*<_":
        words = words.replace(sign, f"\\{sign}")
    return words.replace("\n", " ")


def _markdown(sheet: Sheet) -> str:
    def entry(one: Entry) -> str:
        said = _escaped(_marked(one))
        return f"**{said}**" if one.mark == "best" else said

    heads = ["<br>".join(_escaped(part) for part in heading.lines if part) for heading in sheet.headings]
    cells = [heads, *([entry(one) for one in row.entries] for row in sheet.rows)]
    lines = [f"| {line} |" for line in _aligned(cells, sheet, gap=" | ")]
    widths = [len(part) for part in lines[0][2:-2].split(" | ")]
    under = [
        "-" * (width - 1) + ":" if heading.numeric else ":" + "-" * (width - 1)
        for width, heading in zip(widths, sheet.headings, strict=True)
    ]
    return "\n".join([lines[0], f"| {' | '.join(under)} |", *lines[1:]])


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", MINUS: r"$-$", "≈": r"$\approx$",
    "★": r"$\star$",
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "‖": r"$\Vert$", "Δ": r"$\Delta$", "…": r"\ldots{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _tex(words: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in words)


def _latex(sheet: Sheet, caption: list[str]) -> str:
    def entry(one: Entry) -> str:
        return rf"\textbf{{{_tex(_marked(one))}}}" if one.mark == "best" else _tex(_marked(one))

    heads = [" & ".join(_tex(heading.lines[k]) for heading in sheet.headings) + r" \\" for k in range(3)]
    body = []
    for before, row in zip([None, *sheet.rows], sheet.rows, strict=False):
        if before is not None and before.line.is_base and not row.line.is_base:
            body.append(r"\midrule")
        body.append(" & ".join(entry(one) for one in row.entries) + r" \\")
    columns = "".join("r" if heading.numeric else "l" for heading in sheet.headings)
    return "\n".join([
        r"\begin{table*}", r"\centering", rf"\caption{{{_tex(' '.join(caption))}}}", rf"\label{{tab:{sheet.name}}}",
        r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *heads, r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}}", r"\end{table*}", "",
    ])  # fmt: skip
