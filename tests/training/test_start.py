"""Where training starts: recorded with the base's own loss wherever a method does not start as the base."""

import pytest

from pipeline.quantization.none import Dense
from pipeline.steps.train import mean_loss
from pipeline.training.finetune import started
from tests.adapters import tiny


@pytest.mark.parametrize("name", ["lora", "houlsby", "meft"])
def test_what_does_not_start_as_the_base_says_at_which_loss_it_starts(name, capsys):
    base = tiny.base(Dense())
    alone = mean_loss(base.model, tiny.parts())
    method = tiny.place(tiny.settings(tiny.ROOT / "conf" / "adapter" / f"{name}.yaml"), base)
    found, said = started(base, method, tiny.parts()), capsys.readouterr().out
    assert found["kind"] == method.start[0]
    if name == "lora":
        assert (found.keys(), said) == ({"kind"}, "")
        return
    assert found["base_loss"] == alone
    assert found["loss"] == mean_loss(base.model, tiny.parts()) != alone
    assert f"{found['loss']:.4f}, of the base alone {alone:.4f}" in said
