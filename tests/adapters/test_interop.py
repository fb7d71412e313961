"""PEFT's adapters by their own configuration: each finds its counterpart, and what has none is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.adapters import files, interop
from pipeline.adapters.adalora import AdaLoRA
from pipeline.adapters.boft import BOFT
from pipeline.adapters.coft import COFT
from pipeline.adapters.dora import DoRA
from pipeline.adapters.ia3 import IA3
from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.adapters.rslora import RsLoRA
from pipeline.adapters.weight_oft import WeightOFT
from pipeline.core.settings import SettingsError
from pipeline.models.trained import Adapters
from pipeline.quantization.none import Dense
from tests.adapters import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROLES = ("q", "v", "down")
OURS = {
    "lora": LoRA(rank=4, alpha=6.0, roles=ROLES),
    "rslora": RsLoRA(rank=4, alpha=6.0, roles=ROLES),
    "dora": DoRA(rank=4, alpha=6.0, roles=ROLES),
    "ia3": IA3(roles=ROLES),
    "oft": OFT(block_size=16, terms=3, shared=False, roles=ROLES),
    "exact oft": OFT(block_size=16, terms=None, shared=True, roles=ROLES),
    "coft": COFT(block_size=16, terms=5, shared=False, epsilon=0.5, roles=ROLES),
    "oft by blocks": WeightOFT(blocks=4, roles=ROLES),
    "boft": BOFT(block_size=8, factors=1, rescaled=True, dropout=0.0, roles=ROLES),
    "adalora": AdaLoRA(
        rank=4, init_rank=6, alpha=8.0, gamma=0.1, regularizer="code", warm=0.25, cool=0.25, every=1, beta=0.85,
        roles=ROLES,
    ),
}  # fmt: skip
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("name", OURS)
def test_random_weights_go_there_and_back(name, tmp_path, monkeypatch):
    """Ours gives PEFT our outputs; PEFT's copy of it, without our record, gives us them again."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)  # else it tries to compile
    base = tiny.base(Dense())
    method = tiny.place(OURS[name], base)
    tiny.shake(method, size=0.1)
    files.save(method, tmp_path / "ours", base_name="tiny")
    expected = tiny.logits_at(base, method, None)
    theirs = peft.PeftModel.from_pretrained(tiny.model(), tmp_path / "ours").eval()
    with torch.no_grad():
        got = theirs(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    assert (expected - tiny.logits(tiny.base(Dense()))).abs().max() > 0.02
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs.peft_config["default"].base_model_name_or_path = None
    theirs.save_pretrained(tmp_path / "theirs")
    adapters = Adapters(tiny.base(Dense()))
    adapters.load("back", tmp_path / "theirs")
    assert adapters.methods["back"].settings == OURS[name]
    adapters.use("back")
    back, sent = tiny.logits(adapters.base), load_file(tmp_path / "ours" / files.WEIGHTS)
    assert (back - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert sent.keys() == load_file(tmp_path / "theirs" / files.WEIGHTS).keys()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type must be one of LORA, IA3, OFT, BOFT, ADALORA, got 'VERA'"),
        ({"bias": "all"}, "bias='all' has no counterpart"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"a_field_of_next_year": 3}, "a_field_of_next_year=3"),
        ({"target_modules": ["layers.0.self_attn.q_proj"]}, r"leaves out model\.layers\.1\.self_attn\.q_proj"),
        ({"target_modules": ["query"]}, "names none of its layers"),
        ({"use_dora": True, "use_rslora": True}, "use_dora with use_rslora"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(other, message):
    with pytest.raises(SettingsError, match=message):
        interop.settings_of(LORA | other, tiny.base(Dense()).places)


@pytest.mark.parametrize(
    ("wanted", "roles"),
    [
        (["q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"], {"q", "v"}),
        (r".*\.(up|down)_proj", {"up", "down"}),
        ("all-linear", {"q", "k", "v", "o", "gate", "up", "down"}),
    ],
)
def test_targets_are_found_as_peft_finds_them(wanted, roles):
    settings, _ = interop.settings_of(LORA | {"target_modules": wanted}, tiny.base(Dense()).places)
    assert set(settings.roles) == roles
    assert (settings.rank, settings.alpha) == (4, 8.0)


def test_another_file_beside_the_configuration_is_an_error(tmp_path):
    method = tiny.place(OURS["lora"], tiny.base(Dense()))
    files.save(method, tmp_path, base_name="tiny")
    (tmp_path / files.RECORD).unlink()
    config = json.loads((tmp_path / files.CONFIG).read_text())
    for change in ({"r": 8}, {"target_modules": ["q_proj"]}, {"use_dora": True}):
        (tmp_path / files.CONFIG).write_text(json.dumps(config | change))
        adapters = Adapters(tiny.base(Dense()))
        with pytest.raises(ValueError, match=r"must be \(|missing"):
            adapters.load("one", tmp_path)
        assert not adapters.methods
