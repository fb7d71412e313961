"""DyLoRA against its paper: one rank a step, scale alpha / b, nesting, and a freeze that momentum does not move."""

from collections import Counter

import pytest
import torch

from pipeline.adapters import files
from pipeline.adapters.dylora import DyLoRA
from pipeline.core.settings import SettingsError, parse
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from tests.adapters import tiny

NODE = {
    "max_rank": 8, "ranks": [1, 2, 4, 8], "drawn": "all", "decay": 1.0, "alpha": 6.0, "frozen_rows": False,
    "roles": list(LINEAR_ROLES),
}  # fmt: skip


def settings(**other) -> DyLoRA:
    return parse(DyLoRA, NODE | other)


def placed(seed=0, **other):
    base = tiny.base(Dense())
    return base, tiny.place(settings(**other), base, seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_uses_the_first_rows_of_every_layer_at_alpha_over_b(seed):
    _, method = placed(seed)
    tiny.shake(method, seed)
    method.train()
    ranks = set()
    for step in range(6):
        method.before_step(step)
        b, _ = method.draw(step)
        ranks.add(b)
        for site, layer in method.placed.items():
            frozen = tiny.Dense(torch.randn(site.out_features, site.in_features))
            x = torch.randn(3, site.in_features)
            weight_OI = frozen.weight_OI + 6.0 / b * layer.B_OR[:, :b] @ layer.A_RI[:b]
            torch.testing.assert_close(layer(x, frozen), x @ weight_OI.T, rtol=1e-4, atol=1e-4)
    assert len(ranks) > 1


def test_a_draw_depends_on_seed_and_step_alone():
    _, one = placed(seed=0)
    _, other = placed(seed=1)
    forward, backward = ([one.draw(step) for step in order] for order in (range(50), reversed(range(50))))
    assert forward == backward[::-1]
    assert forward != [other.draw(step) for step in range(50)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("drawn", "decay"), [("all", 1.0), ("all", 0.7), ("ranks", 1.0)])
def test_ranks_are_drawn_as_the_settings_say(seed, drawn, decay):
    _, method = placed(seed, drawn=drawn, decay=decay)
    n = 4000
    seen = Counter(method.draw(step)[0] for step in range(n))
    allowed = [1, 2, 4, 8] if drawn == "ranks" else list(range(1, 9))
    assert set(seen) == set(allowed)
    total = sum(decay**b for b in allowed)
    # A chi-square of 7 degrees of freedom or less is above 30 once in 10 000.
    assert sum((seen[b] - n * decay**b / total) ** 2 / (n * decay**b / total) for b in allowed) < 30


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("frozen_rows", [True, False])
def test_frozen_rows_keep_weight_moments_and_count(frozen_rows, seed):
    base, method = placed(seed, frozen_rows=frozen_rows)
    optimizer, layers = tiny.optimizer(method), list(method.placed.values())
    slots = [(layer.A_RI, 1) for layer in layers] + [(layer.B_OR, 0) for layer in layers]
    for step in range(10):
        before = [parameter.detach().clone() for parameter, _ in slots]
        state = {key: value.clone() for key, value in optimizer.state_dict().items()}
        tiny.train(base, method, optimizer, range(step, step + 1))
        b, _ = method.draw(step)
        moves_R = torch.arange(8) == b - 1 if frozen_rows else torch.arange(8) < b
        for slot, (parameter, axis) in enumerate(slots):
            stays = ~moves_R.unsqueeze(axis)
            pairs = [(parameter, before[slot])]
            for kind in ("first_moment", "second_moment", "count"):
                pairs.append((optimizer.state_dict()[f"{slot}.{kind}"], state[f"{slot}.{kind}"]))
            for new, old in pairs:
                assert torch.equal(new[stays.expand_as(new)], old[stays.expand_as(old)])
            if axis == 0:  # while B is zero, A has no gradient
                assert torch.equal((parameter != before[slot]).any(0), moves_R)


def test_frozen_rows_of_a_list_of_ranks_are_those_between_them():
    _, method = placed(frozen_rows=True, drawn="ranks")
    blocks = {method.draw(step) for step in range(60)}
    assert blocks == {(1, 0), (2, 1), (4, 2), (8, 4)}
    for step in range(6):
        method.before_step(step)
        b, stay = method.draw(step)
        assert method.moves_R1.flatten().tolist() == [float(stay <= row < b) for row in range(8)]


def test_clipping_sees_only_what_moves():
    base, method = placed(frozen_rows=True)
    tiny.shake(method)
    method.train()
    step = next(step for step in range(100) if method.draw(step)[0] == 5)
    method.before_step(step)
    method.loss(lambda batch: tiny.forward(base.model, batch), tiny.parts()[0]).backward()
    method.after_backward(step)
    for layer in method.placed.values():
        assert layer.A_RI.grad.any(1).tolist() == layer.B_OR.grad.any(0).tolist() == [row == 4 for row in range(8)]


@pytest.mark.parametrize("b", [1, 3, 8])
def test_a_rank_is_a_plain_lora_that_knows_nothing_of_later_rows(b):
    base, method = placed()
    tiny.shake(method)
    kept = {name: value.clone() for name, value in method.state_dict().items()}
    before = tiny.logits_at(base, method, b)
    assert {layer.scale for layer in method.export(b).values()} == {6.0 / b}
    assert {layer.A_RI.shape[0] for layer in method.export(b).values()} == {b}
    assert all(torch.equal(value, kept[name]) for name, value in method.state_dict().items())
    with torch.no_grad():
        for layer in method.placed.values():
            layer.A_RI[b:] += 1
            layer.B_OR[:, b:] -= 1
    assert torch.equal(tiny.logits_at(base, method, b), before)
    with torch.no_grad():
        next(iter(method.placed.values())).B_OR[:, b - 1] += 1
    assert not torch.equal(tiny.logits_at(base, method, b), before)


@pytest.mark.parametrize("b", [1, 4, 8])
def test_without_alpha_it_is_twice_the_largest_rank(b):
    _, method = placed(alpha=None)
    assert {layer.scale for layer in method.export(b).values()} == {16.0 / b}


@pytest.mark.parametrize("b", [2, 8])
def test_a_rank_in_training_is_the_rank_that_is_exported(b):
    base, method = placed()
    tiny.shake(method)
    method.before_step(next(step for step in range(100) if method.draw(step)[0] == b))
    method.train()
    base.attach(method.placed)
    in_training = tiny.logits(base)
    torch.testing.assert_close(in_training, tiny.logits_at(base, method, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_rank_set_on_the_loaded_model_is_bit_for_bit_the_exported_one(seed):
    base, method = placed(seed)
    tiny.shake(method, seed)
    method.eval()
    expected = {b: tiny.logits_at(base, method, b) for b in range(1, 9)}
    updates = {b: {site: layer.update().delta_OI for site, layer in method.export(b).items()} for b in range(1, 9)}
    kept = {name: value.clone() for name, value in method.state_dict().items()}
    base.attach(method.placed)
    assert torch.equal(tiny.logits(base), expected[8]), "the largest until another is set"
    for b in (3, 8, 1, 5, None):  # down and up again: nothing is lost on the way
        method.set_rank(b)
        assert torch.equal(tiny.logits(base), expected[b or 8])
        for site, layer in method.placed.items():
            assert torch.equal(layer.update().delta_OI, updates[b or 8][site])
    assert all(torch.equal(value, kept[name]) for name, value in method.state_dict().items())


def test_a_rank_that_was_set_does_not_touch_training_or_what_is_saved(tmp_path):
    ends = []
    for b in (None, 2):
        base, method = placed()
        method.set_rank(b)
        tiny.train(base, method, tiny.optimizer(method), range(4))
        files.save(method, tmp_path / str(b), base_name="tiny")
        ends.append((tmp_path / str(b) / files.WEIGHTS).read_bytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("b", [0, 9])
def test_a_rank_that_there_is_not_cannot_be_set(b):
    with pytest.raises(SettingsError, match=f"has no rank {b}: any from 1 to 8"):
        placed()[1].set_rank(b)


def test_peft_computes_the_same_at_a_rank(tmp_path):
    peft = pytest.importorskip("peft")
    base, method = placed()
    tiny.shake(method)
    files.save(method.shipped(4), tmp_path, base_name="tiny")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT 0.21 with transformers 5.23
        loaded = peft.PeftModel.from_pretrained(tiny.model(), tmp_path).eval()
    with torch.no_grad():
        got = loaded(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    torch.testing.assert_close(got, tiny.logits_at(base, method, 4), rtol=1e-5, atol=1e-5)


def test_insight_counts_the_draws():
    base, method = placed()
    tiny.train(base, method, tiny.optimizer(method), range(9))
    expected = Counter(method.draw(step)[0] for step in range(9))
    assert method.insight()["steps_at_rank"] == {str(b): expected[b] for b in range(1, 9)}


@pytest.mark.parametrize("b", [0, 9])
def test_a_rank_that_was_not_trained_is_refused(b):
    with pytest.raises(ValueError, match=f"no rank {b}"):
        placed()[1].export(b)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ranks": [2, 1]}, "must rise"),
        ({"ranks": [1, 1]}, "must rise"),
        ({"ranks": [1, 16]}, "at or below max_rank 8"),
        ({"ranks": [1, 4], "drawn": "ranks"}, "would never train"),
        ({"decay": 1.5}, "decay"),
        ({"drawn": "some"}, "drawn"),
    ],
)
def test_wrong_settings_are_refused(other, message):
    with pytest.raises(SettingsError, match=message):
        settings(**other)
