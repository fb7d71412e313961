"""The choice of a rank or a method: found on dev, held against test, and refused where dev was never scored."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.aggregation.choose import Behind, choose, said
from pipeline.aggregation.contenders import contest
from pipeline.core import records
from pipeline.core.records import RecordError
from tests.aggregation.made_up import ADAPTERS, SMALL, TASKS, Maker, Plan, rewrite

DEV = ("gsm8k-demo-dev", "gsm8k-0shot-demo-v1-dev", "target", 200)
RUN = "tiny-nf4-double-dylora-rank-8-s0"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    plan = Plan(**SMALL | {"tasks": [TASKS[0], DEV], "price_per_hour": 3.6})
    return Maker(tmp_path_factory.mktemp("choose") / "results", plan).make().parents[2]


@pytest.fixture
def made(made_once, tmp_path):
    return shutil.copytree(made_once, tmp_path / "results")


def means(results, name, task, rule="strict"):
    """Item scores (seeds, items) by rank of a run, or of a line's runs."""
    found = {}
    for path in sorted(results.glob(f"runs/{name}*/score/*.json")):
        for label, of in records.read(path).result["tasks"][task]["rules"][rule]["states"].items():
            if label.startswith("trained"):
                found.setdefault(label, []).append(of["per_item"])
    return {label: np.array(each) for label, each in found.items()}


@pytest.mark.parametrize("within", [0.0, 1.0, 12.0, 100.0])
def test_the_smallest_rank_whose_interval_ends_within_reach_is_chosen(made, within):
    choice = choose(contest(made, RUN), within)
    ranks = [one.line.rank for one in choice.contest.contenders]
    assert ranks == [1, 2, 4, 8]
    dev = {int(label.partition("@r")[2]): scores for label, scores in means(made, RUN, "gsm8k-demo-dev").items()}
    best = max(ranks, key=lambda rank: dev[rank].mean())
    assert choice.best.line.rank == best
    reach = []
    for rank, gap in zip(ranks, choice.behind, strict=True):
        difference = (dev[best] - dev[rank])[0]
        assert gap.by == pytest.approx(difference.mean(), abs=1e-5)
        half = 1.96 * difference.std() / len(difference) ** 0.5
        assert (gap.high - gap.low) / 2 == pytest.approx(half, rel=0.15, abs=1e-9)
        reach += [rank] if gap.high <= within else []
    assert choice.chosen.line.rank == reach[0]
    test = means(made, RUN, "gsm8k-demo")
    difference = (test[f"trained@r{best}"] - test[f"trained@r{reach[0]}"]).mean()
    assert choice.on_test.by == pytest.approx(difference, abs=1e-5)


def test_test_rows_do_not_take_part_in_the_choice(made):
    before = choose(contest(made, RUN), 20.0)
    path = next(made.glob(f"runs/{RUN}*/score/*.json"))
    old = records.read(path)
    states = old.result["tasks"]["gsm8k-demo"]["rules"]["strict"]["states"]
    chosen = f"trained@r{before.chosen.line.rank}"
    states[chosen] |= {"per_item": [0.0] * len(states[chosen]["per_item"]), "score": 0.0}
    rewrite(path, result=old.result)
    after = choose(contest(made, RUN), 20.0)
    assert (after.chosen.line.name, after.behind) == (before.chosen.line.name, before.behind)
    assert after.chosen is not after.best
    assert after.verdict == "refuted"
    assert "REFUTED on test" in said(after)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-1, 0.5, "confirmed"), (0.5, 3, "open"), (1.5, 3, "refuted"), (0, 1, "confirmed")]
)
def test_verdicts(made, low, high, verdict):
    choice = choose(contest(made, RUN), 20.0)
    assert replace(choice, within=1.0, on_test=Behind((low + high) / 2, low, high)).verdict == verdict
    assert replace(choice, chosen=choice.best).verdict == "itself"


def test_of_a_sweep_the_line_that_holds_the_fewest_bytes_is_chosen_over_its_seeds(make):
    plan = make(
        adapters={"lora": ADAPTERS["lora"]}, tasks=[(*TASKS[0][:3], 60), (*DEV[:3], 60)],
        diverged={"tiny-nf4-double-lora-rank-2-s1"},
    )  # fmt: skip
    choice = choose(contest(plan.parents[2], "demo"), 100.0)
    names = [one.line.name for one in choice.contest.contenders]
    assert names == ["LoRA, rank 2, none", "LoRA, rank 8, none", "LoRA, rank 8, nf4-double"], "who diverged is out"
    assert choice.chosen.line.name == "LoRA, rank 8, nf4-double"
    assert set(choice.chosen.dev) == {"0", "1"}
    assert "no prices" in said(choice).lower()


def test_it_is_printed_with_costs_and_kept(made, tmp_path, capsys):
    output = tmp_path / "choice.json"
    words = ["choose", RUN, "--within", "12", "--results", str(made), "--output", str(output)]
    assert main(words) == 0
    told = capsys.readouterr().out
    for word in (
        "adapter",
        "weights",
        "s for 1000",
        "price of 1000",
        "0.002",
        "test: gsm8k-0shot-demo-v1, n = 500",
        "1 seed",
    ):
        assert word in told
    assert "It is the best itself" in told
    kept = records.read(output, "choose").result
    four = next(one for one in kept["contenders"] if one["rank"] == 4)
    assert (four["adapter"], four["weights"], four["serving"]) == (2048 * 4, 300_000 + 2048 * 4, pytest.approx(2.0))
    assert f"Chosen: {kept['chosen']}" in told
    first = output.read_bytes()
    assert main(words) == 0
    assert output.read_bytes() == first


def test_without_dev_scores_it_prints_the_command_that_makes_them(small, capsys):
    assert main(["choose", RUN, "--within", "1", "--results", str(small.parents[2])]) == 1
    told = capsys.readouterr().err
    assert "nothing was scored on dev by gsm8k-0shot-demo-v1" in told
    command = (
        "snakemake --cores all --config sweep=demo overrides='task.gsm8k-demo.generation.split=dev "
        "task.gsm8k-demo.generation.id=gsm8k-0shot-demo-v1-dev'"
    )
    assert command in told


def test_another_protocol_on_dev_is_no_dev_of_this_one(made):
    for path in made.glob("runs/*/evaluate/gsm8k-demo-dev-*.json"):
        old = records.read(path)
        old.settings["task"]["generation"]["max_new_tokens"] = 8
        rewrite(path, settings=old.settings)
    with pytest.raises(RecordError, match="nothing was scored on dev"):
        contest(made, RUN)


def test_a_missing_score_is_named(made):
    next(made.glob(f"runs/{RUN}*/score/*.json")).unlink()
    with pytest.raises(RecordError, match=rf"records are missing(.|\n)*{RUN}: runs/{RUN}\S*/score/tasks-"):
        contest(made, RUN)


def test_a_name_that_is_none_and_a_margin_that_is_none_are_refused(made, capsys):
    assert main(["choose", "tiny-nf4-double-dylora-rank-9", "--within", "1", "--results", str(made)]) == 1
    assert f"Did you mean '{RUN[:-1]}" in capsys.readouterr().err
    assert main(["choose", RUN, "--within", "-1", "--results", str(made)]) == 1
    assert "--within: must be 0 or more" in capsys.readouterr().err
