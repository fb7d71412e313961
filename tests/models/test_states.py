"""Each state is what its name says, its digest repeats, and leaving it restores the base."""

import pytest
import torch

from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.core.settings import SettingsError
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.models.states import STATES, Label, entered, labels

IDS = torch.tensor([[1, 5, 9, 20, 3, 7]])
ROLES = ("q", "v", "down")
ADAPTERS = {
    "lora": LoRA(rank=4, alpha=8.0, roles=ROLES),
    "oft": OFT(block_size=8, terms=5, shared=False, roles=ROLES),
}


@pytest.fixture(params=ADAPTERS)
def adapted(request, prepared):
    _, manifest, base_manifest = prepared("qwen2", True, "nf4")
    base = load_base(manifest, base_manifest, device="cpu", dtype="fp32")
    method = adapt(base, ADAPTERS[request.param], seed=0, total_steps=1)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    method.refresh()
    method.eval()
    return base, method


@torch.no_grad()
def logits(base, method, label):
    with entered(base, method, Label(label)) as digest:
        return base.model(IDS).logits, digest


def test_merging_into_the_dequantized_base_computes_what_was_trained(adapted):
    base, method = adapted
    trained, _ = logits(base, method, "trained")
    merged, _ = logits(base, method, "merged-dequantized")
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-5)
    assert (merged - logits(base, method, "base")[0]).abs().max() > 1e-2


def test_the_states_differ_and_every_digest_repeats(adapted):
    base, method = adapted
    found = {state: logits(base, method, state) for state in STATES}
    for state, (values, digest) in found.items():
        again, same = logits(base, method, state)
        assert torch.equal(values, again)
        assert digest == same
    digests = [digest for _, digest in found.values() if digest is not None]
    assert len(set(digests)) == len(digests) == 4
    # `merged-dequantized` is `trained` up to round-off, which may be none.
    apart = [values for state, (values, _) in found.items() if state != "merged-dequantized"]
    assert all(not torch.equal(a, b) for i, a in enumerate(apart) for b in apart[:i])
    base.detach()
    assert torch.equal(base.model(IDS).logits, found["base"][0])


def test_requantizing_gives_weights_on_the_grid(adapted):
    base, method = adapted
    with entered(base, method, Label("requantized-dequantized")):
        for site, frozen in base.frozen().items():
            if site in method.placed:
                again = base.format.quantize(frozen.dense_weight())
                assert torch.equal(base.format.dequantize(again), frozen.dense_weight())


def test_an_exception_inside_restores_the_base(adapted):
    base, method = adapted
    expected = logits(base, method, "base")[0]
    with pytest.raises(RuntimeError, match="boom"), entered(base, method, Label("merged-original")):
        raise RuntimeError("boom")
    assert torch.equal(logits(base, method, "base")[0], expected)


def test_states_that_cannot_be_built_are_skipped_with_the_reason(prepared, adapted):
    base, method = adapted
    wanted, skipped = labels(["trained", "requantized-original"], method, base.format)
    assert [str(label) for label in wanted] == ["trained", "requantized-original"]
    assert skipped == {}
    _, manifest, plain = prepared("qwen2", True, "none")
    dense = load_base(manifest, plain, device="cpu", dtype="fp32").format
    wanted, skipped = labels(list(STATES[1:]), method, dense)
    assert [str(label) for label in wanted] == ["trained", "merged-original"]
    assert set(skipped) == {"merged-dequantized", "requantized-original", "requantized-dequantized"}
    with pytest.raises(SettingsError, match="Did you mean 'trained'"):
        labels(["traind"], method, dense)


def test_merged_weights_do_not_depend_on_the_compute_dtype(prepared):
    _, manifest, plain = prepared("qwen2", True, "none")
    digests = set()
    for dtype in ("fp32", "bf16"):
        base = load_base(manifest, plain, device="cpu", dtype=dtype)
        method = adapt(base, ADAPTERS["lora"], seed=0, total_steps=1)
        with entered(base, method, Label("merged-original")) as digest:
            digests.add(digest)
    assert len(digests) == 1
