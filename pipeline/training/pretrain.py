"""Pre-trains a small base from nothing, through the same loop as every fine-tune."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.adapters import base as adapters
from pipeline.adapters.base import AdapterLayer, AdapterSettings, Forward, Method
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

    every: int = Field(ge=1, description="each n-th step is a packed one; 1 where the corpus is plain text")
    rows: int = Field(ge=1)
    length: int = Field(ge=2, description="tokens of a row")


class Build(Source):
    """A model of a known architecture at a small size, pre-trained on a corpus."""

    source: Literal["build"] = "build"
    architecture: Literal["llama", "qwen2", "gpt2", "falcon"] = "llama"
    config: dict[str, int | float | bool] = Field(
        description="fields of the architecture's transformers config; vocab_size may exceed the tokenizer's"
    )
    corpus: Built[Corpus]
    optimizer: Built[OptimizerSettings]
    training: Training
    packed: Packed
    seed: int
    threads: int = Field(ge=1, description="of this one job: it runs alone at the start")

    @model_validator(mode="after")
    def _for_pretraining(self) -> "Build":
        if self.training.train_rows != "all" or self.training.choice_losses:
            raise ValueError("training.train_rows and training.choice_losses are for fine-tuning; leave them out")
        return self

    def paths(self) -> list[Path]:
        """Return the files of the corpus."""
        return self.corpus.paths()

    def files(self) -> list[Path]:
        return self.paths()

    def shape(self) -> dict[str, Any]:
        """Return the config without its vocabulary, which the corpus decides."""
        return {"model_type": self.architecture, **self.config}

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Pre-train and save model and tokenizer into `folder`; checkpoints lie beside it until the caller is done."""
        torch.set_num_threads(self.threads)
        tokenizer = self._tokenizer()
        model = self._model(tokenizer).to(device)
        outcome = self._train(model, tokenizer, Checkpoints(folder.parent / "checkpoints", made_by))
        if outcome.reason:
            raise SettingsError(f"model.training: pre-training diverged: {outcome.reason}. Lower learning_rate.")
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"source": "build", "pretraining": {"curve": outcome.curve}}

    def _tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (seconds, and only here)

        return PreTrainedTokenizerFast(tokenizer_object=self.corpus.tokenizer(), **self.corpus.special)

    def _model(self, tokenizer: Any) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

        fields = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in self.corpus.special}
        config = AutoConfig.for_model(self.architecture, **{"vocab_size": len(tokenizer)} | fields | self.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        for name, parameter in model.named_parameters():  # own draws: the library's depend on global state
            if parameter.dim() > 1:
                draw = generator(self.seed, f"init/{name}")
                parameter.data.normal_(0, INIT_STD, generator=draw)
        return model

    def _train(self, model: Any, tokenizer: Any, checkpoints: Checkpoints) -> Outcome:
        kept = self.training
        pairs = [(str(i), prompt, (answer,)) for i, (prompt, answer) in enumerate(self.corpus.pairs())]
        single = batches.encode(tokenizer, pairs, max_length=kept.max_length, loss_on=kept.loss_on).rows
        stretches = self._stretches(tokenizer)
        if not single and self.packed.every > 1:
            raise SettingsError(f"model.packed.every: must be 1 for plain text, got {self.packed.every}.")
        if not stretches:
            raise SettingsError(f"model.packed.length: the corpus is shorter than {self.packed.length} tokens.")
        rows_of = batches.order(self.seed, len(single), kept.batch_size)
        stretches_of = batches.order(self.seed, len(stretches), self.packed.rows)

        def parts(step: int) -> list[Batch]:
            turn, packed = divmod(step, self.packed.every)
            chosen = [single[i] for i in rows_of(step)] if packed else [stretches[i] for i in stretches_of(turn)]
            return batches.parts(chosen, kept.micro_batch_size, 0, model.device)

        method = Whole(model, kept.precision)
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

    def _stretches(self, tokenizer: Any) -> list[batches.Example]:
        """Return the documents, an end of text between two, cut into rows of `packed.length` tokens; the rest goes."""
        ids: list[int] = []
        for number, document in enumerate(self.corpus.documents()):
            ids += [tokenizer.eos_token_id] * (number > 0) + tokenizer.encode(document, add_special_tokens=False)
        length = self.packed.length
        return [batches.Example(ids[i : i + length], 0) for i in range(0, len(ids) - length + 1, length)]


class Whole(Method[AdapterSettings, AdapterLayer]):
    """Every parameter of a model trains, in fp32: no sites, no layers. Matrices decay, vectors do not.

    With precision "bf16" the forward runs under autocast: products in bf16, sums, norms and the loss in fp32.
    """

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__(AdapterSettings(roles=LINEAR_ROLES), seed=0, total_steps=0)
        self.model, self.precision = model, precision

    def loss(self, forward: Forward, batch: adapters.Batch) -> Tensor:
        """Return the mean loss of a part."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return super().loss(forward, batch)

    def groups(self) -> list[Group]:
        """Return the matrices with decay and the vectors without."""
        everything = list(self.model.parameters())
        return [
            Group([p for p in everything if p.dim() > 1]),
            Group([p for p in everything if p.dim() < 2], decay=False),  # noqa: PLR2004
        ]
