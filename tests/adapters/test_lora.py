"""LoRA against the equation of its paper, and the fused low-rank path against plain autograd."""

import pytest
import torch

from pipeline.adapters.lora import LoRA, LoRALayer
from pipeline.adapters.low_rank import low_rank
from pipeline.quantization.none import Dense
from tests.adapters import tiny


@pytest.mark.parametrize("seed", range(3))
def test_layer_is_the_paper_s_equation(seed):
    torch.manual_seed(seed)
    frozen = tiny.Dense(torch.randn(5, 6), torch.randn(5))
    layer = LoRALayer(torch.randn(2, 6), torch.randn(5, 2), scale=16 / 2)
    x = torch.randn(3, 6)
    rows = [frozen.weight_OI @ row + frozen.bias + 16 / 2 * layer.B_OR @ (layer.A_RI @ row) for row in x]
    torch.testing.assert_close(layer(x, frozen), torch.stack(rows))
    torch.testing.assert_close(layer.update().delta_OI, 16 / 2 * layer.B_OR @ layer.A_RI)


def test_scale_is_alpha_over_rank():
    method = tiny.place(LoRA(rank=4, alpha=10.0, roles=("q", "down")), tiny.base(Dense()))
    assert {layer.scale for layer in method.placed.values()} == {2.5}
    assert {site.role for site in method.placed} == {"q", "down"}


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_without_alpha_the_scale_is_two_at_every_rank(rank):
    method = tiny.place(LoRA(rank=rank, alpha=None, roles=("q",)), tiny.base(Dense()))
    assert {layer.scale for layer in method.placed.values()} == {2.0}
    assert method.peft()["lora_alpha"] == 2 * rank


def test_a_is_kaiming_uniform_and_b_zero():
    method = tiny.place(LoRA(rank=64, alpha=1.0, roles=("q", "down")), tiny.base(Dense()))
    for site, layer in method.placed.items():
        bound = site.in_features**-0.5  # sqrt(6 / ((1 + a^2) I)) with a = sqrt 5
        assert 0.99 * bound < layer.A_RI.abs().max() <= bound
        assert layer.A_RI.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert abs(layer.A_RI.mean()) < 0.03 * bound
        assert not layer.B_OR.any()


def test_each_site_draws_from_a_stream_of_its_own():
    few, many, other = (
        tiny.place(LoRA(rank=2, alpha=1.0, roles=roles), tiny.base(Dense()), seed)
        for roles, seed in ((("v",), 0), (("q", "k", "v"), 0), (("v",), 1))
    )
    assert all(torch.equal(layer.A_RI, many.placed[site].A_RI) for site, layer in few.placed.items())
    assert not any(torch.equal(layer.A_RI, other.placed[site].A_RI) for site, layer in few.placed.items())
    drawn = [layer.A_RI for layer in few.placed.values()]
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("needs", [True, False], ids=["inner layer", "first layer"])
def test_gradients_are_those_of_the_expression(needs):
    torch.manual_seed(0)
    frozen = tiny.Dense(torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
    A_RI, B_OR = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 6), (5, 2)))
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=needs)
    assert torch.autograd.gradcheck(lambda *given: low_rank(*given, frozen), (x, A_RI, B_OR))


def test_masters_stay_float32_under_bfloat16():
    layer = LoRALayer(torch.randn(2, 6), torch.randn(5, 2), scale=1.0)
    frozen = tiny.Dense(torch.randn(5, 6, dtype=torch.bfloat16))
    layer(torch.randn(3, 6, dtype=torch.bfloat16, requires_grad=True), frozen).sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


def test_what_a_projection_returns_may_be_written_to():
    """Falcon's parallel block adds in place to it."""
    frozen = tiny.Dense(torch.randn(5, 6))
    layer = LoRALayer(torch.randn(2, 6), torch.randn(5, 2), scale=1.0)
    x = torch.randn(3, 4, 6, requires_grad=True)
    expected = torch.autograd.grad(layer(x, frozen).square().sum(), x)[0]
    y = layer(x, frozen)
    kept = y.detach().clone()
    y += kept
    torch.testing.assert_close(torch.autograd.grad((y * kept).sum(), x)[0], expected / 2)


def test_dropout_drops_the_adapter_s_input_alone_and_is_of_seed_site_step_and_pass():
    base = tiny.base(Dense())
    method = tiny.place(LoRA(rank=2, alpha=4.0, dropout=0.5, roles=("q",)), base)
    tiny.shake(method)
    (site, layer), *others = method.placed.items()
    x, frozen = torch.randn(400, site.in_features), base.places[site].frozen

    def passes(step):
        method.before_step(step)
        return [layer(x, frozen) - frozen(x) for _ in range(2)]

    method.train()
    first, second = passes(0)
    assert all(torch.equal(one, other) for one, other in zip(passes(0), (first, second), strict=True))
    assert not torch.equal(first, second)
    assert not torch.equal(first, passes(1)[0])
    assert others[0][1].dropout.name != layer.dropout.name
    assert layer.dropout(torch.ones(99)).unique().tolist() == [0.0, 2.0]
    assert float((layer.dropout(x) == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    method.eval()
    expected = frozen(x) + 2 * x @ layer.A_RI.T @ layer.B_OR.T
    torch.testing.assert_close(layer(x, frozen), expected, rtol=1e-4, atol=1e-5)
    assert not method.graph_safe[0]
