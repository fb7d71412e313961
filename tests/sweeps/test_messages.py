"""Every wrong setting is one message: the key, what was got, what is allowed, the nearest name."""

import pytest

from pipeline.core.settings import SettingsError
from pipeline.sweeps import grid

WRONG = {
    "adapter=lroa": "adapter: there is no adapter 'lroa'. Did you mean 'lora'? Allowed: ada",
    "adapter=oft": "adapter: got 'oft', but it is an axis of sweep 'default', now ['lora', 'dylora', ",
    "quantization=nf4": "Say sweep.quantization=[...] instead.",
    "adapter.rank=4": "adapter.rank: got 4, but it is an axis of sweep 'default', now [2, 8]; allowed: integers",
    "seed=null": "seed: got None, but it is an axis of sweep 'default', now [0, 1]; allowed: integers from 0.",
    "task=gsm8k-demo": "Say sweep.task=[...] instead.",
    "sweep.seed=[null]": "sweep.seed.0: Input should be a valid integer, got None.",
    "sweep.rank=[0]": "sweep.rank.0: Input should be greater than or equal to 1, got 0.",
    "sweep.rank=[2,2]": "sweep.rank: 2 stands there twice, and two points of a sweep cannot have one name",
    "sweep.adapter=[lora,lora]": "sweep.adapter: 'lora' stands there twice",
    "sweep.adapter=[lora,otf]": "sweep.adapter: there is no adapter 'otf'. Did you mean 'oft'?",
    "sweep.rnk=[4]": "sweep.rnk: there is no such setting. Did you mean 'rank'?",
    "sweep.task=[gsm8k-dmo]": "sweep.task: there is no task 'gsm8k-dmo'. Did you mean 'gsm8k-demo'?",
    "training.step=5": "training.step: there is no such setting. Did you mean 'steps'? Allowed here: batch_size,",
    "training.steps=abc": "training.steps: Input should be a valid integer, got 'abc'.",
    "training.steps=0": "training.steps: Input should be greater than or equal to 1, got 0.",
    "training.schedule.shap=cosine": "training.schedule.shap: there is no such setting. Did you mean 'shape'?",
    "training.steps.x=1": "training.steps.x: training.steps is one value, ",
    "training.steps=1,2": "training.steps: got several values",
    "training.task=gsm8k-dem": "training.task: there is no task 'gsm8k-dem'. Did you mean 'gsm8k-demo'?",
    "training.learning_rate=nan": "training.learning_rate: must be a finite number, got nan.",
    "training.learning_rate=1e400": "training.learning_rate: must be a finite number, got inf.",
    "task.gsm8k-demo=3": "task.gsm8k-demo: is a group of settings, got 3.",
    "sweep.axes={seed:[null]}": "'seed' must be a dotted key",
    "sweep.include=[{adapter:lora,seed:null}]": "seed: must be a whole number of at least 0, got None.",
    "sweep.include=[{adapter:lora,seed:-1}]": "seed: must be a whole number of at least 0, got -1.",
    "+training.steps=1": "Write key=value without + or ~.",
    "training.steps": "training.steps: cannot be read",
    "sweep.rank=[4": "sweep.rank=[4: cannot be read",
    "tracker=wandb tracker.project=null": "tracker: project must be a name where kind is wandb, got None.",
    "tracker=wanbd": "tracker: there is no tracker 'wanbd'. Did you mean 'wandb'?",
    "hardware=gpuu": "hardware: there is no hardware 'gpuu'. Did you mean 'gpu'?",
    "hardware.treads=2": "hardware.treads: there is no such setting. Did you mean 'threads'?",
    "rank=4": "rank: there is no such setting. Did you mean 'sweep.rank'?",
    "learning_rate=1": "learning_rate: there is no such setting. Did you mean 'training.learning_rate'?",
    "trainin.steps=4": "trainin.steps: there is no such setting. Did you mean 'training'?",
    "seed.x=1": "seed.x: there is no such setting.",
    "adapter.alpah=3": "adapter.alpah: there is no such setting. Did you mean 'alpha'?",
    "task.gsm8k.generation.limit=3": "the sweep has no task 'gsm8k'. Did you mean 'gsm8k-demo'?",
    "task.gsm8k-demo.generation.limt=3": "limt: there is no such setting. Did you mean 'limit'",
    "sweep.axes={adapter.alhpa:[8]}": "adapter.alhpa: the sweep sets it, and no file that it chose has it.",
    "sweep.axes={hardware.threads:[1,2]}": "hardware.threads: the sweep sets it, and no file that it chose has it.",
    "sweep.include=[{adaptr:lora}]": "sweep.include: there is no axis 'adaptr'. Did you mean 'adapter'?",
    "sweep.exclude=[{adaptr:lora}]": "sweep.exclude: there is no axis 'adaptr'. Did you mean 'adapter'?",
    "sweep.exclude=[{model:demo}]": "sweep.exclude: no point of the sweep is left.",
    "sweep.per_adapter.lroa={training.steps:3}": "sweep.per_adapter: there is no adapter 'lroa'. Did you mean 'lora'?",
    "sweep.model=[local]": "model.path: needs a value and has none. Say --config overrides='model.path=...'.",
    "sweep.name=Big_Sweep": "sweep.name: String should match pattern",
    "sweep=default": "sweep: choose it by --config sweep=default.",
    "data_root=no/such/folder": "data_root: must be a folder, or null to read the hub's cache, got 'no/such/folder'.",
    "data_root=3": "data_root: must be a folder, or null to read the hub's cache, got 3.",
    "data_root.x=3": "data_root.x: there is no such setting. Allowed: ",
    "dataroot=x": "dataroot: there is no such setting. Did you mean 'data_root'?",
    "sweep=papr": "sweep: there is no sweep 'papr'.",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_overrides(plan, override):
    with pytest.raises(SettingsError) as caught:
        plan(override)
    assert WRONG[override] in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert not plan.results.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sweep": "defualt"}, "sweep: there is no sweep 'defualt'. Did you mean 'default'?"),
        ({"adapter": "lroa"}, "adapter: there is no adapter 'lroa'. Did you mean 'lora'?"),
        ({"adapter": "lora"}, "A setting goes into --config overrides='adapter=lora'."),
        ({"overide": "a=1"}, "Did you mean 'overrides'?"),
        ({"code": "kep"}, "code: Input should be 'rerun' or 'keep', got 'kep'."),
        ({"retry": "all"}, "retry: Input should be 'failed', got 'all'."),
    ],
)
def test_wrong_keys_of_config(plan, config, message):
    with pytest.raises(SettingsError) as caught:
        plan(**config)
    assert message in str(caught.value)


def test_two_points_of_one_name(plan):
    overrides = "sweep.model=[demo,local] model.name=demo model.path=/somewhere"
    with pytest.raises(SettingsError, match=r"two points have the one name 'demo-none-lora-r2-s0' and differ in"):
        plan(overrides)


def test_a_sweep_that_calls_itself_otherwise_than_its_file(plan, monkeypatch):
    def composed(choices):
        node = grid_composed(choices)
        return node | {"sweep": node["sweep"] | {"name": "other"}}

    grid_composed = grid.composed
    monkeypatch.setattr(grid, "composed", composed)
    with pytest.raises(
        SettingsError, match=r"sweep\.name: conf/sweep/default\.yaml says 'other'\. Write name: default"
    ):
        plan()


def test_too_many_gpus_for_this_machine(plan):
    with pytest.raises(SettingsError, match=r"hardware\.gpus: got 3, allowed 0 to 2"):
        plan("hardware.gpus=3").check_gpus(2)
