"""Presets have the published shapes; weights of a shape alone are drawn in shards, in the memory of one of them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError, build
from pipeline.models.load import load_base, unfilled
from pipeline.stages import prepare_model, quantize_base
from pipeline.sweeps.compose import composed
from tests.models.conftest import FORMATS, HARDWARE, KINDS, SIZES, save_model

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
}
"""Parameters, a tied head counted once. The hub counts what files hold, and Falcon's hold the tied head again."""
PRESETS = [path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*[0-9]b.yaml")]
NODE = {
    "_target_": "pipeline.models.preset.Preset", "name": "tiny", "source": "random", "repository": "some/model",
    "dtype": "bf16", "seed": 0,
}  # fmt: skip


def node(name, **other):
    return composed((("model", name),))["model"] | other


def drawn(folder, **other):
    kind = other.pop("kind", "llama")
    config = KINDS[kind] | {"model_type": kind.partition("-")[0], "vocab_size": 300}
    record = folder / "manifest.json"
    settings = {"model": NODE | {"config": config} | other, "hardware": HARDWARE}
    prepare_model.run(settings, {}, {"record": record}, {"started": time.time()})
    return record


def test_every_preset_is_counted():
    assert sorted(PRESETS) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    source = build(node(name), "model")
    with torch.device("meta"):
        model = unfilled(source.shape())
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_refused_until_it_is_pinned_and_needs_no_hub_at_random(name, tmp_path):
    source = build(node(name), "model")
    with pytest.raises(SettingsError, match=r"not pinned.*python -m pipeline pin[\s\S]*model\.source=random"):
        source.prepare(tmp_path / "model", "cpu", {})
    random = build(node(name, source="random"), "model")
    assert random.wanted() == ()
    assert random.name == f"{name}-random"
    assert build(random.node(), "model").name == random.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_model_is_a_folder_that_transformers_loads_and_the_seed_decides(tmp_path, kind):
    folders = [
        drawn(tmp_path / name, kind=kind, seed=seed).parent / "model"
        for name, seed in zip("abc", (0, 0, 1), strict=True)
    ]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in folders]
    weights = [dict(model.named_parameters()) for model in models]
    assert next(models[0].parameters()).dtype == torch.bfloat16
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    matrix = next(value for name, value in weights[0].items() if value.dim() > 1)
    assert float(matrix.detach().float().std()) == pytest.approx(0.02, rel=0.05)
    record = tmp_path / "a" / "manifest.json"
    base = tmp_path / "base" / "manifest.json"
    settings = {"quantization": FORMATS["nf4"], "hardware": HARDWARE}
    quantize_base.run(settings, {"model": record}, {"record": base}, {"started": time.time()})
    loaded = load_base(record, base, device="cpu", dtype="fp32")
    ids = torch.tensor([loaded.tokenizer.encode("Größe 7 €", add_special_tokens=False)])
    assert loaded.tokenizer.decode(ids[0]) == "Größe 7 €"
    assert torch.isfinite(loaded.model(ids).logits).all()


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"model\.config\.vocab_size: must be at least 259 .*got 40"):
        drawn(tmp_path, config=SIZES | {"model_type": "llama"})


def test_a_repository_that_is_not_the_preset_s_is_refused(tmp_path, monkeypatch):
    save_model(tmp_path / "hub")
    config = SIZES | {"model_type": "llama", "num_hidden_layers": 3}
    hashes = {path.name: "0" * 64 for path in (tmp_path / "hub").iterdir()}
    source = build(NODE | {"source": "hub", "config": config, "revision": "a" * 40, "sha256": hashes}, "model")
    monkeypatch.setattr(type(source), "present", lambda self, told="": None)
    monkeypatch.setattr(type(source), "verified", lambda self, name: tmp_path / "hub" / name)
    with pytest.raises(
        SettingsError, match=r"has \{'num_hidden_layers': 2\}, and the preset says \{'num_hidden_layers': 3\}"
    ):
        source.prepare(tmp_path / "model", "cpu", {})


def test_a_local_file_that_changed_after_the_plan_is_refused(tmp_path):
    save_model(tmp_path / "origin")
    source = {"_target_": "pipeline.models.source.Local", "name": "tiny", "path": str(tmp_path / "origin")}
    paths = build(source, "model").files()
    settings = {"model": source, "hardware": HARDWARE, "files": {str(path): "0" * 64 for path in paths}}
    with pytest.raises(RecordError, match=r"config\.json, .* changed, came or went after the run was planned"):
        prepare_model.run(settings, {}, {"record": tmp_path / "m" / "manifest.json"}, {"started": time.time()})
    assert not (tmp_path / "m" / "manifest.json").exists()


PEAK = """
import json, resource, sys, time
from pathlib import Path
from pipeline.quantization import files
files.Shards.shard_bytes = 2**22
from pipeline.stages import prepare_model, quantize_base
root, model, quantization, hardware = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
manifest, base = root / "model" / "manifest.json", root / "base" / "manifest.json"
began = lambda: {"started": time.time()}
prepare_model.run({"model": model, "hardware": hardware}, {}, {"record": manifest}, began())
settings = {"quantization": quantization, "hardware": hardware}
quantize_base.run(settings, {"model": manifest}, {"record": base}, began())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_preparing_takes_the_memory_of_a_shard_and_a_layer_not_of_the_model(tmp_path):
    """12 and 72 blocks of 3.2 MB each: 190 MB more of model must not be 190 MB more of memory."""
    peaks = {}
    for layers in (12, 72):
        config = SIZES | {"model_type": "llama", "vocab_size": 300, "hidden_size": 512, "intermediate_size": 512}
        model = NODE | {"config": config | {"num_hidden_layers": layers}}
        told = [json.dumps(part) for part in (model, FORMATS["nf4-double"], HARDWARE)]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / str(layers)), *told], check=True, capture_output=True, text=True
        )
        peaks[layers] = int(done.stdout.splitlines()[-1])
    assert peaks[72] - peaks[12] < 40e6, peaks
