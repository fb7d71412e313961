"""What the CPU computes, the GPU computes: formats bit for bit, methods and trainings within measured tolerance."""

from functools import partial

import pytest
import torch

from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from pipeline.steps.train import Batch, forward
from tests.adapters import tiny

FORMATS = {"none": Dense(), "nf4": NF4(block_size=64, double=False), "nf4-double": NF4(block_size=64, double=True)}
CUDA = torch.device("cuda")


def goes_with(path, name):
    """Say whether the method of `path` trains on a base of this format; a few need quantized weights, or others."""
    method = tiny.settings(path).method(seed=0, total_steps=tiny.TOTAL_STEPS)
    return (method.unquantized_base if name == "none" else method.quantized_base)[0]


PAIRS = [pytest.param(p, f, id=f"{p.stem}-{f}") for p in tiny.ADAPTERS for f in FORMATS if goes_with(p, f)]
QUANTIZED = [pytest.param(p, "nf4" if goes_with(p, "nf4") else "none", id=p.stem) for p in tiny.ADAPTERS]


def on_device(format_, device):
    """The tiny base, quantized on the CPU and moved, as the stages do it."""
    base = tiny.base(format_)
    base.model.to(device)
    base.device = device
    return base


def parts(step, device):
    return [Batch(p.ids_BT.to(device), p.labels_BT.to(device), p.share) for p in tiny.parts(2, step)]


def trained(path, format_, device, steps=range(tiny.TOTAL_STEPS)):
    """Train on `device`; return losses and final parameters on the CPU."""
    base = on_device(format_, device)
    method = tiny.place(tiny.settings(path), base)
    optimizer, losses = tiny.optimizer(method), []
    method.train()
    for step in steps:
        method.before_step(step)
        total = 0.0
        for part in parts(step, device):
            loss = method.loss(partial(forward, base.model), part) * part.share
            loss.backward()
            total += float(loss.detach())
        method.after_backward(step)
        optimizer.clip(1.0)
        optimizer.step(5e-3)
        method.after_step(step)
        method.refresh()
        optimizer.zero_grad()
        losses.append(total)
    kept = {name: value.detach().cpu() for name, value in method.state_dict().items()}
    return losses, {name: value for name, value in kept.items() if not name.endswith(".error")}  # MEFT's own round-off


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["nf4", "nf4-double"])
def test_dequantization_is_bit_equal(name, dtype):
    format_ = FORMATS[name]
    weight = torch.randn(704, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = format_.quantize(weight)
    there = type(stored)({k: v.to(CUDA) for k, v in stored.tensors.items()}, stored.shape, stored.dtype)
    assert torch.equal(format_.dequantize(there).cpu(), format_.dequantize(stored))


def test_nf4_codes_and_scales_are_the_same_bytes():
    weight = torch.randn(704, 512, generator=torch.Generator().manual_seed(1))
    here, there = FORMATS["nf4"].quantize(weight), FORMATS["nf4"].quantize(weight.to(CUDA))
    assert all(torch.equal(there.tensors[k].cpu(), v) for k, v in here.tensors.items())


@pytest.mark.parametrize(("path", "format_"), PAIRS)
def test_training_follows_the_cpu(path, format_, measured):
    losses, state = trained(path, FORMATS[format_], CUDA)
    expected, expected_state = trained(path, FORMATS[format_], torch.device("cpu"))
    worst_loss = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
    drift = max(relative(state[k].float(), v.float()) for k, v in expected_state.items() if v.is_floating_point())
    measured |= {"worst_relative_loss": worst_loss, "worst_relative_state": drift}
    assert worst_loss < 1e-4
    assert drift < 2e-2  # Adam turns round-off of tiny gradients into whole steps


@pytest.mark.parametrize(("path", "format_"), QUANTIZED)
def test_one_seed_repeats(path, format_, measured):
    first, second = (trained(path, FORMATS[format_], CUDA)[1] for _ in range(2))
    measured["equal_bits"] = all(torch.equal(first[k], second[k]) for k in first)
    assert measured["equal_bits"]


@pytest.mark.parametrize(("path", "format_"), QUANTIZED)
def test_bf16_stays_near_fp32(path, format_, measured):
    adapter = tiny.settings(path)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = on_device(FORMATS[format_], CUDA)
        base.model.to(dtype)
        method = tiny.place(adapter, base)
        tiny.shake(method, size=0.02)
        method.eval()
        with torch.no_grad():
            found[dtype] = forward(base.model, parts(0, CUDA)[0]).logits()
    measured["relative_logits"] = relative(found[torch.bfloat16], found[torch.float32])
    assert measured["relative_logits"] < 3e-2
