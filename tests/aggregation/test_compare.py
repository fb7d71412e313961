from dataclasses import replace

import numpy as np
import pytest

from pipeline.aggregation import wording
from pipeline.aggregation.compare import compare
from pipeline.aggregation.rows import Evidence, Score
from pipeline.aggregation.settings import Report
from pipeline.aggregation.sweep import Subject, Sweep, TaskPlan
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError

ITEMS = 200


def score(rng, level, state="trained", *, items=ITEMS, better="higher", rank=None):
    item_scores_N = 100.0 * (rng.random(items) < level)
    names = tuple(f"q{i}" for i in range(items))
    return Score("math", "strict", state, rank, item_scores_N.mean(), names, item_scores_N, "%", better, "mean", 0, 0)


def run(name, seed, scores, **fields):
    common = {"folder": f"runs/{name}-s{seed}", "name": f"{name}-s{seed}", "model": "m", "quantization": "none"}
    subject = Subject(**common, records={}, tasks={}, adapter=name, adapter_label=name, seed=seed)
    return Evidence(subject, "", train={"trainable_parameters": 8}, scores=scores, **fields)


def base(scores):
    return Evidence(Subject("bases/m", "m", "m", "none", {}, {}), "", scores=scores)


def compared(evidence, tmp_path, **report):
    tasks = (TaskPlan("math", "math-v1", "target", ("strict",)),)
    states = ("trained", "merged-original")
    sweep = Sweep(tmp_path, tmp_path, "s", (), tasks, states, (), (), {}, Report(draws=400, **report))
    return compare(sweep, evidence)


def cells(comparison, state="trained"):
    return {line.method: line.cells.get(f"math-v1/strict/{state}") for line in comparison.lines}


@pytest.fixture(params=[0, 1, 2])
def rng(request):
    return np.random.default_rng(request.param)


def test_a_clear_winner_is_best_alone(rng, tmp_path):
    evidence = [run(n, s, [score(rng, p)]) for n, p in (("a", 0.3), ("b", 0.9), ("c", 0.5)) for s in (0, 1)]
    assert {name: cell.mark for name, cell in cells(compared(evidence, tmp_path)).items()} == {
        "a": "",
        "b": "best",
        "c": "",
    }


def test_the_lowest_is_best_where_lower_is_better(rng, tmp_path):
    evidence = [run(n, s, [score(rng, p, better="lower")]) for n, p in (("a", 0.2), ("b", 0.9)) for s in (0, 1)]
    assert {name: cell.mark for name, cell in cells(compared(evidence, tmp_path)).items()} == {"a": "best", "b": ""}


def test_ties_are_shown_as_ties(rng, tmp_path):
    evidence = [run(n, s, [score(rng, p)]) for n, p in (("a", 0.2), ("b", 0.8), ("c", 0.8)) for s in (0, 1)]
    found = {name: cell.mark for name, cell in cells(compared(evidence, tmp_path)).items()}
    assert found == {"a": "", "b": "tie", "c": "tie"}


def test_one_seed_names_nobody_best(rng, tmp_path):
    comparison = compared([run(n, 0, [score(rng, p)]) for n, p in (("a", 0.2), ("b", 0.9))], tmp_path)
    assert {cell.mark for cell in cells(comparison).values()} == {""}
    assert comparison.p_pairs == {}


def test_survivors_of_a_divergence_are_never_best(rng, tmp_path):
    evidence = [run(n, s, [score(rng, p)]) for n, p in (("a", 0.1), ("b", 0.7)) for s in (0, 1)]
    evidence += [run("c", 0, [score(rng, 0.99)]), run("c", 1, [], status="diverged", reason="nan")]
    comparison = compared(evidence, tmp_path)
    found = cells(comparison)
    assert (found["b"].mark, found["c"].mark) == ("best", "")
    assert [note.reason for line in comparison.lines for note in line.notes] == ["nan"]


def test_gains_are_paired_with_the_base(rng, tmp_path):
    own = score(rng, 0.4, "base")
    lifted = replace(own, state="trained", item_scores_N=own.item_scores_N + 7, score=own.score + 7)
    cell = cells(compared([base([own]), run("a", 0, [lifted]), run("a", 1, [lifted])], tmp_path))["a"]
    assert (cell.gain, cell.gain_low, cell.gain_high) == pytest.approx((7, 7, 7))
    assert cell.high - cell.low > 5


def test_a_merge_that_changes_the_model_is_marked(rng, tmp_path):
    def merged(seed, level):
        return run("a", seed, [score(rng, 0.9), score(rng, level, "merged-original")])

    worse = compared([merged(0, 0.3), merged(1, 0.3)], tmp_path)
    assert cells(worse, "merged-original")["a"].shift == "worse"
    exact = [score(rng, 0.9) for _ in range(2)]
    same = [run("a", s, [one, replace(one, state="merged-original")]) for s, one in enumerate(exact)]
    cell = cells(compared(same, tmp_path), "merged-original")["a"]
    assert (cell.shift, cell.p_shift) == ("", 1)


def test_ranks_of_one_run_are_lines(rng, tmp_path):
    evidence = [run("a", s, [score(rng, 0.2 * rank, rank=rank) for rank in (1, 4)]) for s in (0, 1)]
    assert [(line.rank, len(line.cells)) for line in compared(evidence, tmp_path).lines] == [(1, 1), (4, 1)]


def test_scores_on_different_items_are_never_compared(rng, tmp_path):
    evidence = [run("a", 0, [score(rng, 0.5)]), run("b", 0, [score(rng, 0.5, items=100)])]
    with pytest.raises(
        RecordError, match=r"math-v1/strict/trained: runs of m were scored on different items .*100, 200"
    ):
        compared(evidence, tmp_path)


def test_each_model_has_its_own_items_and_statistics(rng, tmp_path):
    """Chunks of text are cut by a model's tokenizer, so that two models have as many as they have."""

    def of(model, level, items, drop):
        alone = base([score(rng, level, "base", items=items)])
        found = [alone]
        for name, more in (("a", 0.1), ("b", 0.4)):
            for seed in (0, 1):
                trained = score(rng, level + more, items=items)
                merged = score(rng, level + more - drop, "merged-original", items=items)
                found.append(run(name, seed, [trained, merged]))
        for one in found:
            one.subject = replace(one.subject, model=model, folder=f"{model}/{one.subject.folder}")
        return found

    first, second = of("m", 0.2, ITEMS, 0.0), of("other", 0.5, 150, 0.45)
    together = compared(first + second, tmp_path)
    lines = (*compared(first, tmp_path).lines, *compared(second, tmp_path).lines)
    assert {line.key: line.cells for line in together.lines} == {line.key: line.cells for line in lines}
    assert {line.model: cell.items for line in together.lines for cell in line.cells.values()} == {
        "m": ITEMS,
        "other": 150,
    }
    assert wording.head(together)[0] == "math-v1 (target): n = 200 on m, n = 150 on other; strict (% ↑)"
    marks = {line.cells["math-v1/strict/trained"].mark for line in together.lines if line.method == "b"}
    assert marks == {"best"}


def test_a_state_that_is_not_scored_cannot_be_shown(tmp_path):
    with pytest.raises(SettingsError, match=r"report.state: must be .*got 'merged-origial'.*'merged-original'"):
        compared([], tmp_path, state="merged-origial")


def test_a_gain_is_against_the_base_that_the_run_stands_on(rng, tmp_path):
    """Two bases of one model and format, such as two block sizes, are two lines."""
    evidence = []
    for name, level in (("b32", 0.2), ("b1024", 0.6)):
        alone = base([score(rng, level, "base")])
        alone.subject = replace(alone.subject, folder=f"bases/{name}", base=f"bases/{name}")
        tuned = run("lora", 0, [score(rng, 0.9)])
        settings = {"quantization": {"block_size": name}}
        tuned.subject = replace(tuned.subject, folder=f"runs/{name}", base=f"bases/{name}", settings=settings)
        evidence += [alone, tuned]
    lines = compared(evidence, tmp_path).lines
    bases = {line.folders[0]: line for line in lines if line.is_base}
    assert len(bases) == 2
    for line in lines:
        if not line.is_base:
            own = bases["bases/" + line.folders[0].removeprefix("runs/")]
            cell, start = line.cells["math-v1/strict/trained"], own.cells["math-v1/strict/base"]
            assert cell.gain == pytest.approx(cell.score - start.score)
