"""A base from which an adapter has taken a part: kept beside it, put back by the adapter, no part of the original."""

import time

import pytest
import torch

from pipeline.core.records import RecordError, read
from pipeline.core.settings import SettingsError, build
from pipeline.models.adapt import adapt
from pipeline.models.load import TAKEN, load_base
from pipeline.models.states import Label, merge
from pipeline.stages import quantize_base
from tests.models.conftest import FORMATS, HARDWARE

ADAPTERS = {
    "loftq": {"_target_": "pipeline.adapters.loftq.LoftQ", "iterations": 2},
    "pissa": {"_target_": "pipeline.adapters.loftq.PiSSA"},
}
SIZE = {"rank": 4, "alpha": 2.0, "roles": ["q", "v", "down"]}
MADE = [
    ("loftq", "nf4-double", "qwen2"), ("pissa", "nf4", "qwen2"), ("pissa", "none", "qwen2"),
    ("pissa", "int4-affine", "falcon"), ("loftq", "nf4", "gpt2"),
]  # fmt: skip


@pytest.fixture(params=MADE, ids="-".join)
def made(request, prepared, tmp_path):
    """The original model, and a method on a base made for it by the stage."""
    adapter, format_, kind = request.param
    model, manifest, _ = prepared(kind, True, "none")
    record, node = tmp_path / "manifest.json", ADAPTERS[adapter] | SIZE
    if kind != "qwen2":
        node |= {"roles": ["qkv", "down"]}
    settings = {"quantization": FORMATS[format_], "hardware": HARDWARE, "adapter": node}
    quantize_base.run(settings, {"model": manifest}, {"record": record}, {"started": time.time()})
    base = load_base(manifest, record, device="cpu", dtype="fp32")
    return model, manifest, record, base, adapt(base, build(node), seed=0, total_steps=1).eval()


def weight_of(model, site):
    weight = model.get_submodule(site.name).weight
    return weight.T if site.transposed else weight


@torch.no_grad()
def test_untrained_and_merged_into_the_original_is_the_original(made):
    model, _, _, base, method = made
    for site, layer in merge(base, method, Label("merged-original")).items():
        expected = weight_of(model, site)
        torch.testing.assert_close(layer.dense_weight(), expected, rtol=1e-5, atol=1e-5)
        assert (base.frozen()[site].dense_weight() - expected).abs().max() > 1e-3


@torch.no_grad()
def test_the_error_table_counts_what_the_adapter_puts_back(made):
    model, _, record, base, method = made
    rows = {row["site"]: row["relative_error"] for row in read(record, "quantize_base").result["layers"]}
    for site, layer in method.placed.items():
        weight = weight_of(model, site)
        whole, _ = layer.update().apply(base.frozen()[site].dense_weight(), None)
        assert rows[site.name] == pytest.approx(float((weight - whole).norm() / weight.norm()), rel=1e-3, abs=1e-6)
    assert all(base.frozen()[site].taken is None for site in base.frozen() if site not in method.placed)


def test_a_damaged_part_is_an_error_that_names_the_file(made):
    _, manifest, record, _, _ = made
    path = record.parent / TAKEN
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RecordError, match=TAKEN):
        load_base(manifest, record, device="cpu", dtype="fp32")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_slices_of_a_fused_projection_are_refused(prepared, adapter):
    _, manifest, record = prepared("gpt2", True, "nf4")
    base = load_base(manifest, record, device="cpu", dtype="fp32")
    with pytest.raises(SettingsError, match=r"c_attn:q is a slice of one. Allowed: qkv, the fused projection"):
        adapt(base, build(ADAPTERS[adapter] | SIZE | {"roles": ["q", "down"]}), seed=0, total_steps=1)
