"""AdamW with 8-bit states against the update of bitsandbytes 0.50 on a CPU, bit for bit, and its two forms."""

import math
import sys

import bitsandbytes
import pytest
import torch
from torch import nn

from pipeline.core.group import Group
from pipeline.core.settings import SettingsError, parse
from pipeline.optimizers import blockwise
from pipeline.optimizers.library import LibraryAdamW8bit
from pipeline.optimizers.paged import AdamW8bit, PagedAdamW8bit
from tests.optimizers.test_every_optimizer import OPTIMIZERS, optimizer_settings

SHAPES = [(65536,), (300, 257), (257, 256), (7, 1001), (4096,), (4095,), (16,)]
EIGHT_BITS, THIRTY_TWO_BITS = (0, 1, 2, 3, 4), (5, 6)
SAID = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "min_8bit_size": 4096}


def parameters(seed):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def give_gradients(params, seed, without=()):
    """Of every size; a tenth is zero, a block is, another so small that its second moment's scale underflows."""
    g = torch.Generator().manual_seed(seed)
    for index, p in enumerate(params):
        gradient = torch.randn(p.shape, generator=g) * 10 ** torch.randn(p.shape, generator=g)
        flat = gradient.view(-1)
        flat[torch.rand(flat.shape, generator=g) < 0.1] = 0
        flat[256:512] = 0
        flat[512:768] *= 1e-19
        p.grad = None if index in without else gradient


def rate(step):
    return 1e-2 * (0.5 + 0.5 * math.cos(step / 20))


def ours(params, **changes):
    return AdamW8bit(**(SAID | {"block_size": 256} | changes)).build([Group(params[:3]), Group(params[3:], False, 0.3)])


def theirs(params):
    return LibraryAdamW8bit(**SAID, paged=False).build([Group(params[:3]), Group(params[3:], False, 0.3)])


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_library_bit_for_bit_over_50_steps(seed):
    assert bitsandbytes.__version__.startswith("0.50."), "bit equality is claimed for this version"
    here, there = parameters(seed), parameters(seed)
    optimizer, library = ours(here), theirs(there)
    for step in range(50):
        without = (1, 3) if step % 7 == 5 else ()
        for params in (here, there):
            give_gradients(params, 1000 * seed + step, without)
        optimizer.step(rate(step))
        library.step(rate(step))
    state, expected = optimizer.state_dict(), library.state_dict()
    names = {"first_code": "state1", "second_code": "state2", "first_scale": "absmax1", "second_scale": "absmax2"}
    for i in EIGHT_BITS:
        assert torch.equal(here[i], there[i])
        for name, their_name in (names | {"count": "step"}).items():
            assert torch.equal(state[f"{i}.{name}"], expected[f"{i}.{their_name}"].to(state[f"{i}.{name}"].dtype)), name
        assert state[f"{i}.first_code"].unique().numel() > 150
    for i in THIRTY_TWO_BITS:  # ours is torch's kernel, which rounds otherwise
        torch.testing.assert_close(here[i], there[i], rtol=2e-6, atol=2e-7)
        apart = (state[f"{i}.first_moment"] - expected[f"{i}.state1"]).norm() / expected[f"{i}.state1"].norm()
        assert apart < 1e-6
        assert expected[f"{i}.state2"].dtype == state[f"{i}.second_moment"].dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_form_is_the_readable_form(seed, monkeypatch):
    """Bit for bit, though parameters miss a step now and then, and a state is loaded into fresh pages on the way."""
    fast, slow = parameters(seed), parameters(seed)
    at_once, one_by_one = ours(fast), ours(slow)
    gathered = []
    monkeypatch.setattr(blockwise, "_copy_all", lambda *args: gathered.append(torch._foreach_copy_(*args)))
    for step in range(20):
        for params in (fast, slow):
            give_gradients(params, step, (3, 4) if step in (0, 9) else ())
        if step == 12:
            state = {k: v.clone() for k, v in at_once.state_dict().items()}
            at_once = ours(fast)
            at_once.load_state_dict(state)
        at_once.step(rate(step))
        with monkeypatch.context() as patch:
            patch.setattr(blockwise, "update_page", blockwise.update_pieces)
            one_by_one.step(rate(step))
    assert gathered, "no page was moved at once"
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
    a, b = at_once.state_dict(), one_by_one.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_what_lies_between_two_pieces_decides_no_scale():
    """A block's real elements shrink by cancellation; were its gap to keep an old moment, the scale would stay."""
    p, q = (nn.Parameter(torch.zeros(4097)) for _ in range(2))
    optimizer = ours([p, q], betas=(0.5, 0.5), weight_decay=0.0)
    for value in (1.0, -0.5, 1e-9):
        p.grad, q.grad = torch.full_like(p, value), torch.full_like(q, value)
        (page,) = optimizer.pages
        views = page.views(page.buffer)
        for gap in page.gaps:
            views["first_code"][gap] = 0
        optimizer.step(0.1)
    assert len(page.gaps) == 2
    assert float(optimizer.state_dict()["0.first_scale"][-1]) < 1e-5


def test_a_step_of_its_equation_written_down_slowly():
    """The second of two steps, from the first one's rounded state."""
    p = nn.Parameter(torch.linspace(-1, 1, 4096))
    optimizer = ours([p])
    g = [torch.linspace(-1, 2, 4096) * 10**e for e in (0, -1)]
    p.grad = g[0]
    optimizer.step(0.1)
    state, w = optimizer.state_dict(), p.detach().double()
    signed, unsigned = (bitsandbytes.functional.create_dynamic_map(s).double() for s in (True, False))
    m = signed[state["0.first_code"].long()] * state["0.first_scale"].double().repeat_interleave(256)
    v = unsigned[state["0.second_code"].long()] * state["0.second_scale"].double().repeat_interleave(256)
    m, v = 0.9 * m + 0.1 * g[1].double(), 0.99 * v + 0.01 * g[1].double() ** 2
    expected = (1 - 0.1 * 0.1) * w - 0.1 * (m / (1 - 0.9**2)) / ((v / (1 - 0.99**2)).sqrt() + 1e-8)
    p.grad = g[1]
    optimizer.step(0.1)
    torch.testing.assert_close(p.detach().double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", [p for p in OPTIMIZERS if "8bit" in p.stem], ids=lambda path: path.stem)
def test_masks_are_refused_rather_than_approximated(path):
    p = nn.Parameter(torch.zeros(8))
    with pytest.raises(SettingsError, match=r"freezes single elements.*optimizer=adamw or optimizer=paged-adamw"):
        optimizer_settings(path).build([Group([p], masks=[torch.ones(8)])])
    optimizer_settings(path).build([Group([p], masks=[None])])


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match=r"float32 parameters, got torch.bfloat16"):
        ours([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])
    with pytest.raises(ValueError, match="contiguous"):
        ours([nn.Parameter(torch.zeros(8, 4).T)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 128}, r"block_size.*256"),
        ({"min_8bit_size": -1}, r"min_8bit_size.*greater than or equal to 0"),
        ({"budget_bytes": 0.5}, r"budget_bytes.*integer"),
        ({"budget": 1}, r"no such setting.*Did you mean 'budget_bytes'"),
    ],
)
def test_wrong_settings_are_named(change, message):
    node = SAID | {"betas": [0.9, 0.99], "block_size": 256, "budget_bytes": 0} | change
    with pytest.raises(SettingsError, match=message):
        parse(PagedAdamW8bit, node, "optimizer")


def test_without_the_library_its_row_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SettingsError, match=r"not installed.*pip install.*optimizer=adamw8bit"):
        theirs(parameters(0))
