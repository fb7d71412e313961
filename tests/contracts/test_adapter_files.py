"""What every method keeps on disk: whole or an error, and PEFT computes the same from it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapters import files
from pipeline.core.records import RecordError
from pipeline.models.trained import Adapters
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from tests.adapters import tiny

CLOSE = 1e-5
"""Of the largest logit, ours against PEFT's. Measured on 2026-11-21: at most 5.2e-7."""

# PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
every_adapter = pytest.mark.parametrize("adapter", tiny.ADAPTERS, ids=lambda path: path.stem)


@pytest.fixture
def saved(adapter, tmp_path):
    """A method with weights away from their start, and its folder."""
    settings = tiny.settings(adapter)
    dense = settings.method(0, tiny.TOTAL_STEPS).unquantized_base[0]
    method = tiny.place(settings, tiny.base(Dense() if dense else NF4(block_size=64, double=False)))
    tiny.shake(method)
    files.save(method, tmp_path / "adapter", base_name="tiny")
    return method, tmp_path / "adapter"


def fresh(method, on=None, **other):
    again = method.settings.model_copy(update=other)
    made = again.method(seed=method.seed, total_steps=method.total_steps)
    on = on or tiny.base(Dense())
    tiny.take(again, on)
    made.place(on.offered())
    return made


@every_adapter
def test_saved_and_loaded_is_the_same(saved, tmp_path):
    method, folder = saved
    base = tiny.base(NF4(block_size=64, double=True))
    files.save(method, tmp_path / "again", base_name="tiny")
    contents = [{path.name: path.read_bytes() for path in one.iterdir()} for one in (folder, tmp_path / "again")]
    assert contents[0] == contents[1]
    assert files.RECORD in contents[0]
    other, same = fresh(method, base), fresh(method, base)
    files.load(other, folder)
    same.load_state_dict(method.state_dict())
    same.refresh()
    for at in tiny.points(method):
        assert torch.equal(tiny.logits_at(base, other, at), tiny.logits_at(base, same, at))


@every_adapter
def test_a_damaged_folder_is_an_error_that_names_the_file(saved):
    method, folder = saved
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (whole[: len(whole) // 2], bytes(flipped), b"", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(RecordError, match=path.name):
                files.load(fresh(method), folder)
            path.write_bytes(whole)
    files.load(fresh(method), folder)


@every_adapter
def test_tensors_that_do_not_fit_are_errors_that_name_the_key(saved):
    method, folder = saved
    path = folder / files.WEIGHTS
    tensors = load_file(path)
    key = sorted(tensors)[0]
    wrong = {
        "missing": {name: value for name, value in tensors.items() if name != key},
        "unknown": tensors | {"base_model.model.lm_head.x": torch.zeros(1)},
        key: tensors | {key: tensors[key][..., :-1].contiguous()},
    }
    for message, one in wrong.items():
        save_file(one, path)
        other = fresh(method)
        before = [parameter.detach().clone() for parameter in other.parameters()]
        with pytest.raises(RecordError, match=message):
            files.fill(other, path)
        assert all(torch.equal(old, new) for old, new in zip(before, other.parameters(), strict=True))


@every_adapter
def test_other_settings_are_an_error_that_names_the_setting(saved):
    method, folder = saved
    with pytest.raises(RecordError, match=r"adapter\.roles"):
        files.load(fresh(method, roles=("q",)), folder)


@every_adapter
def test_every_saved_tensor_counts(saved):
    """A tensor that changes nothing when it changes would be a wrong key in disguise."""
    method, _ = saved
    base = tiny.base(Dense())
    before = tiny.logits_at(base, method, tiny.points(method)[-1])
    layer = next(iter(method.placed.values()))
    draw = torch.Generator().manual_seed(0)
    for name in layer.tensors():
        saved = {key: tensor.detach().clone() for key, tensor in layer.tensors().items()}
        saved[name] += 0.5 * torch.randn(saved[name].shape, generator=draw)
        with torch.no_grad():
            layer.fill(saved)
        method.refresh()
        after = tiny.logits_at(base, method, tiny.points(method)[-1])
        assert not torch.equal(after, before)
        before = after


@every_adapter
def test_peft_computes_the_same_from_our_file(saved):
    method, folder = saved
    said = json.loads((folder / files.RECORD).read_text())["result"]["not_in_peft"]
    if method.peft() is None:
        assert not (folder / files.CONFIG).exists()
        assert said == method.not_peft
        return
    assert said is None
    peft = pytest.importorskip("peft")
    expected = tiny.logits_at(tiny.base(Dense()), method, None)
    loaded = peft.PeftModel.from_pretrained(tiny.model(), folder).eval()  # a missing key warns, so it is an error
    with torch.no_grad():
        got = loaded(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    assert (got - tiny.logits(tiny.base(Dense()))).abs().max() > 0.02
    assert (got - expected).abs().max() <= CLOSE * expected.abs().max()


@every_adapter
def test_peft_s_own_file_fills_ours(adapter, saved, tmp_path):
    method, folder = saved
    if method.peft() is None:
        return
    peft = pytest.importorskip("peft")
    config = peft.PeftConfig.from_pretrained(folder)
    config.base_model_name_or_path, config.inference_mode = None, False
    theirs = peft.get_peft_model(tiny.model(), config).eval()
    torch.manual_seed(3)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    adapters = Adapters(tiny.base(Dense()))
    adapters.load("theirs", tmp_path / "theirs")  # by its own adapter_config.json
    adapters.use("theirs")
    got = tiny.logits(adapters.base)
    other = fresh(method)
    files.fill(other, tmp_path / "theirs" / files.WEIGHTS)
    apart = (tiny.logits_at(tiny.base(Dense()), other, None) - got).abs().max()
    assert apart <= CLOSE * got.abs().max() if adapter.stem.startswith("peft-") else apart == 0  # another row computes
    assert (got - tiny.logits(tiny.base(Dense()))).abs().max() > 0.02
    assert (got - expected).abs().max() <= CLOSE * expected.abs().max()


@every_adapter
def test_a_slice_of_a_fused_projection_is_not_passed_off_as_peft(saved, tmp_path):
    method, _ = saved
    site, layer = next(iter(method.placed.items()))
    fields = {name: getattr(site, name) for name in site.__dataclass_fields__}
    method.placed = {type(site)(**fields | {"rows": tuple(range(site.out_features))}): layer}
    files.save(method, tmp_path / "slice", base_name="tiny")
    assert not (tmp_path / "slice" / files.CONFIG).exists()
    result = json.loads((tmp_path / "slice" / files.RECORD).read_text())["result"]
    assert files.CONFIG not in result["files"]
    assert "PEFT" in result["not_in_peft"]


@every_adapter
def test_what_ships_computes_what_is_exported(saved, tmp_path):
    """At each point the shipped method's own folder, loaded by what it says of itself, is bit for bit the same."""
    method, _ = saved
    base = tiny.base(Dense())
    for at in tiny.points(method):
        files.save(method.shipped(at), tmp_path / "shipped", base_name="tiny")
        settings, seed, total_steps = files.made_of(tmp_path / "shipped")
        again = settings.method(seed, total_steps)
        tiny.take(settings, base)
        again.place(base.offered())
        files.load(again, tmp_path / "shipped")
        base.attach(again.eval().placed)
        assert torch.equal(tiny.logits(base), tiny.logits_at(base, method, at))
