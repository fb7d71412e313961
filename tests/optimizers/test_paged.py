"""Pages: states beyond the budget live elsewhere and change no bit. On a CPU, where the host stands for itself."""

from functools import partial

import pytest
import torch
from torch import nn

from pipeline.core.group import Group
from pipeline.core.settings import SettingsError
from pipeline.optimizers.adamw import AdamW
from pipeline.optimizers.paged import AdamW8bit, PagedAdamW, PagedAdamW8bit, PagesOptimizer
from pipeline.optimizers.pages import BLOCK, IN_FLIGHT, NARROW, WIDE, Layout, lay_out, place
from pipeline.optimizers.traffic import OneByOne
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Run, train
from tests.adapters import tiny
from tests.training.test_loop import Killed
from tests.training.test_loop import settings as training

CPU = torch.device("cpu")
SAID = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
EIGHT = {"min_8bit_size": 300, "block_size": 256}
SHAPES = [(40, 100), (5, 3), (2000,), (700, 3), (60, 80), (256,), ()]
PAGE = 1024
"""Elements of a page in these tests."""


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(Layout, "capacity", PAGE)


def parameters(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def give_gradients(params, seed, without=()):
    g = torch.Generator().manual_seed(seed)
    for index, p in enumerate(params):
        gradient = torch.randn(p.shape, generator=g)
        p.grad = None if index in without else gradient


def groups(params, masked=False):
    masks = [None, torch.ones(5, 1), None, torch.ones(1, 3), None] if masked else None
    return [Group(params[:5], masks=masks), Group(params[5:], decay=False, lr_scale=0.3)]


def paged(kind, params, resident=0, masked=False):
    """The optimizer with most of its states on the host, whatever the device: `resident` pages fit beside."""
    settings = kind(**SAID, **(EIGHT if kind is PagedAdamW8bit else {}), budget_bytes=0)
    sizes = [page.bytes for page in lay_out(groups(params, masked), settings.layout)]
    optimizer = PagesOptimizer(settings, groups(params, masked), IN_FLIGHT * max(sizes) + sum(sizes[:resident]))
    assert sum(page.paged for page in optimizer.pages) >= 3
    return optimizer


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("resident", [0, 2])
@pytest.mark.parametrize(("kind", "masked"), [(PagedAdamW, False), (PagedAdamW, True), (PagedAdamW8bit, False)])
def test_same_bits_as_unpaged_and_states_of_the_same_names(kind, masked, resident):
    there, here = parameters(), parameters()
    pages = paged(kind, there, resident, masked)
    plain = (AdamW(**SAID) if kind is PagedAdamW else AdamW8bit(**SAID, **EIGHT)).build(groups(here, masked))
    for step in range(20):
        for params, optimizer in ((there, pages), (here, plain)):
            give_gradients(params, step, without=(0, 3) if step % 5 == 2 else ())
            optimizer.clip(1.0)
            optimizer.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))
    assert same(pages.state_dict(), plain.state_dict())


@pytest.mark.parametrize("path", tiny.ADAPTERS, ids=lambda path: path.stem)
def test_every_method_trains_with_the_same_bits(path):
    """Masks of methods that freeze elements included, DyLoRA's among them."""
    found = []
    for budget in (0, None):
        adapter = tiny.settings(path)
        quantized = adapter.method(seed=0, total_steps=tiny.TOTAL_STEPS).quantized_base[0]
        base = tiny.base(NF4(block_size=64, double=False) if quantized else Dense())
        method = tiny.place(adapter, base)
        if budget is None:
            optimizer = AdamW(**SAID).build(method.groups())
        else:
            settings = PagedAdamW(**SAID, budget_bytes=budget)
            pages = lay_out(method.groups(), settings.layout)
            sizes = [page.bytes for page in pages]
            optimizer = PagesOptimizer(settings, method.groups(), IN_FLIGHT * max(sizes))
            assert (optimizer.about()["state_bytes_on_host"] > 0) == (sum(sizes) > IN_FLIGHT * max(sizes))
        losses = tiny.train(base, method, optimizer, range(tiny.TOTAL_STEPS), count=2)
        found.append((losses, {k: v.clone() for k, v in method.state_dict().items()}))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", [PagedAdamW, PagedAdamW8bit])
def test_a_state_moves_between_paged_and_unpaged(kind):
    """A checkpoint does not know where states lay: saved with pages here, continued with others elsewhere."""
    a, b = parameters(), parameters()
    first, straight = paged(kind, a), paged(kind, b)
    for step in range(10):
        if step == 5:
            state = {k: v.clone() for k, v in first.state_dict().items()}
            first = paged(kind, a, resident=3)
            first.load_state_dict(state)
        for params, optimizer in ((a, first), (b, straight)):
            give_gradients(params, step)
            optimizer.step(1e-2)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert same(first.state_dict(), straight.state_dict())


@pytest.mark.parametrize("kind", [PagedAdamW, PagedAdamW8bit])
def test_traffic_is_counted_in_bytes_and_seconds(kind):
    params = parameters()
    optimizer = paged(kind, params, resident=1)
    on_host = sum(page.bytes for page in optimizer.pages if page.paged)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step(1e-2)
    about = optimizer.about()
    assert about["state_bytes_on_host"] == on_host < about["state_bytes"]
    assert about["page_bytes_to_device"] == about["page_bytes_to_host"] == 3 * on_host
    assert about["page_seconds_to_device"] > 0
    assert about["page_seconds_to_host"] > 0
    give_gradients(params, 4, without=range(1, len(params)))
    optimizer.step(1e-2)
    moved = optimizer.about()["page_bytes_to_host"] - about["page_bytes_to_host"]
    assert 0 < moved < on_host, "pages without a gradient stay where they are"


def test_the_budget_holds_residents_and_pages_in_flight():
    settings = PagedAdamW(**SAID, budget_bytes=0)
    pages = lay_out(groups(parameters()), settings.layout)
    sizes = [page.bytes for page in pages]
    for budget in (IN_FLIGHT * max(sizes), sum(sizes) - 1, sum(sizes)):
        place(pages := lay_out(groups(parameters()), settings.layout), budget, CPU)
        resident = sum(page.bytes for page in pages if not page.paged)
        assert resident + (IN_FLIGHT * max(sizes) if any(page.paged for page in pages) else 0) <= budget
        assert any(page.paged for page in pages) == (budget < sum(sizes))
    with pytest.raises(SettingsError, match=rf"budget_bytes: must be at least {IN_FLIGHT * max(sizes)} .* got 1\."):
        place(lay_out(groups(parameters()), settings.layout), 1, CPU)


def test_killed_and_resumed_while_paging_has_the_bits_of_undisturbed(tmp_path):
    def run(folder, kill_after=None):
        base = tiny.base(NF4(block_size=64, double=False))
        method = tiny.place(tiny.settings(next(p for p in tiny.ADAPTERS if p.stem == "lora")), base)
        settings = PagedAdamW8bit(**SAID, **EIGHT, budget_bytes=0)
        in_flight = IN_FLIGHT * max(page.bytes for page in lay_out(method.groups(), settings.layout))
        optimizer = PagesOptimizer(settings, method.groups(), in_flight)
        parts, checkpoints = partial(tiny.parts, 2), Checkpoints(folder, {"settings": "paged"})

        def report(point):
            if point["step"] == kill_after:
                raise Killed

        outcome = train(Run(partial(forward, base.model), parts, method, optimizer, training(), checkpoints, report))
        return {k: v.clone() for k, v in (method.state_dict() | optimizer.state_dict()).items()}, outcome, optimizer

    undisturbed, outcome, optimizer = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", kill_after=7)
    resumed, again, _ = run(tmp_path / "b")
    about = optimizer.about()
    assert about["state_bytes_on_host"] == about["state_bytes"] > 0
    assert about["page_bytes_to_device"] >= tiny.TOTAL_STEPS * about["state_bytes"]
    assert again.resumed_at == 6
    assert same(resumed, undisturbed)
    assert again.curve == outcome.curve


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_pages_hold_every_element_once_and_are_full(layout):
    pages = lay_out(groups(parameters()), lambda _: layout)
    held = {index: [] for index in range(len(SHAPES))}
    for page in pages:
        assert page.elements <= PAGE
        assert page.bytes == sum(
            view.nbytes for view in page.views(torch.empty(page.bytes, dtype=torch.uint8)).values()
        )
        end = 0
        for piece in page.pieces:
            assert piece.at == end
            assert piece.at % BLOCK == 0 == piece.span.start % BLOCK
            end = -(-piece.within.stop // BLOCK) * BLOCK
            held[piece.index] += range(piece.span.start, piece.span.stop)
        assert end == page.elements
    assert held == {index: list(range(p.numel())) for index, p in enumerate(parameters())}
    assert all(page.elements == PAGE for page in pages if page.group is pages[0].group and page is not pages[-2])


def test_a_masked_parameter_is_not_cut():
    pages = lay_out(groups(parameters(), masked=True), lambda _: WIDE)
    pieces = [piece for page in pages for piece in page.pieces if piece.mask is not None]
    assert [piece.elements for piece in pieces] == [15, 2100]
    assert [piece.count.shape for piece in pieces] == [(5, 1), (1, 3)]


def test_nothing_moves_one_by_one_when_all_is_resident():
    params = parameters()
    optimizer = AdamW8bit(**SAID, **EIGHT).build([Group(params)])
    assert isinstance(optimizer.traffic, OneByOne)
    give_gradients(params, 0)
    optimizer.step(1e-2)
    about = optimizer.about()
    assert about.pop("state_bytes") > 0
    assert about.pop("budget_bytes") is None
    assert set(about.values()) == {0}
