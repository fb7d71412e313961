"""What the tables and the report say in words: the head, the legend, the notes, and how noise was computed."""

from pipeline.aggregation.comparison import Comparison, Line, TaskInfo

STATUS_WORDS = {"diverged": "diverged", "oom": "out of memory", "missing": "missing"}
ARROWS = {"higher": "↑", "lower": "↓"}
MINUS = "\N{MINUS SIGN}"
MARKS = {"": "", "failed": "", "best": "★", "tie": "≈", "better": "▲", "worse": "▼"}


def head(comparison: Comparison) -> list[str]:
    """Return the sentences above a table: what it is, what is missing, which protocols, states, n and seeds."""
    runs = [line for line in comparison.lines if not line.is_base]
    repeated = f"{seeds({len(line.seeds) for line in runs})} a line" if runs else "no runs"
    told = []
    if comparison.missing:
        told.append(
            f"PARTIAL TABLE: {lacking(comparison)} (listed below); lines without all of their seeds are not ranked."
        )
    told += [_protocol(comparison, task) for task in comparison.tasks]
    told.append(
        f"States scored: {', '.join(comparison.states)}; each column names its own; a base alone has no adapter and "
        f"shows its one score. {_count(len(runs), 'line')}, {repeated}."
    )
    told.append(
        f"Scores are means over seeds ± half of the {comparison.confidence:.0%} interval (bootstrap over items and "
        f"seeds, {comparison.draws} draws); gains are against the base alone in the same format, on the same items."
    )
    if comparison.overrides:
        told.append(f"Overrides: {' '.join(comparison.overrides)}")
    return told


def lacking(comparison: Comparison) -> str:
    """Return how many records a complete table would need."""
    count = len(comparison.missing)
    return "1 record is missing or does not fit" if count == 1 else f"{count} records are missing or do not fit"


def legend(comparison: Comparison) -> list[str]:
    """Return what the marks mean."""
    alpha = f"{1 - comparison.confidence:.2g}"
    if not any(cell.mark for line in comparison.lines for cell in line.cells.values()):
        ranked = "No line is marked best: that needs two complete lines, and more than one seed to know what is noise."
    else:
        ranked = (
            f"{MARKS['best']} best, apart from every other line of its model (p < {alpha}, Holm-corrected over all "
            f"pairs of the column); {MARKS['tie']} best within noise: these lines cannot be told from the best."
        )
    moved = (
        f"{MARKS['worse']} {MARKS['better']} worse or better than the same runs as trained (p < {alpha}, "
        "Holm-corrected over the lines of a model); unmarked merged states do not differ from the trained ones beyond "
        "noise."
    )
    return [ranked, moved] if len(comparison.states) > 1 else [ranked]


def noise(comparison: Comparison) -> list[str]:
    """Return, a paragraph each, what is taken for noise and how it was computed."""
    level = f"{comparison.confidence:.0%}"
    return [
        "Two things would differ if everything were done again: the items of the test and the seeds of the runs. Both "
        "are treated as drawn from many, crossed with each other; items times seeds are never counted as so many "
        "independent numbers.",
        f"Intervals: {level} percentile bootstrap, {comparison.draws} draws (seed {comparison.seed}) of items with "
        "replacement and, apart from them, of seeds, one less than there are, which makes the variance between seeds "
        "unbiased. All lines share the same draws of items, so gains are paired. In simulations, intervals of 95 % "
        "cover the truth in 96-100 % of cases where seeds vary no more than items do; where seeds vary four times as "
        "much, in 82 % with 2 seeds, 91 % with 3, 94 % with 5. A score of exactly 0 or 100 has an interval of no "
        "width; with n items, up to 3/n may hide behind it.",
        "Who differs from whom: a t test of the mean difference on the same items. Its variance adds that over items "
        "to that over seeds, with Welch and Satterthwaite's degrees of freedom; a line's spread between seeds is the "
        "larger of its own and the typical (median) one of the column, since one or two seeds alone say little. All "
        "pairs of a column are corrected together (Holm), so the best line may be picked after looking. In simulations "
        "without any difference, some line is called worse than another in at most 5 % of tables with two seeds or "
        "more; with one seed in up to all of them, therefore tables of one seed name no best line.",
        "Perplexities are tested and bootstrapped as mean negative log-likelihoods of chunks, then exponentiated. "
        "Lines in which a seed diverged or ran out of memory show the mean of the survivors and are never best.",
    ]


def remarks(line: Line) -> list[str]:
    """Return, in a few words each, what a reader must know beside the numbers of a line."""
    found = []
    for status in dict.fromkeys(note.status for note in line.notes):
        runs = {note.where for note in line.notes if note.status == status}
        seeds = f"{len(runs)} of {len(line.seeds)} seeds " if line.seeds else ""
        found.append(f"{seeds}{STATUS_WORDS[status]}")
    if line.kept:
        found.append(f"code kept: {', '.join(line.kept)}")
    return found


def notes(comparison: Comparison) -> list[str]:
    """Return the reasons behind the remarks, one sentence each, equal ones once."""
    lines = comparison.lines
    found = [f"{note.where}: {STATUS_WORDS[note.status]}: {note.reason}" for line in lines for note in line.notes]
    skipped = [
        f"n/a in {state} on {line.quantization}: {reason}"
        for line in lines
        for state, reason in line.skipped.items()
        if state in comparison.states
    ]
    kept = [
        f"{line.name}: made by earlier code, kept on request ({', '.join(line.kept)})" for line in lines if line.kept
    ]
    return list(dict.fromkeys(found + skipped + kept))


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Return a number with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", MINUS)


def _protocol(comparison: Comparison, task: TaskInfo) -> str:
    """Return such as `gsm8k-0shot-demo-v1 (target): n = 500; strict (% ↑), flexible (% ↑)`."""
    columns = [column for column in comparison.columns if column.task == task.name]
    items = {line.model: line.cells[c.key].items for c in columns for line in comparison.lines if c.key in line.cells}
    of_all = {f"n = {count}" for count in items.values()}
    counts = of_all if len(of_all) == 1 else [f"n = {count} on {model}" for model, count in items.items()]
    rules = dict.fromkeys(f"{one.rule} ({one.unit} {ARROWS[one.better]})" for one in columns)
    counted = f"{', '.join(counts)}; {', '.join(rules)}" if items else "nothing scored yet"
    return f"{titled(task)}: {counted}"


def titled(task: TaskInfo) -> str:
    """Return the protocol with the role it plays, where it plays one."""
    return task.protocol if task.role == "other" else f"{task.protocol} ({task.role})"


def seeds(counts: set[int]) -> str:
    """Return the numbers of seeds that there are, as "1 or 2 seeds"."""
    return f"{' or '.join(map(str, sorted(counts)))} seed{'' if counts == {1} else 's'}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
