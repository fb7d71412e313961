"""(IA)3 against the equations of its paper: where the scales sit, how many they are, what merging does to a bias."""

import pytest
import torch
from torch import nn

from pipeline.adapters import files
from pipeline.adapters.ia3 import IA3, InputScale, OutputScale
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from tests.adapters import tiny
from tests.adapters.test_counts import MODELS, one_block

ROLES = ("k", "v", "down")


def placed(seed=0, roles=ROLES):
    base = tiny.base(Dense())
    return base, tiny.place(IA3(roles=roles), base, seed)


@pytest.mark.parametrize("seed", range(3))
def test_an_output_is_scaled_bias_included_and_an_input_before_the_weight(seed):
    torch.manual_seed(seed)
    W, b, x, l_O, l_I = (torch.randn(*shape) for shape in ((5, 6), (5,), (3, 6), (5,), (6,)))
    frozen = tiny.Dense(W, b)
    key = [[l_O[o] * (sum(W[o, i] * row[i] for i in range(6)) + b[o]) for o in range(5)] for row in x]
    inner = [[sum(W[o, i] * l_I[i] * row[i] for i in range(6)) + b[o] for o in range(5)] for row in x]
    torch.testing.assert_close(OutputScale(l_O)(x, frozen), torch.tensor(key))
    torch.testing.assert_close(InputScale(l_I)(x, frozen), torch.tensor(inner))


@pytest.mark.parametrize("seed", range(3))
def test_the_model_computes_the_paper_s_block(seed):
    """softmax(Q (l_k K)^T) (l_v V) and (l_ff gamma(W1 x)) W2, put into the unadapted modules by hooks."""
    base, method = placed(seed)
    tiny.shake(method, seed, size=0.3)
    expected = tiny.model()
    for site, layer in method.placed.items():
        (l,) = (parameter.detach() for parameter in layer.parameters())
        module = expected.get_submodule(site.name)
        if site.role == "down":
            module.register_forward_pre_hook(lambda _, given, l=l: (l * given[0],))
        else:
            module.register_forward_hook(lambda *given, l=l: l * given[-1])
    with torch.no_grad():
        wanted = expected(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    torch.testing.assert_close(tiny.logits(base), wanted, rtol=1e-4, atol=1e-5)


def test_scales_are_ones_and_sit_on_keys_values_and_the_input_of_down():
    _, method = placed(roles=LINEAR_ROLES)
    for site, layer in method.placed.items():
        ((name, scale),) = layer.named_parameters()
        assert (name, len(scale)) == (("l_I", site.in_features) if site.role == "down" else ("l_O", site.out_features))
        assert torch.equal(scale, torch.ones_like(scale))


@pytest.mark.parametrize("name", MODELS)
def test_a_block_has_as_many_parameters_as_keys_values_and_inner_activations(name):
    hidden, inner, kv, *_ = MODELS[name]
    method = IA3(roles=ROLES).method(seed=0, total_steps=1)
    method.place(one_block(hidden, inner, kv))
    assert sum(parameter.numel() for parameter in method.parameters()) == kv + kv + inner


@pytest.mark.parametrize("seed", range(3))
def test_merging_scales_the_bias_with_the_rows_and_leaves_it_with_the_columns(seed):
    torch.manual_seed(seed)
    W, b, x = torch.randn(5, 6), torch.randn(5), torch.randn(3, 6)
    rows, columns = OutputScale(torch.randn(5)), InputScale(torch.randn(6))
    for layer, bias in ((rows, rows.l_O * b), (columns, b)):
        weight_OI, bias_O = layer.update().apply(W, b)
        torch.testing.assert_close(bias_O, bias.detach())
        torch.testing.assert_close(nn.functional.linear(x, weight_OI, bias_O), layer(x, tiny.Dense(W, b)).detach())
        assert layer.update().apply(W, None)[1] is None


@pytest.mark.parametrize("layer", [OutputScale, InputScale])
def test_scales_near_one_survive_bfloat16(layer):
    """Its step above one is 0.8 %: rounded themselves, these scales would all be one."""
    torch.manual_seed(0)
    scale = 1 + 0.003 * torch.rand(64)
    x = torch.randn(4096, 64).bfloat16()
    y = layer(scale)(x, tiny.Dense(torch.eye(64, dtype=torch.bfloat16)))
    rounded_once = (scale * x.float()).bfloat16()
    assert (rounded_once != x).float().mean() > 0.05
    assert (y == rounded_once).float().mean() > 0.99


@pytest.mark.parametrize("roles", [ROLES, ("k", "up", "down"), ("down",)])
def test_in_a_gated_mlp_the_inner_scale_is_one_of_the_rows_of_up(roles):
    base, method = placed(roles=roles)
    tiny.shake(method, size=0.3)
    expected, updates = tiny.logits(base), method.updates()
    base.detach()
    assert {site.role for site in updates} == {*roles, "up"} - {"down"}
    assert all(update.column_scale_I is None for update in updates.values())
    for site, update in updates.items():
        frozen = base.places[site].frozen
        base.places[site].frozen = tiny.Dense(*update.apply(frozen.dense_weight(), frozen.bias))
    torch.testing.assert_close(tiny.logits(base), expected, rtol=1e-4, atol=1e-5)


def test_without_a_gate_the_inner_scale_stays_a_scale_of_columns():
    places = {site: frozen for site, frozen in tiny.base(Dense()).offered().items() if site.role != "gate"}
    method = IA3(roles=("down",)).method(seed=0, total_steps=1)
    method.place(places)
    assert [(site.role, update.row_scale_O) for site, update in method.updates().items()] == [("down", None)] * 2


@pytest.mark.parametrize("seed", range(3))
def test_on_nf4_what_ships_is_what_was_trained(seed):
    """With blocks that lie in a row and scales above zero: the packed codes stay, bit for bit, absmax is l * absmax."""
    base = tiny.base(NF4(block_size=32, double=False))
    method = tiny.place(IA3(roles=ROLES), base, seed)
    tiny.shake(method, seed, size=0.2)
    trained = tiny.logits(base)
    base.detach()
    for site, update in method.updates().items():
        before = base.places[site].frozen.quantized
        assert base.places[site].frozen.absorb(update).empty()
        after = base.places[site].frozen.quantized
        assert torch.equal(after.tensors["packed"], before.tensors["packed"])
        scales_OS = before.tensors["absmax"].view(site.out_features, -1) * update.row_scale_O[:, None]
        assert torch.equal(after.tensors["absmax"], scales_OS.flatten())
    difference = (tiny.logits(base) - trained).abs().max() / trained.abs().max()
    assert difference <= 5e-6


def test_weight_decay_does_not_pull_a_scale_to_zero():
    _, method = placed()
    assert [group.decay for group in method.groups()] == [False]


def test_peft_is_told_which_modules_scale_their_input():
    _, method = placed()
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    assert method.peft() == {"peft_type": "IA3", "feedforward_modules": down}
    assert placed(roles=("k", "v"))[1].peft() == {"peft_type": "IA3", "feedforward_modules": []}


@pytest.mark.parametrize("roles", [("k", "v"), LINEAR_ROLES], ids=["no feed-forward module", "all"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_computes_the_same_with_other_roles(roles, tmp_path):
    peft = pytest.importorskip("peft")
    base, method = placed(roles=roles)
    tiny.shake(method, size=0.3)
    files.save(method, tmp_path, base_name="tiny")
    theirs = peft.PeftModel.from_pretrained(tiny.model(), tmp_path).eval()
    with torch.no_grad():
        got = theirs(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    expected = tiny.logits(base)
    assert (expected - tiny.logits(tiny.base(Dense()))).abs().max() > 0.02
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
