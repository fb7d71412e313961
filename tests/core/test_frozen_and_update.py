"""The doorways: a frozen layer's gradient, and what an update does to a weight."""

import pytest
import torch

from pipeline.core.frozen import FrozenLinear
from pipeline.core.update import Update


class Plain(FrozenLinear):
    def __init__(self, weight_OI, bias):
        super().__init__()
        self.weight_OI, self.bias = weight_OI, bias
        self.out_features, self.in_features = weight_OI.shape

    def dense_weight(self, dtype=None):
        return self.weight_OI.to(dtype or self.weight_OI.dtype)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_input_is_right_and_nothing_else_has_one(seed):
    torch.manual_seed(seed)
    layer = Plain(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight_OI, layer.bias))
    layer(x).sum().backward()
    assert layer.weight_OI.grad is None


def test_output_may_be_added_to_in_place():
    layer = Plain(torch.randn(5, 3), None)
    y = layer(torch.randn(2, 4, 3, requires_grad=True))
    y += 1.0
    y.sum().backward()


@pytest.mark.parametrize("seed", range(3))
def test_update_equals_the_composition_that_it_promises(seed):
    torch.manual_seed(seed)
    O, N, C = 6, 2, 4
    W, b, x = torch.randn(O, N * C), torch.randn(O), torch.randn(7, N * C)
    R, delta = torch.linalg.qr(torch.randn(N, C, C))[0], torch.randn(O, N * C)
    row, column, bias = torch.rand(O) + 0.5, torch.rand(N * C) + 0.5, torch.randn(O)
    W2, b2 = Update(delta, R, row, column, bias).apply(W, b)
    # x is rotated block by block, then W reads it; the column scale lies between the two.
    block = torch.block_diag(*R)
    inner = W @ block.T * column + delta
    torch.testing.assert_close(x @ W2.T + b2, x @ (row[:, None] * inner).T + row * b + bias)


def test_empty_update_changes_nothing():
    W, b = torch.randn(3, 2), torch.randn(3)
    assert Update().empty()
    assert all(torch.equal(a, c) for a, c in zip(Update().apply(W, b), (W, b), strict=True))
