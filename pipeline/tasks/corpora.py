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

    special: ClassVar[dict[str, str]] = {
        "pad_token": demo_tokenizer.PAD,
        "bos_token": demo_tokenizer.BOS,
        "eos_token": demo_tokenizer.EOS,
    }

    def pairs(self) -> list[tuple[str, str]]:
        """Return `rows` pairs of the training split of the mix."""
        return demo_corpus.texts(self.seed, self.rows)

    def documents(self) -> list[str]:
        return ["\n\n".join(prompt + completion for prompt, completion in self.pairs())]

    def tokenizer(self) -> "Tokenizer":
        """Return the demo's word-level tokenizer."""
        return demo_tokenizer.build()


class TextFiles(Corpus):
    """Whole text files, one document each, and byte-pair merges learned from them."""

    root: str | None = Field(description="a folder that holds `files`")
    files: tuple[str, ...] = Field(min_length=1, description="paths below `root`: .txt, or .txt.xz")
    vocab_size: int = Field(ge=257, description="tokens, of which 256 are the bytes and one is <|endoftext|>")

    special: ClassVar[dict[str, str]] = dict.fromkeys(("pad_token", "bos_token", "eos_token"), "<|endoftext|>")

    @field_validator("files")
    @classmethod
    def _text(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in files if not name.endswith((".txt", ".txt.xz"))]:
            raise ValueError(f"{wrong[0]!r} must end in .txt or .txt.xz")
        return files

    def pairs(self) -> list[tuple[str, str]]:
        return []

    def documents(self) -> list[str]:
        return [self._text_of(path) for path in self.paths()]

    def paths(self) -> list[Path]:
        """Return the files; an error names the first that is not there."""
        if self.root is None:
            raise SettingsError(
                f"model.corpus.root: must be the folder that holds {', '.join(self.files)}; got null. "
                "Set data_root=<folder>."
            )
        paths = [Path(self.root, name) for name in self.files]
        for path in paths:
            if not path.is_file():
                raise SettingsError(f"model.corpus.root: there is no file {path} (looked for it in {Path.cwd()}).")
        return paths

    def tokenizer(self) -> "Tokenizer":
        """Return a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) of the texts; every digit is a token.

        The same files give the same merges: pairs are counted exactly, and ties go to the lower ids.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415  (no plan needs it)

        tokenizer = Tokenizer(models.BPE())
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=sorted(set(self.special.values())),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self.documents(), trainer)
        return tokenizer

    @staticmethod
    def _text_of(path: Path) -> str:
        return (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode()
