"""Every method on layers of any shape: what fits computes the same for any form of its input, the rest is refused."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES, Site
from tests.adapters import tiny

ROUGH = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}
"""Of the largest output, against the whole batch in float32."""


@st.composite
def places(draw):
    """One block of layers of drawn widths, its norm, and the stack of blocks that it is."""
    torch.manual_seed(0)
    width, inner = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    sides = {"down": (inner, width)} | dict.fromkeys(("gate", "up"), (width, inner))
    sites = [Site(f"m.0.{role}", role, *sides.get(role, (width, width)), 0, bias=True) for role in LINEAR_ROLES]
    sites += [Site("m.0.norm", "norm", width, width, 0, bias=False), Site("m", "stack", width, width, 0, bias=False)]
    return {site: tiny.frozen(site) for site in sites}


@pytest.mark.parametrize("adapter", tiny.ADAPTERS, ids=lambda path: path.stem)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(places=places(), rows=st.integers(0, 3), time=st.integers(1, 4), dtype=st.sampled_from(list(ROUGH)))
def test_any_shape_computes_or_is_refused_by_name(adapter, places, rows, time, dtype):
    method = tiny.settings(adapter).method(seed=0, total_steps=tiny.TOTAL_STEPS)
    try:
        method.place(places)
    except SettingsError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert refused.startswith("adapter.")
        assert "divide" in refused or "equal blocks" in refused
        return
    tiny.shake(method, size=0.02)
    method.eval()
    for site, layer in method.export(tiny.points(method)[0]).items():
        x = torch.randn(time, rows, site.in_features, generator=torch.Generator().manual_seed(0))
        expected = layer(x.transpose(0, 1).contiguous(), places[site])
        got = layer(x.to(dtype).transpose(0, 1), tiny.cast(places[site], dtype))
        assert (got.shape, got.dtype) == ((rows, time, site.out_features), dtype)
        if rows:
            assert (got - expected).abs().max() <= ROUGH[dtype] * expected.abs().max() + 1e-6
