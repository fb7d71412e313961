"""Every layer of a method in conf/adapter by itself: whatever the shape, the dtype and the device of its base."""

import copy

import torch

from pipeline.quantization.none import Dense
from tests.adapters import tiny
from tests.contracts.test_every_adapter import every_adapter, on_base


@every_adapter
def test_layers_take_every_shape_and_dtype(adapter):
    _, method = on_base(adapter)
    tiny.shake(method)
    for site, layer in method.export(tiny.points(method)[0]).items():
        frozen = tiny.frozen(site)
        x = torch.randn(3, 5, site.in_features)
        whole = layer(x, frozen)
        assert whole.shape == (3, 5, site.out_features)
        for part in (
            layer(x[1], frozen),
            layer(x.transpose(0, 1), frozen).transpose(0, 1)[1],
            layer(x[1:2], frozen)[0],
        ):
            torch.testing.assert_close(part, whole[1], rtol=1e-5, atol=1e-5)
        assert layer(x[:0], frozen).shape == (0, 5, site.out_features)
        for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
            half = copy.deepcopy(frozen).to(dtype)
            got = layer(x.to(dtype), half)
            assert got.dtype is dtype
            assert (got - whole).abs().max() <= tolerance * whole.abs().max()
        assert all(parameter.dtype is torch.float32 for parameter in layer.parameters())


@every_adapter
def test_starts_as_it_says_in_bfloat16(adapter):
    places = {site: tiny.frozen(site, torch.bfloat16) for site in tiny.base(Dense()).places}
    method = tiny.settings(adapter).method(seed=0, total_steps=tiny.TOTAL_STEPS)
    method.place(places)
    for site, layer in method.placed.items():
        x = torch.randn(4, site.in_features, dtype=torch.bfloat16)
        assert method.start[0] != "identity" or torch.equal(layer(x, places[site]), places[site](x))


@every_adapter
def test_every_tensor_is_made_on_the_device_of_the_base(adapter):
    """The meta device stands for any other than the CPU: an operation on tensors of both is an error."""
    places = {site: tiny.frozen(site, device="meta") for site in tiny.base(Dense()).places}
    method = tiny.settings(adapter).method(seed=0, total_steps=tiny.TOTAL_STEPS)
    method.place(places)
    made = [
        *method.parameters(),
        *method.buffers(),
        *(t for one in method.placed.values() for t in one.tensors().values()),
    ]
    assert {tensor.device.type for tensor in made} == {"meta"}
    method.train()
    method.before_step(0)
    for site, layer in method.placed.items():
        layer(torch.empty(2, site.in_features, device="meta"), places[site]).sum().backward()
    method.after_backward(0)
    method.after_step(tiny.TOTAL_STEPS - 1)
    method.refresh()
