"""The stage: a tiny model becomes a base that transformers and bitsandbytes load as we do."""

import json
import time
from pathlib import Path

import bitsandbytes
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline.core import records
from pipeline.core.settings import build
from pipeline.models.load import DTYPES, load_base
from pipeline.quantization import files
from pipeline.quantization.base import QuantizationError
from pipeline.stages import quantize_base

CONF = Path(__file__).parents[2] / "conf" / "quantization"
NAMES = [path.stem for path in sorted(CONF.glob("*.yaml"))]
OWN_FOLDER = [name for name in NAMES if name != "none"]
PUBLIC = [name for name in OWN_FOLDER if not name.startswith("int4")]
SIZES = {
    "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
EXPECTED = {  # relative error of a layer, bits a parameter; rows of 128 and 192, so that a row's scale counts
    "nf4": (0.092, 4.5), "nf4-double": (0.092, 4.126953125), "fp4": (0.122, 4.5), "int8": (0.0062, 8.23),
    "int4": (0.1077, 4.5), "int4-affine": (0.0783, 6),
}  # fmt: skip
IDS_BT = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))


def node(name):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))


def prepared(folder, kind="llama", dtype=torch.float32):
    """Write a model and its manifest as `prepare_model` does, weights in two shards."""
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    else:  # tied head, biases on q, k, v
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter)
    model.to(dtype).save_pretrained(folder / "model", max_shard_size="600KB")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(SIZES["vocab_size"])}))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "model")
    hashes = {path.name: records.file_sha256(path) for path in sorted((folder / "model").iterdir())}
    manifest = folder / "manifest.json"
    records.write(manifest, stage="prepare_model", settings={}, result={"files": hashes}, about={})
    return manifest


def quantized(model, folder, name):
    record = folder / name / "manifest.json"
    settings = {"quantization": node(name), "hardware": {"device": "cpu", "threads": 1}}
    quantize_base.run(settings, {"model": model}, {"record": record}, {"started": time.time(), "code": "code:0"})
    return record


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("model"))


def library_model(folder):
    """Load with transformers; keep bitsandbytes from repacking weights in place at the first eval forward."""
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for module in loaded.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return loaded.eval()


def library_weight(layer):
    """Return the dense weight of one of the library's layers; only before any forward, in which it may repack."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.CB, layer.weight.SCB)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(("kind", "dtype"), [("llama", "fp32"), ("qwen2", "fp32"), ("llama", "bf16")])
def test_transformers_loads_the_base_with_our_weights_and_our_logits(tmp_path, name, kind, dtype):
    model = prepared(tmp_path, kind, DTYPES[dtype])
    record = quantized(model, tmp_path, name)
    theirs, ours = library_model(record.parent / "base"), load_base(model, record, device="cpu", dtype=dtype)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    linear = {n: layer for n, layer in theirs.named_modules() if isinstance(layer, kinds)}
    frozen = {site.name: layer for site, layer in ours.frozen().items()}
    assert linear.keys() == frozen.keys()
    assert len(linear) == 2 * 7
    for module, layer in linear.items():
        weight = library_weight(layer)
        assert frozen[module].dense_weight().dtype == DTYPES[dtype]
        assert torch.equal(frozen[module].dense_weight(weight.dtype), weight)
    with torch.no_grad():
        assert torch.equal(theirs(IDS_BT).logits, ours.model(IDS_BT).logits)


@pytest.mark.parametrize("name", ["int4", "int4-affine"])
def test_transformers_refuses_a_base_that_it_cannot_read(model, tmp_path, name):
    record = quantized(model, tmp_path, name)
    with pytest.raises(ValueError, match=r"Unrecognized model .* in its config\.json"):
        AutoModelForCausalLM.from_pretrained(record.parent / "base")


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_says_what_was_stored_and_what_it_cost(model, tmp_path, name):
    record = records.read(quantized(model, tmp_path, name), "quantize_base")
    result, folder = record.result, record.path.parent / "base"
    assert result["format"] == name
    assert [(row["layer"], row["role"]) for row in result["layers"]] == [
        (layer, role) for layer in (0, 1) for role in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    assert result["layers"][5]["site"] == "model.layers.0.mlp.up_proj"
    errors = [row["relative_error"] for row in result["layers"]]
    if name == "none":
        assert not folder.exists()
        assert (result["files"], set(errors), result["bits_per_parameter"]) == ({}, {0.0}, 32.0)
    else:
        error, bits = EXPECTED[name.removeprefix("bnb-")]
        assert errors == pytest.approx([error] * 14, rel=0.1)
        assert all(row["kurtosis"] == pytest.approx(3, abs=0.2) for row in result["layers"])
        assert all(1.5 * error < row["max_error"] < 8 * error for row in result["layers"])
        assert set(result["files"]) == {path.name for path in folder.iterdir()}
        assert {"tokenizer.json", "generation_config.json", files.INDEX} <= set(result["files"])
        assert result["bits_per_parameter"] == pytest.approx(bits, abs=0.01)


def test_head_embeddings_and_norms_stay_as_they_are(model, tmp_path):
    folder = quantized(model, tmp_path, "nf4").parent / "base"
    original = load_base(model, quantized(model, tmp_path, "none"), device="cpu", dtype="fp32").weights
    _, rest = files.read(folder, build(node("nf4")), [
        name.removesuffix(".weight") for name in original.names() if "_proj" in name
    ])  # fmt: skip
    assert set(rest) == {name for name in original.names() if "_proj" not in name}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(rest)
    assert all(torch.equal(tensor, original.tensor(name)) for name, tensor in rest.items())


def test_the_same_settings_give_the_same_bytes(model, tmp_path):
    results = [records.read(quantized(model, tmp_path / again, "nf4-double")).result for again in ("a", "b")]
    assert results[0] == results[1]


def test_a_finished_base_is_replaced_as_a_whole(model, tmp_path):
    folder = quantized(model, tmp_path, "nf4").parent / "base"
    (folder / "stale.safetensors").write_bytes(b"from an older run")
    quantized(model, tmp_path, "nf4")
    assert not (folder / "stale.safetensors").exists()


def test_a_damaged_model_file_is_named(tmp_path):
    model = prepared(tmp_path)
    shard = next((tmp_path / "model").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(records.RecordError, match=rf"{shard.name}: the file is damaged"):
        quantized(model, tmp_path, "nf4")
    assert not (tmp_path / "nf4").exists()


def test_a_damaged_base_file_is_named(model, tmp_path):
    record = quantized(model, tmp_path, "nf4")
    shard = record.parent / "base" / "model-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(records.RecordError, match=rf"{shard.name}: the file is damaged"):
        load_base(model, record, device="cpu", dtype="fp32")


def test_a_weight_that_is_not_finite_is_named_and_leaves_nothing(tmp_path):
    broken = LlamaForCausalLM(LlamaConfig(**SIZES))
    broken.model.layers[1].mlp.down_proj.weight.data[3, 4] = torch.inf
    broken.save_pretrained(tmp_path / "model")
    records.write(tmp_path / "manifest.json", stage="prepare_model", settings={}, result={"files": {}}, about={})
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.down_proj\.weight: .* inf, at row 3, column 4"):
        quantized(tmp_path / "manifest.json", tmp_path, "nf4")
    assert not list((tmp_path / "nf4").iterdir())


def write_shards(folder, format_, shard_bytes):
    writer = files.Writer(folder, format_)
    writer.shard_bytes = shard_bytes
    weights = {f"layer.{i}": format_.quantize(torch.randn(64, 64)) for i in range(6)}
    for module, weight in weights.items():
        writer.add_quantized(module, weight)
    writer.add("norm.weight", torch.ones(64))
    writer.finish({"model_type": "llama"}, ["head"])
    return weights


@pytest.mark.parametrize("name", OWN_FOLDER)
def test_a_base_in_many_shards_reads_as_it_was_written(tmp_path, name):
    format_ = build(node(name))
    weights = write_shards(tmp_path / "base", format_, shard_bytes=6000)
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 6000 + 2000 for path in shards)  # 2,000 bytes of header
    read, rest = files.read(tmp_path / "base", format_, weights)
    assert list(rest) == ["norm.weight"]
    for module, weight in weights.items():
        assert (read[module].shape, read[module].dtype) == (weight.shape, weight.dtype)
        assert read[module].tensors.keys() == weight.tensors.keys()
        assert all(torch.equal(read[module].tensors[key], weight.tensors[key]) for key in weight.tensors)
    index = json.loads((tmp_path / "base" / files.INDEX).read_text())
    held = {path.name: safe_open(path, "pt") for path in shards}
    assert all(name in held[file].keys() for name, file in index["weight_map"].items())  # noqa: SIM118


def test_a_base_of_another_format_is_refused_by_name(tmp_path):
    weights = write_shards(tmp_path / "base", build(node("nf4-double")), 2**20)
    with pytest.raises(QuantizationError, match=r"layer\.0\.weight: .*'nested': False.* got .*'nested': True"):
        files.read(tmp_path / "base", build(node("nf4")), weights)
    with pytest.raises(QuantizationError, match=r"absent\.weight lacks the tensor absent\.weight\.quant_state"):
        files.read(tmp_path / "base", build(node("nf4-double")), ["absent"])


def test_the_keys_and_the_quant_state_are_the_librarys_own():
    for name in ("nf4", "nf4-double"):
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        theirs = bitsandbytes.nn.Linear4bit(
            128, 64, bias=False, quant_type="nf4", compress_statistics=name == "nf4-double"
        )
        theirs.weight = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=name == "nf4-double"
        )
        expected = theirs.to("cpu").state_dict()
        ours = build(node(name)).to_file(build(node(name)).quantize(weight))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.items())
