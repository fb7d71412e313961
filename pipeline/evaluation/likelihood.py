"""Log-likelihoods of a task's texts, chunk by chunk. Letters: B chunks, T tokens of a chunk, D hidden width."""

import math
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.settings import SettingsError
from pipeline.steps.tokens import Tokenizer, prompt_ids
from pipeline.tasks.base import Row, Task
from pipeline.tasks.generation import Likelihood

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Chunks:
    """The texts of a task, joined, tokenized once after one BOS, and cut into chunks that do not overlap."""

    def __init__(self, task: Task, rows: list[Row], tokenizer: Tokenizer, context: int) -> None:
        """Tokenize and cut; what is left after the last whole chunk is dropped.

        Raises:
            SettingsError: a chunk is longer than the model's `context`, or the texts are shorter than one chunk.
        """
        assert isinstance(task.generation, Likelihood)
        self.settings = task.generation
        size = self.settings.context
        key = f"task.{task.name}.generation.context"
        if size > context:
            raise SettingsError(f"{key}: got {size} tokens, the model allows {context}. Make it smaller.")
        tokens = prompt_ids(tokenizer, self.settings.separator.join(task.reference(row) for row in rows))
        if len(tokens) < size:
            raise SettingsError(f"{key}: got {size} tokens, all texts together have {len(tokens)}. Make it smaller.")
        count = len(tokens) // size
        self.chunks_BT = torch.tensor(tokens[: count * size]).view(count, size)
        self.bos, self.dropped = tokenizer.bos_token_id, len(tokens) - count * size

    def __len__(self) -> int:
        """Return the number of items of a state."""
        return len(self.chunks_BT)

    def decoding(self) -> dict[str, Any]:
        """Return what decides a likelihood and is no setting, for the record."""
        return {"bos": self.bos}

    def facts(self) -> dict[str, Any]:
        """Return what was counted, for the record."""
        return {"dropped_tokens": self.dropped}

    @torch.no_grad()
    def items(self, model: "PreTrainedModel") -> list[dict[str, Any]]:
        """Return the log-likelihood in nats of every chunk's shifted targets, in order.

        Raises:
            FloatingPointError: a log-likelihood is not a finite number.
        """
        head, found = model.get_output_embeddings(), []
        assert head is not None
        for ids_BT in self.chunks_BT.to(model.device).split(self.settings.batch_size):
            hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
            for hidden_TD, ids_T in zip(hidden_BTD, ids_BT, strict=True):  # the logits of one chunk at a time
                logits_TV = head(hidden_TD[:-1]).float()
                found.append(-torch.nn.functional.cross_entropy(logits_TV, ids_T[1:], reduction="sum").item())
        if not all(map(math.isfinite, found)):
            raise FloatingPointError("the model's log-likelihoods are not finite")
        tokens = self.settings.context - 1
        return [
            {"item": f"chunk-{index:05}", "log_likelihood": one, "tokens": tokens} for index, one in enumerate(found)
        ]
