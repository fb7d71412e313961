"""A base is pre-trained on text files: its tokenizer, its rows, its two precisions, and what is said of wrong ones."""

import lzma

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.core.settings import SettingsError
from pipeline.optimizers.adamw import AdamW
from pipeline.tasks.corpora import TextFiles
from pipeline.training.pretrain import Build, Packed
from pipeline.training.settings import Schedule, Training

TEXT = "".join(f"The {number}th sentence, of {number * 7} words, says nothing new.\n" for number in range(200))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(TEXT.upper().encode()))
    return TextFiles(root=str(tmp_path), files=("a.txt", "b.txt.xz"), vocab_size=300)


def build(corpus, precision="fp32", **packed):
    training = Training(
        task="pre-training",
        steps=8,
        batch_size=2,
        micro_batch_size=1,
        learning_rate=1e-2,
        schedule=Schedule(warmup_steps=0, final_fraction=1.0),
        max_grad_norm=1.0,
        precision=precision,
        max_length=16,
        loss_on="all",
        checkpoint_every=4,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Build(
        name="tiny",
        config=sizes | {"num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": True},
        corpus=corpus,
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0),
        training=training,
        packed=Packed(**{"every": 1, "rows": 2, "length": 16} | packed),
        seed=0,
        threads=1,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_of_text_files_learns_and_is_saved_with_its_tokenizer(corpus, tmp_path, precision):
    folder = tmp_path / "out" / "model"
    curve = build(corpus, precision).prepare(folder, "cpu", {})["pretraining"]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.5
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().num_embeddings == 320
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 300
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.decode(tokenizer.encode("Né 48/2 = 24\n", add_special_tokens=False)) == "Né 48/2 = 24\n"
    assert [tokenizer.decode(token) for token in tokenizer.encode("482")] == ["4", "8", "2"]


def test_one_corpus_makes_one_tokenizer(corpus):
    assert corpus.tokenizer().to_str() == corpus.tokenizer().to_str()


def test_documents_are_parted_and_every_row_is_whole(corpus):
    rows = build(corpus)._stretches(tokenizer := build(corpus)._tokenizer())
    ids = [token for row in rows for token in row.ids]
    first = tokenizer.encode(TEXT, add_special_tokens=False)
    assert ids[: len(first) + 1] == [*first, tokenizer.eos_token_id]
    assert {len(row.ids) for row in rows} == {16}


def test_what_cannot_be_is_said_by_key(corpus, tmp_path):
    with pytest.raises(SettingsError, match=r"model.packed.every: must be 1"):
        build(corpus, every=2).prepare(tmp_path / "x" / "model", "cpu", {})
    with pytest.raises(SettingsError, match=r"model.packed.length: the corpus is shorter"):
        build(corpus, length=10**6).prepare(tmp_path / "y" / "model", "cpu", {})
    with pytest.raises(SettingsError, match=r"model.corpus.root: must be the folder that holds a.txt, b.txt.xz"):
        TextFiles(root=None, files=("a.txt", "b.txt.xz"), vocab_size=300).paths()
    with pytest.raises(SettingsError, match=r"there is no file .*c.txt"):
        TextFiles(root=str(tmp_path), files=("c.txt",), vocab_size=300).paths()
    with pytest.raises(ValueError, match=r"'c.pdf' must end in .txt or .txt.xz"):
        TextFiles(root=str(tmp_path), files=("c.pdf",), vocab_size=300)
