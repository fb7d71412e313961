"""Which points a sweep has, and with which settings."""

import re
from collections import Counter

import pytest

from pipeline.sweeps.compose import CONF, files


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A folder with a file at every place that conf/ names below `data_root`."""
    root = tmp_path_factory.mktemp("data")
    for text in [path.read_text() for path in CONF.glob("*/*.yaml")]:
        for name in re.findall(r"[\w-]+/[\w.-]+\.(?:jsonl|txt\.xz|txt)\b", text):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("one line")
    assert (root / "novels/novels.txt.xz").exists()
    return root


@pytest.mark.parametrize("sweep", files("sweep"))
def test_every_sweep_of_conf(plan, sweep, data_root, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(data_root))
    found = plan(sweep=sweep)
    assert found.grid.sweep.name == found.table == sweep
    assert found.runs
    assert found.expected["runs"]


def test_the_sweep_of_methods_has_every_method_once_and_its_rates_are_swept_for_the_same(plan):
    library = {"peft-lora", "peft-oft"}
    for sweep, rates in (("methods", 1), ("methods-learning-rates", 6)):
        found = Counter(run.point.choices["adapter"] for run in plan(sweep=sweep).runs)
        assert found == dict.fromkeys(set(files("adapter")) - library, rates)


def _names(plan):
    return [run.point.title for run in plan.runs]


def test_default_sweep(plan):
    found = Counter(run.point.choices["adapter"] for run in plan().runs)
    assert found == {"lora": 8, "oft": 8, "adalora": 8, "dylora": 4}


def test_sizes_go_to_the_adapters_that_have_them(plan):
    found = plan("sweep.rank=[3] sweep.block_size=[32] sweep.quantization=[none] sweep.seed=[5]")
    assert sorted(_names(found)) == [
        "demo-none-adalora-r3-s5",
        "demo-none-dylora-r8-s5",
        "demo-none-lora-r3-s5",
        "demo-none-oft-b32-s5",
    ]


def test_axes_name_their_points(plan):
    small = "sweep.quantization=[none] sweep.seed=[0] sweep.rank=[2] sweep.adapter=[lora,oft] sweep.block_size=[8]"
    found = plan(f"{small} sweep.axes={{adapter.alpha:[8.0,16.0]}}")
    assert _names(found) == ["demo-none-lora-r2-s0-alpha8.0", "demo-none-lora-r2-s0-alpha16.0", "demo-none-oft-b8-s0"]
    assert found.expected["axes"] == ["adapter.alpha"]
    assert [run.point.settings["adapter"].get("alpha") for run in found.runs] == [8.0, 16.0, None]


def test_include_and_exclude(plan):
    small = "sweep.quantization=[none] sweep.seed=[0,1] sweep.rank=[2,4] sweep.adapter=[lora]"
    found = plan(f"{small} sweep.include=[{{rank:16,seed:0}}] sweep.exclude=[{{rank:4,seed:1}}]")
    assert _names(found) == [
        "demo-none-lora-r2-s0", "demo-none-lora-r2-s1", "demo-none-lora-r4-s0", "demo-none-lora-r16-s0",
    ]  # fmt: skip


def test_rates_of_an_adapter_and_who_wins(plan):
    own = "sweep.adapter=[lora,oft] sweep.per_adapter={lora:{training.learning_rate:0.25}}"

    def rates(found):
        return {run.point.choices["adapter"]: run.point.settings["training"]["learning_rate"] for run in found.runs}

    assert rates(plan(own))["lora"] == 0.25
    assert rates(plan(own))["oft"] != 0.25
    told = plan(f"{own} training.learning_rate=0.5")
    assert rates(told) == {"lora": 0.5, "oft": 0.5}
    assert told.grid.remarks == [
        "training.learning_rate=0.5 replaces the sweep's own training.learning_rate=0.25 of lora"
    ]
    axis = plan(f"{own} sweep.axes={{training.learning_rate:[0.75]}}")
    assert rates(axis) == {"lora": 0.75, "oft": 0.75}


def test_a_value_that_only_some_files_have_is_remarked(plan):
    found = plan("adapter.alpha=32 sweep.adapter=[lora,oft]")
    assert found.grid.remarks == ["adapter.alpha=32 concerns lora; oft: no such setting"]


def test_values_are_read_as_their_types(plan):
    small = "sweep.adapter=[lora] sweep.quantization=[none] sweep.seed=[0] sweep.rank=[2]"
    assert [r.folder for r in plan(f"{small} adapter.alpha=16").runs] == [
        r.folder for r in plan(f"{small} adapter.alpha=16.0").runs
    ]


def test_spaces_within_brackets_and_quotes(plan):
    found = plan("sweep.rank=[2, 4] sweep.adapter=[lora] tracker.project='my own'")
    assert {run.point.size[1] for run in found.runs} == {2, 4}
    assert found.grid.single["tracker"]["project"] == "my own"


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_seed_is_a_setting_of_the_run_alone(plan, seed):
    found = plan(f"sweep.seed=[{seed}] sweep.adapter=[lora]")
    assert {run.point.settings["seed"] for run in found.runs} == {seed}
    assert {base.job.record for base in found.bases} == {base.job.record for base in plan().bases}


def test_a_method_without_a_rate_of_its_own_is_remarked(plan):
    assert plan().grid.remarks == []
    found = plan("sweep.adapter=[lora,ia3]")
    assert found.grid.remarks == [
        "ia3: no adapter.roles in the sweep's per_adapter; the value of conf/ is taken",
        "ia3: no training.learning_rate in the sweep's per_adapter; the value of conf/ is taken",
    ]
