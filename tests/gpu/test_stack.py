"""A reversible stack on the card: gradients are autograd's over 32 blocks, and peak memory does not grow with them."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.adapters.meft import MEFT, StackLayer
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from pipeline.steps.train import Batch, forward
from tests.adapters import tiny

WIDTH, TIME, BATCH = 256, 256, 16
CUDA = torch.device("cuda")


def tower(blocks, dtype, format_):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=blocks,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    base = tiny.on(LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype), format_)
    base.model.to(CUDA)
    base.device = CUDA
    settings = MEFT(width=8, sigma=0.02, coupling="balanced", lam=1.0, roles=("stack",))
    method = tiny.place(settings, base)
    tiny.shake(method, size=0.02)
    return base, method


def step(base, method):
    method.zero_grad()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(512, (BATCH, TIME + 1), generator=generator).to(CUDA)
    labels = ids[:, 1:].clone()
    labels[:, :-8] = -100  # logits of few rows, so that blocks decide the peak
    forward(base.model, Batch(ids[:, :-1], labels, 1.0)).cross_entropy(labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in method.parameters()])


def peak(blocks, format_):
    """Peak bytes of a step beyond what is there before it."""
    base, method = tower(blocks, torch.bfloat16, format_)
    step(base, method)  # gradients of parameters stay, and the second step finds them
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    method.zero_grad()
    before = torch.cuda.memory_allocated()
    step(base, method)
    gradients = sum(parameter.nbytes for parameter in method.parameters())
    return torch.cuda.max_memory_allocated() - before - gradients


@pytest.mark.parametrize("format_", [Dense(), NF4(block_size=64, double=True)], ids=["none", "nf4-double"])
def test_peak_memory_is_flat_in_depth(format_, measured):
    measured["bytes_at_4"], measured["bytes_at_32"] = peak(4, format_), peak(32, format_)
    assert measured["bytes_at_32"] <= 1.1 * measured["bytes_at_4"]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-1)], ids=["fp32", "bf16"])
def test_gradients_are_autograd_s(dtype, allowed, measured, monkeypatch):
    base, method = tower(32, dtype, Dense())
    reversible = step(base, method)
    monkeypatch.setattr(
        StackLayer, "forward", lambda self, x, blocks: self.mean(*self.streams(x, blocks, lambda: None)).to(x.dtype)
    )
    expected = step(base, method)
    measured["relative_gradient"] = float((reversible - expected).norm() / expected.norm())
    assert measured["relative_gradient"] <= allowed
