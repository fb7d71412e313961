"""Log-likelihoods of a task's texts, window by window. Letters: B windows, T tokens of a window, D hidden width."""

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.settings import SettingsError
from pipeline.evaluation.windows import Window, cut
from pipeline.steps.tokens import Tokenizer
from pipeline.tasks.base import Row, Task
from pipeline.tasks.generation import Likelihood, LineBlocks, Rolling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Chunks:
    """The texts of a task as the windows that a model reads, made once for all states."""

    def __init__(self, task: Task, rows: list[Row], tokenizer: Tokenizer, context: int) -> None:
        """Tokenize and cut.

        Raises:
            SettingsError: a window is longer than the model's `context`, or the texts are shorter than one.
        """
        assert isinstance(task.generation, Likelihood | LineBlocks | Rolling)
        self.settings = task.generation
        if (size := self.settings.context) > context:
            key = f"task.{task.name}.generation.context"
            raise SettingsError(f"{key}: got {size} tokens, the model allows {context}. Make it smaller.")
        made = cut(task, rows, tokenizer)
        self.windows, self.dropped = made.windows, made.dropped
        self.bos = tokenizer.bos_token_id

    def __len__(self) -> int:
        """Return the number of items of a state."""
        return len({window.item for window in self.windows})

    def decoding(self) -> dict[str, Any]:
        """Return what decides a likelihood and is no setting, for the record."""
        return {"bos": self.bos}

    def facts(self) -> dict[str, Any]:
        """Return what was counted, for the record."""
        return {"dropped_tokens": self.dropped}

    @torch.no_grad()
    def items(self, model: "PreTrainedModel") -> list[dict[str, Any]]:
        """Return the log-likelihood in nats of every item's targets, in order, and of each of its windows.

        Raises:
            FloatingPointError: a log-likelihood is not a finite number.
        """
        found: list[float] = []
        size = self.settings.batch_size
        for start in range(0, len(self.windows), size):
            found += _scored(model, self.windows[start : start + size])
        if not all(map(math.isfinite, found)):
            raise FloatingPointError("the model's log-likelihoods are not finite")
        return [
            _item(name, [(window, one) for window, one in group])
            for name, group in groupby(zip(self.windows, found, strict=True), key=lambda pair: pair[0].item)
        ]


def _item(name: str, parts: list[tuple[Window, float]]) -> dict[str, Any]:
    tokens = sum(len(window.targets) for window, _ in parts)
    item = {"item": name, "log_likelihood": math.fsum(one for _, one in parts), "tokens": tokens}
    return item if len(parts) == 1 else item | {"windows": [one for _, one in parts]}


def _scored(model: "PreTrainedModel", windows: list[Window]) -> list[float]:
    """Return the log-likelihood of each window's targets.

    Shorter windows are padded on the right, where a causal model looks from no position that counts.
    """
    head, longest = model.get_output_embeddings(), max(len(window.ids) for window in windows)
    assert head is not None
    ids_BT = torch.tensor([window.ids + [0] * (longest - len(window.ids)) for window in windows], device=model.device)
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    found = []
    for hidden_TD, window in zip(hidden_BTD, windows, strict=True):  # the logits of one window at a time
        targets_T = torch.tensor(window.targets, device=model.device)
        logits_TV = head(hidden_TD[window.first : window.first + len(targets_T)]).float()
        found.append(-torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="sum").item())
    return found
