"""What a base is pre-trained on: pairs of prompt and completion, and the tokenizer that cuts them."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.core.settings import Settings
from pipeline.tasks import demo_corpus, demo_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Corpus(Settings):
    """A source of pre-training text."""

    def pairs(self) -> list[tuple[str, str]]:
        """Return (prompt, completion) pairs; the same settings give the same list."""
        raise NotImplementedError  # each corpus has its own

    def tokenizer(self) -> "Tokenizer":
        """Return the tokenizer, with <pad>, <s>, </s> as ids 0, 1, 2."""
        raise NotImplementedError  # each corpus has its own


class DemoCorpus(Corpus):
    """Generated word problems, bare sums and short documents."""

    rows: int = Field(ge=1)
    seed: int

    def pairs(self) -> list[tuple[str, str]]:
        """Return `rows` pairs of the training split of the mix."""
        return demo_corpus.texts(self.seed, self.rows)

    def tokenizer(self) -> "Tokenizer":
        """Return the demo's word-level tokenizer."""
        return demo_tokenizer.build()
