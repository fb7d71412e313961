"""MEFT: a reversible stack whose gradients are autograd's, whose memory is flat in depth, whose limits are said."""

from functools import partial

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.adapters import meft
from pipeline.adapters.meft import MEFT, StackLayer
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.models.stack import Stack, stacked
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny

SETTINGS = {"width": 8, "sigma": 0.02, "coupling": "balanced", "lam": None, "roles": ("stack",)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tower(blocks, dtype=torch.float32, **other):
    """A Llama of `blocks` blocks with MEFT on it, shaken; returns the base, the method and its stack layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.08,
    )  # fmt: skip
    base = tiny.on(LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype), Dense())
    method = tiny.place(MEFT(**SETTINGS | other), base)
    tiny.shake(method, size=0.02)
    return base, method, next(layer for layer in method.placed.values() if isinstance(layer, StackLayer))


def gradients(base, method):
    method.zero_grad()
    (batch,) = tiny.parts()
    forward(base.model, batch).cross_entropy(batch.labels_BT).backward()
    return torch.cat([parameter.grad.flatten() for parameter in method.parameters()])


@pytest.fixture
def plain(monkeypatch):
    """Turn the stack into what autograd keeps and differentiates itself."""

    def run(self, x, blocks):
        return self.mean(*self.streams(x, blocks, lambda: None)).to(x.dtype)

    return lambda: monkeypatch.setattr(StackLayer, "forward", run)


def distance(blocks, plain, **other):
    base, method, layer = tower(blocks, **other)
    reversible = gradients(base, method)
    plain()
    expected = gradients(base, method)
    return float((reversible - expected).norm() / expected.norm()), float(layer.error)


@pytest.mark.parametrize(
    ("dtype", "lam", "allowed"),
    # Measured on 2026-11-21: 0, 0, 7.9e-5, 1.6e-3.
    [("fp32", None, 0.0), ("bf16", None, 0.0), ("fp32", 0.75, 1e-3), ("bf16", 0.75, 1e-2)],
)
def test_gradients_are_autograd_s_over_32_blocks(dtype, lam, allowed, plain):
    apart, error = distance(32, plain, dtype=DTYPES[dtype], lam=lam)
    assert apart <= allowed
    assert lam is not None or error == 0


def test_gradients_are_autograd_s_with_the_paper_s_coupling_where_it_survives(plain):
    apart, _ = distance(4, plain, coupling="paper")
    assert apart <= 1e-4


def test_the_paper_s_lambda_is_not_invertible_at_depth(plain, monkeypatch):
    with pytest.raises(SettingsError, match=r"lam 0.1 cannot be inverted over 32 blocks.*balanced.*0\.649"):
        tower(32, lam=0.1)
    with pytest.raises(SettingsError, match="paper with lam 1 cannot be inverted over 32 blocks"):
        tower(32, coupling="paper")
    monkeypatch.setattr(meft, "SURVIVED", float("inf"))
    apart, error = distance(32, plain, lam=0.1)
    assert min(apart, error) > 0.1, "the bound is there for nothing"


def test_streams_are_the_paper_s():
    """Equation and output, written down slowly, block by block."""
    _, method, layer = tower(3, coupling="paper", lam=0.1)
    blocks, x = [tiny.Block(64) for _ in range(3)], torch.randn(5, 64)
    x1 = x2 = x
    for n, block in enumerate(blocks):
        y1 = 0.1 * x1 + block(x2)
        y2 = x2 + layer.G[n].branch(y1)
        x1, x2 = y2, y1
    torch.testing.assert_close(layer(x, blocks), (x1 + x2) / 2, rtol=1e-5, atol=1e-5)
    assert method.insight()["lambda"] == 0.1


@pytest.mark.parametrize("lam", [0.2, 1.0])
def test_balanced_adds_every_block_once(lam):
    _, _, layer = tower(3, lam=lam)
    for one in layer.G:
        nn.init.zeros_(one.U_OR)
        nn.init.zeros_(one.u_O)
    seen = []

    def watched(block, x):
        seen.append(block(x) - x)
        return x + seen[-1]

    x = torch.randn(5, 64)
    blocks = [partial(watched, tiny.Block(64)) for _ in range(3)]
    torch.testing.assert_close(layer(x, blocks), x + sum(seen), rtol=1e-5, atol=1e-5)


def test_what_blocks_draw_is_replayed(plain):
    _, method, layer = tower(3)
    blocks, x = [tiny.Block(64, dropout=0.5) for _ in range(3)], torch.randn(5, 64)
    assert all(block.training for block in blocks)

    def run():
        method.zero_grad()
        torch.manual_seed(3)
        y = layer(x, blocks)
        y.square().sum().backward()
        return y.detach(), torch.cat([weight.grad.flatten() for weight in layer.parameters()]), torch.rand(1)

    reversible = run()
    plain()
    for got, expected in zip(reversible, run(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


class Held:
    """One tensor that autograd holds; counts its bytes as long as it does."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.now += tensor.nbytes
        Held.peak = max(Held.peak, Held.now)

    def __del__(self):
        Held.now -= self.tensor.nbytes


def peak(blocks):
    base, method, _ = tower(blocks)
    weights = {tensor.data_ptr() for tensor in (*method.parameters(), *base.model.parameters())}
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor if tensor.data_ptr() in weights else Held(tensor),
        lambda kept: kept.tensor if isinstance(kept, Held) else kept,
    ):
        gradients(base, method)
    assert Held.now == 0
    return Held.peak


def test_memory_of_activations_is_flat_in_depth():
    shallow, deep = peak(4), peak(32)
    assert shallow > 0
    assert deep <= 1.1 * shallow


def test_decoding_with_a_cache_is_the_whole_pass():
    base, method, _ = tower(3)
    base.attach(method.placed)
    ids = torch.randint(48, (2, 7))
    with torch.no_grad():
        whole = base.model(ids).logits[:, -1]
        cache = base.model(ids[:, :-1], use_cache=True).past_key_values
        last = base.model(ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(last, whole, rtol=1e-5, atol=1e-5)


def test_names_and_outputs_of_the_model_stay():
    model = tiny.model()
    names, ids = set(model.state_dict()), torch.randint(48, (2, 5))
    with torch.no_grad():
        before = model(ids).logits
        (site,) = stacked(model, [Site("model.layers.0.mlp.up_proj", "up", 64, 96, 0, bias=False)])
        assert torch.equal(model(ids).logits, before)
    assert (site.name, site.role, site.in_features) == ("model.layers", "stack", 64)
    assert set(model.state_dict()) == names
    assert isinstance(model.model.layers, Stack)


def test_an_encoder_decoder_is_refused():
    sites = [Site(f"model.{part}.layers.0.fc1", "up", 8, 8, 0, bias=True) for part in ("encoder", "decoder")]
    assert stacked(nn.Module(), sites) == {}
    with pytest.raises(SettingsError, match="encoder-decoder"):
        MEFT(**SETTINGS).method(0, 1).place({sites[0]: tiny.frozen(sites[0])})


def test_merging_is_refused_with_the_reason():
    mergeable, why = tower(2)[1].mergeable
    assert not mergeable
    assert "coupled" in why
