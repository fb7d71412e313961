"""A finished run from Python, and several adapters on one base: each bit for bit what it is alone."""

import pytest
import torch

from pipeline.adapters import files
from pipeline.adapters.dylora import DyLoRA
from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.models.trained import Adapters

IDS = torch.tensor([[1, 5, 9, 20, 3, 7]])
SETTINGS = {
    "low": LoRA(rank=4, alpha=8.0, roles=("q", "v")),
    "turned": OFT(block_size=8, terms=5, shared=False, roles=("q", "down")),
    "many": DyLoRA(
        max_rank=4, ranks=(1, 2, 4), drawn="all", decay=1.0, alpha=None, frozen_rows=False, roles=("up", "down")
    ),
}


@pytest.fixture
def fresh(prepared):
    _, manifest, base_manifest = prepared("llama", True, "nf4-double")
    return lambda: load_base(manifest, base_manifest, device="cpu", dtype="fp32")


@torch.no_grad()
def logits(base):
    return base.model(IDS).logits


@pytest.fixture
def alone(fresh, tmp_path):
    """What the base computes, and what each adapter alone makes of it at each point; their folders lie in tmp_path."""
    base = fresh()
    found = {(None, None): logits(base)}
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        method = adapt(base, settings, seed, total_steps=3)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.normal_(0, 0.05, generator=draw)
        method.refresh()
        files.save(method.eval(), tmp_path / name, base_name="llama")
        for at in method.points or [None]:
            base.attach(method.export(at))
            found[name, at] = logits(base)
    return found


def test_each_computes_what_it_does_alone_and_none_what_the_base_does(fresh, alone, tmp_path):
    adapters = Adapters(fresh())
    for name in SETTINGS:
        adapters.load(name, tmp_path / name)
        assert torch.equal(logits(adapters.base), alone[None, None]), "loading does not switch"
    order = [*alone, *reversed(alone), ("many", 2), (None, None), ("turned", None)]
    for name, at in order:
        adapters.use(name, at)
        assert adapters.active == name
        assert torch.equal(logits(adapters.base), alone[name, at])
    assert len({tuple(one.flatten().tolist()) for one in alone.values()}) == len(alone)
    assert list(adapters.methods) == list(SETTINGS)


def test_what_cannot_be_loaded_leaves_the_others_at_work(fresh, alone, tmp_path):
    adapters = Adapters(fresh())
    adapters.load("low", tmp_path / "low")
    adapters.use("low")
    (tmp_path / "turned" / files.WEIGHTS).write_bytes(b"")
    for name, folder, error in (
        ("low", "low", SettingsError),
        ("broken", "turned", RecordError),
        ("absent", "nowhere", RecordError),
    ):
        with pytest.raises(error):
            adapters.load(name, tmp_path / folder)
        assert torch.equal(logits(adapters.base), alone["low", None])
    with pytest.raises(SettingsError, match="Did you mean 'low'"):
        adapters.use("lo")
    assert list(adapters.methods) == ["low"]
