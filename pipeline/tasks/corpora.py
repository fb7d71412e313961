"""What a base is pre-trained on: pairs of prompt and completion or plain text, and the tokenizer that cuts them."""

import lzma
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from pipeline.core.settings import Settings, SettingsError
from pipeline.tasks import demo_corpus, demo_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Corpus(Settings):
    """A source of pre-training text."""

    special: ClassVar[dict[str, str]]
    """The tokenizer's pad_token, bos_token and eos_token."""

    def pairs(self) -> list[tuple[str, str]]:
        """Return (prompt, completion) pairs, each a row of its own; the same settings give the same list."""
        raise NotImplementedError  # each corpus has its own

    def documents(self) -> list[str]:
        """Return the text that is cut into rows of one length; a row may reach from one document into the next."""
        raise NotImplementedError  # each corpus has its own

    def paths(self) -> list[Path]:
        """Return the files that the corpus reads."""
        return []

    def tokenizer(self) -> "Tokenizer":
        """Return the tokenizer; it adds no special tokens by itself."""
        raise NotImplementedError  # each corpus has its own


class DemoCorpus(Corpus):
    """Generated word problems, bare sums and short documents."""

    rows: int = Field(ge=1)
    seed: int

    special = {"pad_token": demo_tokenizer.PAD, "bos_token": demo_tokenizer.BOS, "eos_token": demo_tokenizer.EOS}

    def pairs(self) -> list[tuple[str, str]]:
        """Return `rows` pairs of the training split of the mix."""
        return demo_corpus.texts(self.seed, self.rows)

    def documents(self) -> list[str]:
        return ["\n\n".join(prompt + completion for prompt, completion in self.pairs())]

    def tokenizer(self) -> "Tokenizer":
        """Return the demo's word-level tokenizer."""
        return demo_tokenizer.build()


class TextFiles(Corpus):
    """Whole text files, one document each, cut by the byte-pair merges of GPT-2 or of any tokenizer laid out alike."""

    root: str | None = Field(description="a folder that holds `files`, `vocabulary` and `merges`")
    files: tuple[str, ...] = Field(min_length=1, description="paths below `root`: .txt, or .txt.xz")
    vocabulary: str = Field(description="path below `root`: JSON, token -> id (GPT-2's encoder.json)")
    merges: str = Field(description="path below `root`: one merge a line (GPT-2's vocab.bpe)")

    special = dict.fromkeys(("pad_token", "bos_token", "eos_token"), "<|endoftext|>")

    @field_validator("files")
    @classmethod
    def _text(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in files if not name.endswith((".txt", ".txt.xz"))]:
            raise ValueError(f"{wrong[0]!r} must end in .txt or .txt.xz")
        return files

    def pairs(self) -> list[tuple[str, str]]:
        return []

    def documents(self) -> list[str]:
        return [self._text_of(self._path(name)) for name in self.files]

    def paths(self) -> list[Path]:
        return [self._path(name) for name in (*self.files, self.vocabulary, self.merges)]

    def tokenizer(self) -> "Tokenizer":
        """Return the byte-level BPE of the two files; `<|endoftext|>` must be in the vocabulary."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  (a plan needs none of it)

        tokenizer = Tokenizer(models.BPE.from_file(str(self._path(self.vocabulary)), str(self._path(self.merges))))
        before = tokenizer.get_vocab_size()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(sorted(set(self.special.values())))
        if tokenizer.get_vocab_size() != before:
            raise SettingsError(f"corpus.vocabulary: {self.vocabulary} lacks the token <|endoftext|>.")
        return tokenizer

    def _path(self, name: str) -> Path:
        if self.root is None:
            raise SettingsError(
                f"corpus.root: must be the folder that holds {', '.join(self.files)}, {self.vocabulary} and "
                f"{self.merges}; got null. Set model.corpus.root=<folder>."
            )
        path = Path(self.root, name)
        if not path.is_file():
            raise SettingsError(f"corpus.root: there is no file {path} (looked for it in {Path.cwd()}).")
        return path

    @staticmethod
    def _text_of(path: Path) -> str:
        return (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode()
