"""The ratios of the merge report against their definitions, against the known course of survival, and at the edges."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.adapters.lora import LoRA, LoRALayer, LoRAMethod
from pipeline.adapters.qa_lora import QALoRA
from pipeline.core.settings import build
from pipeline.core.site import LINEAR_ROLES
from pipeline.core.update import Update
from pipeline.merging.report import report
from pipeline.models import states
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base

MERGED = [state for state in states.STATES if state not in ("base", "trained")]
SETTINGS = LoRA(rank=16, alpha=16, roles=list(LINEAR_ROLES))
DYLORA = Path(__file__).parents[2] / "conf" / "adapter" / "dylora.yaml"


def loaded(prepared, format_):
    _, model, manifest = prepared("llama", True, format_)
    return load_base(model, manifest, device="cpu", dtype="fp32")


def trained(base, ratio, seed=0):
    """A LoRA whose update at each site has `ratio` of the norm of the base's weight."""
    method = adapt(base, SETTINGS, seed, total_steps=1)
    g = torch.Generator().manual_seed(seed)
    for site, layer in method.placed.items():
        layer.A_RI.data.normal_(generator=g)
        layer.B_OR.data.normal_(generator=g)
        weight = base.frozen()[site].dense_weight()
        layer.B_OR.data *= ratio * weight.norm() / layer.update().delta_OI.norm()
    return method


def norm(x):
    return float(torch.linalg.vector_norm(x))


@pytest.mark.parametrize("format_", ["none", "nf4", "nf4-double", "int4-affine"])
def test_a_dense_merge_keeps_the_whole_update(prepared, format_):
    base = loaded(prepared, format_)
    found = report(base, trained(base, 0.05), ["merged-original"])["states"]["merged-original"]
    assert found["relative_update"] == pytest.approx(0.05, rel=0.01)
    assert found["survival"] == pytest.approx(1, abs=1e-5)
    assert found["error"] < 1e-7
    assert len(found["sites"]) == 14
    assert all((row["block_absmax_ratio"] is None) == (format_ == "none") for row in found["sites"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_updates_are_rounded_away_when_put_back_on_the_grid(prepared, seed):
    """The course measured on Gaussian weights: survival .01 / .04 / .84 / .99 at ratios .01 / .03 / .10 / .30."""
    base = loaded(prepared, "nf4")
    for ratio, survival, error in [(0.01, 0.015, 0.0108), (0.03, 0.04, 0.032), (0.1, 0.84, 0.078), (0.3, 0.99, 0.0915)]:
        found = report(base, trained(base, ratio, seed), ["requantized-dequantized"])["states"][
            "requantized-dequantized"
        ]
        assert found["relative_update"] == pytest.approx(ratio, rel=1e-4)
        assert found["survival"] == pytest.approx(survival, abs=0.03)
        assert found["error"] == pytest.approx(error, rel=0.08)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quantizing_the_merged_original_keeps_the_update_at_the_price_of_the_format(prepared, seed):
    base = loaded(prepared, "nf4-double")
    for ratio in (0.03, 0.3):
        found = report(base, trained(base, ratio, seed), ["requantized-original"])["states"]["requantized-original"]
        assert found["survival"] == pytest.approx(1, abs=0.15)
        assert found["error"] == pytest.approx(0.092, abs=0.004)


def test_every_figure_by_its_definition(prepared):
    base = loaded(prepared, "nf4-double")
    method = trained(base, 0.08)
    found = report(base, method, MERGED)["states"]
    for state in MERGED:
        parts = []
        for row in found[state]["sites"]:
            (site,) = [site for site in method.placed if site.name == row["site"]]
            stored = base.frozen()[site].dense_weight()
            weight = base.weights.tensor(f"{site.name}.weight") if state.endswith("original") else stored
            delta = method.placed[site].update().delta_OI
            meant = weight + delta
            requantized = state.startswith("requantized")
            shipped = base.format.dequantize(base.format.quantize(meant)) if requantized else meant
            kept = float(((shipped - (stored if requantized else weight)) * delta).sum())
            parts.append((norm(weight) ** 2, norm(delta) ** 2, kept, norm(shipped - meant) ** 2, norm(meant) ** 2))
            assert row["relative_update"] == pytest.approx(norm(delta) / norm(weight), rel=1e-4)
            assert row["survival"] == pytest.approx(kept / norm(delta) ** 2, rel=1e-3)
            assert row["error"] == pytest.approx(norm(shipped - meant) / norm(meant), rel=1e-3, abs=1e-7)
            assert (row["role"], row["layer"]) == (site.role, site.layer)
            widened = (weight + delta).view(-1, 64).abs().amax(1) / weight.view(-1, 64).abs().amax(1)
            for name, quantile in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                expected = float(torch.quantile(widened, quantile))
                assert row["block_absmax_ratio"][name] == pytest.approx(expected, rel=1e-4)
        weight, delta, kept, error, meant = (sum(column) for column in zip(*parts, strict=True))
        assert found[state]["relative_update"] == pytest.approx((delta / weight) ** 0.5, rel=1e-4)
        assert found[state]["survival"] == pytest.approx(kept / delta, rel=1e-3)
        assert found[state]["error"] == pytest.approx((error / meant) ** 0.5, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("format_", ["nf4", "nf4-double"])
def test_the_digest_is_that_of_the_state_that_is_evaluated(prepared, format_):
    base = loaded(prepared, format_)
    method = trained(base, 0.1)
    before = dict(base.frozen())
    found = report(base, method, MERGED)
    assert base.frozen() == before
    wanted, _ = states.labels(MERGED, method, base.format)
    digests = []
    for label in wanted:
        with states.entered(base, method, label) as digest:
            digests.append(digest)
            assert digest == found["states"][str(label)]["digest"]
    assert len(set(digests)) == 4


def test_the_digest_does_not_depend_on_the_precision_of_evaluation(prepared):
    _, model, manifest = prepared("qwen2", True, "nf4")  # with biases
    digests = []
    for dtype in ("fp32", "bf16"):
        base = load_base(model, manifest, device="cpu", dtype=dtype)
        found = report(base, trained(base, 0.1), MERGED)["states"]
        digests.append([one["digest"] for one in found.values()])
    assert digests[0] == digests[1]


def test_a_method_with_points_is_reported_at_each(prepared):
    base = loaded(prepared, "nf4")
    settings = build(OmegaConf.to_container(OmegaConf.load(DYLORA)) | {"max_rank": 4, "ranks": [1, 4], "roles": ["q"]})
    method = adapt(base, settings, 0, total_steps=1)
    for group in method.groups():
        for parameter in group.parameters:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    found = report(base, method, ["merged-original", "requantized-dequantized"])["states"]
    assert list(found) == [
        "merged-original@r1", "merged-original@r4", "requantized-dequantized@r1", "requantized-dequantized@r4",
    ]  # fmt: skip
    assert len({one["digest"] for one in found.values()}) == 4
    assert {row["role"] for row in found["merged-original@r1"]["sites"]} == {"q"}


def test_what_is_the_same_or_cannot_be_is_skipped_with_its_reason(prepared, monkeypatch):
    base = loaded(prepared, "none")
    method = trained(base, 0.1)
    found = report(base, method, MERGED)
    assert list(found["states"]) == ["merged-original"]
    assert found["skipped"]["requantized-original"] == "the base is not quantized"
    monkeypatch.setattr(LoRAMethod, "mergeable", (False, "it has a nonlinearity"))
    found = report(base, method, MERGED)
    assert found["states"] == {}
    assert set(found["skipped"]) == set(MERGED)
    assert found["skipped"]["merged-original"] == "cannot be merged: it has a nonlinearity"


def test_no_update_has_no_survival(prepared):
    base = loaded(prepared, "nf4")
    found = report(base, adapt(base, SETTINGS, 0, total_steps=1), MERGED)
    for one in found["states"].values():
        assert one["relative_update"] == 0
        assert one["survival"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("format_", "error"), [("nf4", 2e-7), ("nf4-double", 0.004)])
def test_row_scales_survive_being_put_back_on_the_grid(prepared, monkeypatch, format_, error):
    """They go into the scales of the blocks; rounding those to 8 bits is all that double quantization adds."""
    base = loaded(prepared, format_)
    method = adapt(base, SETTINGS, 0, total_steps=1)

    def row_scale(self):
        return Update(row_scale_O=1 + 0.01 * torch.arange(len(self.B_OR)) / len(self.B_OR))

    monkeypatch.setattr(LoRALayer, "update", row_scale)
    found = report(base, method, ["requantized-dequantized"])["states"]["requantized-dequantized"]
    assert found["error"] < error
    if format_ == "nf4":
        assert found["survival"] == pytest.approx(1, abs=1e-5)
        assert (found["exact"], found["requantized"]) == (1, {})
    else:
        assert found["exact"] == 0
        assert found["requantized"] == {"double quantization would round the scaled scales to 8 bits again": 14}


def test_what_ships_in_integers_is_what_was_scored(prepared):
    """QA-LoRA on its own base: exact at every site, and the reason on a base of another format."""
    settings = QALoRA(rank=4, alpha=8.0, roles=list(LINEAR_ROLES), group_size=32)
    ids = torch.tensor([[1, 5, 9, 20, 3, 7]])
    for format_ in ("int4-affine", "nf4"):
        base = loaded(prepared, format_)
        method = adapt(base, settings, 0, total_steps=1)
        for layer in method.placed.values():
            layer.B_OR.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
        found = report(base, method, MERGED)["states"]
        assert {state for state, one in found.items() if one["exact"] is not None} == {"requantized-dequantized"}
        one = found["requantized-dequantized"]
        with torch.no_grad():
            with states.entered(base, method, states.Label("trained")):
                trained = base.model(ids).logits
            with states.entered(base, method, states.Label("requantized-dequantized")) as digest:
                difference = (base.model(ids).logits - trained).norm() / trained.norm()
        assert digest == one["digest"]
        if format_ == "int4-affine":
            assert (one["exact"], one["requantized"]) == (1, {})
            assert one["error"] < 2e-7
            assert one["survival"] == pytest.approx(1, abs=1e-5)
            assert difference < 5e-6
        else:
            assert (one["exact"], one["requantized"]) == (0, {"nf4 has no zero points that a sum could go into": 14})
            assert difference > 1e-2
