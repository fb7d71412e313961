"""The rows of the PEFT library: PEFT's own layers, held beside ours from one start."""

from importlib import metadata

import pytest
import torch

from pipeline.adapters import library
from pipeline.adapters.files import PEFT_VERSION
from pipeline.adapters.library import PeftLoRA, PeftOFT
from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.core.settings import SettingsError
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from tests.adapters import tiny

peft = pytest.importorskip("peft")

ROLES = ("q", "v", "gate")
PAIRS = {
    "lora": (PeftLoRA(rank=3, alpha=5.0, roles=ROLES), LoRA(rank=3, alpha=5.0, roles=ROLES)),
    "oft": (PeftOFT(block_size=8, terms=6, roles=ROLES), OFT(block_size=8, terms=4, shared=False, roles=ROLES)),
    "oft-exact": (
        PeftOFT(block_size=8, terms=None, roles=ROLES),
        OFT(block_size=8, terms=None, shared=False, roles=ROLES),
    ),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
FORMATS = pytest.mark.parametrize("format_", [Dense(), NF4(block_size=64, double=True)], ids=["none", "nf4-double"])
CLOSE = 1e-5
"""Of the largest logit, after TOTAL_STEPS steps of Adam. Measured on 2026-11-21: at most 7e-7."""


@FORMATS
@every_pair
def test_theirs_and_ours_learn_the_same(pair, format_):
    ends, losses = [], []
    for settings in pair:
        base = tiny.base(format_)
        method = tiny.place(settings, base)
        moves = tiny.optimizer(method, eps=1e-3)
        losses.append(tiny.train(base, method, moves, range(tiny.TOTAL_STEPS)))
        ends.append(tiny.logits_at(base, method, None))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][-1] < losses[0][0] - 0.05
    assert (ends[0] - ends[1]).abs().max() <= CLOSE * ends[1].abs().max()


def test_what_computes_is_peft():
    for (theirs, _), kind in zip(PAIRS.values(), ("lora", "oft", "oft"), strict=True):
        method = tiny.place(theirs, tiny.base(Dense()))
        assert {type(layer.inner) for layer in method.placed.values()} == {getattr(peft.tuners, kind).Linear}
        assert metadata.version("peft") == PEFT_VERSION
        assert PEFT_VERSION in theirs.label


@every_pair
def test_nothing_but_the_adapter_belongs_to_the_layer(pair):
    method = tiny.place(pair[0], tiny.base(Dense()))
    for site, layer in method.placed.items():
        layer(torch.randn(2, site.in_features), tiny.frozen(site))
        assert {id(p) for p in layer.parameters()} == {id(t) for t in layer.tensors().values()}


def test_a_block_that_does_not_divide_is_refused_and_not_changed():
    with pytest.raises(SettingsError, match=r"adapter\.block_size: 40 does not divide the 64 inputs"):
        tiny.place(PeftOFT(block_size=40, terms=7, roles=ROLES), tiny.base(Dense()))


@every_pair
def test_without_this_very_peft_the_row_is_refused(pair, monkeypatch):
    monkeypatch.setattr(library.metadata, "version", lambda name: "0.1.0")
    with pytest.raises(SettingsError, match=rf"PEFT {PEFT_VERSION} itself, and installed is 0\.1\.0\. Install it"):
        tiny.place(pair[0], tiny.base(Dense()))

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(library.metadata, "version", absent)
    with pytest.raises(SettingsError, match="installed is none"):
        tiny.place(pair[0], tiny.base(Dense()))
