"""Pre-trains a small base from nothing, through the same loop as every fine-tune."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Method
from pipeline.core.group import Group
from pipeline.core.seeds import generator
from pipeline.core.settings import Built, Settings, SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.models.source import Source
from pipeline.optimizers.base import OptimizerSettings
from pipeline.steps.train import Batch, forward
from pipeline.tasks.corpora import Corpus
from pipeline.training import batches
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Outcome, Run, train
from pipeline.training.settings import Training
from pipeline.training.tracking import progress

INIT_STD = 0.02


class Packed(Settings):
    """Steps whose rows are whole stretches of text, so that positions beyond one row's length are learned too."""

    every: int = Field(ge=2, description="each n-th step is a packed one")
    rows: int = Field(ge=1)
    length: int = Field(ge=2, description="tokens of a row")


class Build(Source):
    """A model of a known architecture at a small size, pre-trained on a corpus."""

    source: Literal["build"] = "build"
    architecture: Literal["llama", "qwen2", "gpt2", "falcon"] = "llama"
    config: dict[str, int | float | bool] = Field(description="fields of the architecture's transformers config")
    corpus: Built[Corpus]
    optimizer: Built[OptimizerSettings]
    training: Training
    packed: Packed
    seed: int
    threads: int = Field(ge=1, description="of this one job: it runs alone at the start")

    @model_validator(mode="after")
    def _in_fp32(self) -> "Build":
        if self.training.precision != "fp32":
            raise ValueError(f"training.precision must be fp32 for pre-training, got {self.training.precision}")
        return self

    def shape(self) -> dict[str, Any]:
        """Return the config without its vocabulary, which the corpus decides."""
        return {"model_type": self.architecture, **self.config}

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Pre-train and save model and tokenizer into `folder`; checkpoints lie beside it until the caller is done."""
        torch.set_num_threads(self.threads)
        tokenizer = self._tokenizer()
        model = self._model(len(tokenizer)).to(device)
        outcome = self._train(model, tokenizer, Checkpoints(folder.parent / "checkpoints", made_by))
        if outcome.reason:
            raise SettingsError(f"model.training: pre-training diverged: {outcome.reason}. Lower learning_rate.")
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"source": "build", "pretraining": {"curve": outcome.curve}}

    def _tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (seconds, and only here)

        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        return PreTrainedTokenizerFast(tokenizer_object=self.corpus.tokenizer(), **special)

    def _model(self, vocabulary: int) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(self.architecture, vocab_size=vocabulary, **ids, **self.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        for name, parameter in model.named_parameters():  # own draws: the library's depend on global state
            if parameter.dim() > 1:
                draw = generator(self.seed, f"init/{name}")
                parameter.data.normal_(0, INIT_STD, generator=draw)
        return model

    def _train(self, model: Any, tokenizer: Any, checkpoints: Checkpoints) -> Outcome:
        kept = self.training
        pairs = [(str(i), *pair) for i, pair in enumerate(self.corpus.pairs())]
        single = batches.encode(tokenizer, pairs, max_length=kept.max_length, loss_on=kept.loss_on).rows
        stretches = self._stretches(tokenizer, [prompt + answer for _, prompt, answer in pairs])
        rows_of = batches.order(self.seed, len(single), kept.batch_size)
        stretches_of = batches.order(self.seed, len(stretches), self.packed.rows)

        def parts(step: int) -> list[Batch]:
            turn, packed = divmod(step, self.packed.every)
            chosen = [single[i] for i in rows_of(step)] if packed else [stretches[i] for i in stretches_of(turn)]
            return batches.parts(chosen, kept.micro_batch_size, 0, model.device)

        method = Whole(model)
        run = Run(
            forward=partial(forward, model),
            parts=parts,
            method=method,
            optimizer=self.optimizer.build(method.groups()),
            settings=kept,
            checkpoints=checkpoints,
            report=progress(kept.steps),
        )
        return train(run)

    def _stretches(self, tokenizer: Any, texts: list[str]) -> list[batches.Example]:
        """Return the corpus as one text, cut into rows of `packed.length` tokens; the rest is dropped."""
        ids, length = tokenizer.encode("\n\n".join(texts), add_special_tokens=False), self.packed.length
        return [batches.Example(ids[i : i + length], 0) for i in range(0, len(ids) - length + 1, length)]


class Whole(Method[AdapterSettings, AdapterLayer]):
    """Every parameter of a model trains: no sites, no layers. Matrices decay, vectors do not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(AdapterSettings(roles=LINEAR_ROLES), seed=0, total_steps=0)
        self.model = model

    def groups(self) -> list[Group]:
        """Return the matrices with decay and the vectors without."""
        everything = list(self.model.parameters())
        return [
            Group([p for p in everything if p.dim() > 1]),
            Group([p for p in everything if p.dim() < 2], decay=False),  # noqa: PLR2004
        ]
