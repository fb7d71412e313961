"""What runs say of their updates: read by block of the model, drawn for those that say it, and shown in the report."""

import pytest

from pipeline.aggregation import insight
from pipeline.aggregation.command import main
from pipeline.aggregation.compare import compare
from pipeline.aggregation.rows import collect
from pipeline.aggregation.sweep import load
from pipeline.core import records
from tests.aggregation.made_up import ADAPTERS, rewrite


@pytest.fixture
def sweep(make):
    found = load(make(
        adapters={name: ADAPTERS[name] for name in ("lora", "dylora", "oft")}, quantizations=["none", "nf4-double"],
        tasks=[("gsm8k-demo", "gsm8k-0shot-demo-v1", "target", 20)],
        diverged={"tiny-none-lora-rank-2-s0"},
    ))  # fmt: skip
    return found, compare(found, collect(found))


def test_quantities_are_means_over_the_layers_of_a_block(sweep):
    found = insight.read(sweep[0])
    group = {(run.adapter, run.size[1], run.quantization): run.group for run in sweep[0].runs}
    (one, other) = found[group["lora", 8, "nf4-double"]]
    assert one.by_block["update-size"] == {0: pytest.approx(0.05), 1: pytest.approx(0.1)}
    assert one.by_block["effective-rank"] == {0: pytest.approx(4.8), 1: pytest.approx(4.8)}
    assert one.by_block["block-range max"] == {0: 1.5, 1: 1.5}
    assert one == other
    assert found[group["oft", 8, "none"]][0].by_block["rotation-angles p50"] == {0: 1.0, 1: 1.0}
    assert found[group["oft", 8, "none"]][0].by_block["block-range p50"] == {}
    assert found[group["dylora", 8, "none"]][0].draws == {rank: 10 + rank for rank in range(1, 9)}
    assert len(found[group["lora", 2, "none"]]) == 1, "a run that diverged says nothing"


def test_figures_show_who_has_something_to_say(sweep):
    drawn = {name: data.decode() for name, data in insight.draw(sweep[1], insight.read(sweep[0])).items()}
    assert set(drawn) == {f"{name}.svg" for name in insight.CAPTIONS}
    assert ">OFTv2<" in drawn["update-size.svg"]
    assert "OFTv2" not in drawn["effective-rank.svg"]
    assert ">OFTv2<" in drawn["rotation-angles.svg"]
    assert "LoRA" not in drawn["rotation-angles.svg"]
    assert "OFTv2" not in drawn["drawn-ranks.svg"]
    assert ">rank 8, nf4-double<" in drawn["block-range.svg"]
    assert ">rank 8, none<" not in drawn["block-range.svg"]


def test_runs_that_say_nothing_have_no_figure(sweep):
    assert insight.draw(sweep[1], {}) == {}


def test_a_change_of_a_record_changes_its_figure_and_the_report_shows_it(small):
    results = small.parents[2]
    folder = small.parent / "figures"
    main([str(results)])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in sorted(results.glob("runs/*dylora*/train.json")):
        old = records.read(path)
        rewrite(path, result=old.result | {"insight": {"steps_at_rank": {"1": 5, "8": 7}}})
    main([str(results)])
    changed = {path.name for path in folder.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"drawn-ranks.svg", "effective-rank.svg"}
    page = (small.parent / "report.html").read_text()
    assert 'id="figure-drawn-ranks"' in page
    assert insight.CAPTIONS["drawn-ranks"][0] in page
