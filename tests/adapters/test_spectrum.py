"""What is said of a trained update: the directions that it uses, and the angles that it turns by."""

import math

import pytest
import torch

from pipeline.adapters.spectrum import effective_rank, rotation_angles
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from tests.adapters import tiny

every_adapter = pytest.mark.parametrize("adapter", tiny.ADAPTERS, ids=lambda path: path.stem)


@pytest.mark.parametrize("seed", range(3))
def test_effective_rank_is_the_entropy_of_the_whole_product_s_singular_values(seed):
    draw = torch.Generator().manual_seed(seed)
    A_RI, B_OR = torch.randn(4, 30, generator=draw), torch.randn(20, 4, generator=draw)
    share = torch.linalg.svdvals((B_OR @ A_RI).double())
    share = share[share > 1e-4] / share.sum()
    assert effective_rank(A_RI, B_OR) == pytest.approx(math.exp(-(share * share.log()).sum()), abs=1e-4)


@pytest.mark.parametrize(("B", "expected"), [(torch.eye(6, 3), 3.0), (torch.zeros(6, 3), 0.0)])
def test_effective_rank_of_equal_directions_and_of_none(B, expected):
    assert effective_rank(torch.eye(3, 5), B) == pytest.approx(expected)


def test_effective_rank_of_one_direction_is_one_whatever_the_rank():
    assert effective_rank(torch.ones(4, 5), torch.ones(3, 4)) == pytest.approx(1.0, abs=1e-6)


def test_angles_are_those_that_each_plane_is_turned_by():
    def turn(degrees):
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)

    rotation_NCC = torch.stack([torch.block_diag(turn(a), turn(b)) for a, b in ((0, 5), (5, 120))])
    assert rotation_angles(rotation_NCC) == {"p50": 5.0, "p90": 120.0, "p99": 120.0, "max": 120.0}
    assert rotation_angles(torch.eye(3)[None]) == dict.fromkeys(("p50", "p90", "p99", "max"), 0.0)


FAMILIES = {
    "effective_rank": (
        "adalora",
        "adamix",
        "dora",
        "dylora",
        "loftq",
        "lora",
        "peft-lora",
        "pissa",
        "qa-lora",
        "rslora",
    ),
    "rotation_angle": ("adaptive-oft", "boft", "coft", "oft", "peft-oft", "weight-oft"),
}


@every_adapter
def test_every_method_of_a_family_says_what_it_is_of_every_site(adapter):
    settings = tiny.settings(adapter)
    dense = settings.method(0, tiny.TOTAL_STEPS).unquantized_base[0]
    method = tiny.place(settings, tiny.base(Dense() if dense else NF4(block_size=64, double=False)))
    tiny.shake(method)
    found = method.insight()
    for key, family in FAMILIES.items():
        assert key in found or adapter.stem not in family
        if key in found:
            assert set(found[key]) == {site.name for site in method.export()}
    if "effective_rank" in found:
        for site, layer in method.export().items():
            assert 1 < found["effective_rank"][site.name] <= len(layer.tensors()["lora_A.weight"])
    assert all(0 < angle["p50"] <= angle["max"] <= 180 for angle in found.get("rotation_angle", {}).values())
