"""What is told from a model's shape alone is what the loaded model says."""

import time

import pytest

from pipeline.core.settings import SettingsError, build
from pipeline.models import fit
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.stages import quantize_base
from tests.adapters.tiny import ADAPTERS, settings
from tests.models.conftest import FORMATS, HARDWARE, KINDS

STEPS = 100
ADAMW = {"_target_": "pipeline.optimizers.adamw.AdamW", "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1}


def shape(kind):
    return KINDS[kind] | {"model_type": kind.partition("-")[0]}


def format_of(node):
    return FORMATS["none" if build(node).method(0, STEPS).unquantized_base[0] else "nf4"]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "kind", ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen2", "falcon"))]
)
def test_a_method_on_the_shape_is_the_method_on_the_model(prepared, kind, adapter, tmp_path):
    node = settings(adapter).node()
    if node.get("block_size", 0) > 16:
        node |= {"block_size": 16}
    asked = (shape(kind), format_of(node))
    _, manifest, base = prepared(kind, True)
    if build(node).takes:
        base = tmp_path / "manifest.json"
        made = {"quantization": asked[1], "hardware": HARDWARE, "adapter": node}
        quantize_base.run(made, {"model": manifest}, {"record": base}, {"started": time.time()})
    loaded = load_base(manifest, base, device="cpu", dtype="fp32")
    answers = []
    for ask in (
        lambda: sum(p.numel() for p in adapt(loaded, build(node), 0, STEPS).parameters() if p.requires_grad),
        lambda: fit.fit(*asked, node, ADAMW, STEPS)["parameters"],
    ):
        try:
            answers.append(ask())
        except SettingsError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.stem)
def test_the_largest_size_fits_and_the_next_does_not(adapter):
    node, budget = settings(adapter).node(), 30_000
    if build(node).axis is None:
        return
    ask = (shape("qwen2"), format_of(node))
    if adapter.stem in ("full", "last-layers"):
        with pytest.raises(SettingsError, match="has so few on this model: the smallest has"):
            fit.largest(*ask, node, STEPS, budget)
        return
    found = fit.largest(*ask, node, STEPS, budget)
    axis, size = found["size"]
    count = fit.fit(*ask, found["adapter"], ADAMW, STEPS)["parameters"]
    assert count == found["parameters"] <= budget
    for other in (size + 1, 2 * size):  # the next of a rank, and of a block
        try:
            other_count = fit.fit(*ask, build(node).resized(other).node(), ADAMW, STEPS)["parameters"]
        except SettingsError:
            continue
        assert not count < other_count <= budget, axis


@pytest.mark.parametrize("kind", ["mamba", "bert"])
def test_what_a_sweep_cannot_train_is_refused_from_its_shape(kind):
    with pytest.raises(SettingsError, match=f"architecture '{kind}' is not known; allowed: falcon, gpt2, llama"):
        fit.fit(
            {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 1},
            FORMATS["none"],
            settings(ADAPTERS[0]).node(),
            ADAMW,
            STEPS,
        )
