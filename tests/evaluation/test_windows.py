"""What is read at once: rolling windows against lm-eval's rule said slowly, blocks against transformers' example."""

import pytest

from pipeline.core.settings import SettingsError, build
from pipeline.evaluation.windows import cut


class Letters:
    """A tokenizer of letters that adds a BOS by itself, as Llama's does."""

    bos_token_id, eos_token_id = 1, 2

    def encode(self, text, *, add_special_tokens):
        return [1] * add_special_tokens + [ord(letter) for letter in text]

    def decode(self, token_ids, **_):
        return "".join(map(chr, token_ids))


class NoSpecial(Letters):
    """Has a BOS and never adds it, as GPT-2's."""

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in text]


class NoStart(Letters):
    bos_token_id = None

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in text]


def made(kind, texts, tokenizer, **fields):
    node = {
        "_target_": "pipeline.tasks.language_modeling.LanguageModeling", "name": "own",
        "generation": {"_target_": f"pipeline.tasks.generation.{kind}", "id": "own-v1", "split": "test",
                       "limit": None, "batch_size": 1, **fields},
    }  # fmt: skip
    return cut(build(node), [{"id": str(n), "text": text} for n, text in enumerate(texts)], tokenizer)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 9, 10, 11, 23])
@pytest.mark.parametrize("tokenizer", [Letters(), NoStart()])
def test_every_token_is_scored_once_after_all_that_fits(length, tokenizer):
    context, text = 5, "abcdefghijklmnopqrstuvwxyz"[:length]
    windows = made("Rolling", [text], tokenizer, context=context).windows
    tokens = tokenizer.encode(text, add_special_tokens=True)
    stream = [1 if tokenizer.bos_token_id == 1 else 2, *tokens]
    assert [token for window in windows for token in window.targets] == tokens
    end = 0
    for window in windows:
        end += len(window.targets)
        assert window.ids == stream[max(0, end - context) : end]
        assert window.first == len(window.ids) - len(window.targets)
        assert len(window.ids) <= context


def test_lines_are_encoded_one_by_one_and_joined_by_the_thousand():
    found = made("LineBlocks", ["ab", "cd", "", "ef", "ghi"], Letters(), context=3, lines=2)
    a, b, c, d, e, f, g, h = map(ord, "abcdefgh")
    assert [window.ids for window in found.windows] == [[1, a, b], [1, c, d], [1, 1, e], [1, g, h]]
    assert [window.targets for window in found.windows] == [[a, b], [c, d], [1, e], [g, h]]
    assert found.dropped == 1 + 1
    assert f not in [token for window in found.windows for token in window.ids]
    assert [window.item for window in found.windows] == [f"chunk-0000{n}" for n in range(4)]


def test_joined_texts_have_one_start():
    found = made("Likelihood", ["ab", "c"], Letters(), context=2, separator="-", start="bos")
    assert [window.ids for window in found.windows] == [[1, ord("a")], [ord("b"), ord("-")]]
    assert found.dropped == 1


def test_the_start_of_joined_texts_may_be_the_tokenizer_s_own():
    found = made("Likelihood", ["ab", "c"], NoSpecial(), context=2, separator="-", start="tokenizer")
    assert [window.ids for window in found.windows] == [[ord("a"), ord("b")], [ord("-"), ord("c")]]
    own = made("Likelihood", ["ab", "c"], Letters(), context=2, separator="-", start="tokenizer")
    assert own == made("Likelihood", ["ab", "c"], Letters(), context=2, separator="-", start="bos")


@pytest.mark.parametrize(
    ("kind", "fields"), [("Likelihood", {"separator": "", "start": "bos"}), ("LineBlocks", {"lines": 2})]
)
def test_too_little_text_is_said(kind, fields):
    with pytest.raises(SettingsError, match=r"task.own.generation.context: got 9 tokens, all texts together have \d"):
        made(kind, ["ab"], Letters(), context=9, **fields)
