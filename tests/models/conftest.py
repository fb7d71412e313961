"""Prepared tiny models: real folders made by the real stages."""

import json
import time

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.stages import prepare_model, quantize_base

HARDWARE = {"device": "cpu", "threads": 1}
SIZES = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 40, "n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FALCON = {key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")}
KINDS = {
    "llama": SIZES,
    "qwen2": SIZES,
    "gpt2": GPT2,
    "falcon": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "bias": True},
    "falcon-7b": FALCON | {"multi_query": True, "alibi": False, "bias": False, "parallel_attn": True},
    "falcon-rw": FALCON | {"multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
}
"""Sizes by architecture; the part of a name behind the hyphen tells variants of one architecture apart."""
FORMATS = {
    "none": {"_target_": "pipeline.quantization.none.Dense"},
    "nf4": {"_target_": "pipeline.quantization.nf4.NF4", "block_size": 64, "double": False},
    "nf4-double": {"_target_": "pipeline.quantization.nf4.NF4", "block_size": 64, "double": True},
    "int4-affine": {"_target_": "pipeline.quantization.int4.Int4Affine", "group_size": 32},
}


def save_model(folder, kind="llama", tied=True):
    """Save a random model and a tokenizer as save_pretrained does; return the model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.partition("-")[0], tie_word_embeddings=tied, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Return a function (kind, tied, format) -> (transformers model, model manifest, base manifest)."""
    made = {}

    def prepare(kind="llama", tied=True, format_="none"):
        key = json.dumps([kind, tied])
        if key not in made:
            root = tmp_path_factory.mktemp(f"{kind}{tied}")
            model = save_model(root / "origin", kind, tied)
            node = {"_target_": "pipeline.models.source.Local", "name": "tiny", "path": str(root / "origin")}
            manifest = root / "prepared" / "manifest.json"
            about = {"started": time.time()}
            prepare_model.run({"model": node, "hardware": HARDWARE}, {}, {"record": manifest}, about)
            made[key] = model, manifest
        model, manifest = made[key]
        base = manifest.parent.parent / f"base-{format_}" / "manifest.json"
        if not base.exists():
            settings = {"quantization": FORMATS[format_], "hardware": HARDWARE}
            quantize_base.run(settings, {"model": manifest}, {"record": base}, {"started": time.time()})
        return model, manifest, base

    return prepare
