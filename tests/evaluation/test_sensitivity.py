"""What quantizing one layer alone does to the loss, against swapping its weight by hand."""

import math

import pytest
import torch

from pipeline.evaluation import sensitivity
from pipeline.models.load import load_base
from pipeline.quantization.errors import OUTLIERS, layer_errors, outliers


class Texts:
    """Stands in for the texts of a task: the loss of the model on a few ids."""

    ids_BT = torch.randint(3, 29, (2, 12), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def items(self, model):
        logits_BTV = model(self.ids_BT).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), self.ids_BT[:, 1:].flatten(), reduction="sum"
        )
        return [{"log_likelihood": -float(loss), "tokens": self.ids_BT[:, 1:].numel()}]


def loss(model):
    (item,) = Texts().items(model)
    return -item["log_likelihood"] / item["tokens"]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "falcon"])
def test_a_layer_alone_is_quantized_with_and_without_its_outliers(prepared, kind):
    model, manifest, made = prepared(kind, True, "nf4")
    base = load_base(manifest, made, device="cpu", dtype="fp32")
    before = base.frozen()
    found = sensitivity.measure(base, Texts())
    assert base.frozen() == before
    assert found["loss"] == pytest.approx(loss(model), abs=1e-6)
    stored = {site: frozen for site, frozen in before.items() if site.rows is None}
    assert [row["site"] for row in found["layers"]] == [site.name for site in stored]
    for row, (site, frozen) in list(zip(found["layers"], stored.items(), strict=True))[::3]:
        weight = model.get_submodule(site.name).weight
        original, mask = weight.data.clone(), outliers(weight.data)
        quantized = frozen.dense_weight().T if site.transposed else frozen.dense_weight()
        weight.data = quantized
        assert row["loss_change"] == pytest.approx(loss(model) - found["loss"], abs=2e-6)
        weight.data = torch.where(mask, original.bfloat16().float(), quantized)
        assert row["loss_change_outliers_kept"] == pytest.approx(loss(model) - found["loss"], abs=2e-6)
        weight.data = original


def test_outliers_are_the_largest_and_bear_the_share_that_they_bear():
    weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    weight[3, 4] = -50
    mask = outliers(weight)
    assert mask.sum() == math.ceil(OUTLIERS * 10_000)
    assert mask[3, 4]
    assert weight[mask].abs().min() > weight[~mask].abs().max()
    errors = layer_errors(weight, torch.where(mask, 0, weight))
    assert errors["outlier_error"] == pytest.approx(1)
    assert errors["max_weight"] == pytest.approx(50 / float(weight.double().std(correction=0)))
    assert layer_errors(weight, weight)["outlier_error"] is None
