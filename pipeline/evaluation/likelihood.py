"""Log-likelihoods of a task's texts, window by window.

Letters: B windows, T tokens of a window, N targets of a window, V vocabulary, D hidden width.
"""

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.core.settings import SettingsError
from pipeline.evaluation.windows import Window, cut
from pipeline.steps.tokens import Tokenizer
from pipeline.tasks.base import Row, Task
from pipeline.tasks.generation import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 2**25
"""Logits held at once: 128 MiB in fp32, 256 positions of a vocabulary of 128 k."""


class Chunks:
    """The texts of a task as the windows that a model reads, made once for all states."""

    def __init__(self, task: Task, rows: list[Row], tokenizer: Tokenizer, context: int) -> None:
        """Tokenize and cut.

        Raises:
            SettingsError: a window is longer than the model's `context`, or the texts are shorter than one.
        """
        assert isinstance(task.generation, Texts)
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

    def items(self, model: "PreTrainedModel") -> list[dict[str, Any]]:
        """Return the log-likelihood in nats of every item's targets, in order, and of each of its windows.

        Raises:
            FloatingPointError: a log-likelihood is not a finite number.
        """
        found = finite_log_likelihoods(model, self.windows, self.settings.batch_size)
        return [
            _item(name, [(window, one) for window, one in group])
            for name, group in groupby(zip(self.windows, found, strict=True), key=lambda pair: pair[0].item)
        ]


def _item(name: str, parts: list[tuple[Window, float]]) -> dict[str, Any]:
    tokens = sum(len(window.targets) for window, _ in parts)
    item = {"item": name, "log_likelihood": math.fsum(one for _, one in parts), "tokens": tokens}
    return item if len(parts) == 1 else item | {"windows": [one for _, one in parts]}


def finite_log_likelihoods(model: "PreTrainedModel", windows: list[Window], batch_size: int) -> list[float]:
    """Return the log-likelihood in nats of each window's targets, in order; neighbors in length are read together.

    Raises:
        FloatingPointError: one is not a finite number.
    """
    order = sorted(range(len(windows)), key=lambda index: len(windows[index].ids))
    found: dict[int, float] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found |= zip(batch, _log_likelihoods(model, [windows[index] for index in batch]), strict=True)
    if not all(map(math.isfinite, found.values())):
        raise FloatingPointError("the model's log-likelihoods are not finite")
    return [found[index] for index in range(len(windows))]


@torch.no_grad()
def _log_likelihoods(model: "PreTrainedModel", windows: list[Window]) -> list[float]:
    """Return the log-likelihood of each window's targets.

    Shorter windows are padded on the right, where a causal model looks from no position that counts.
    """
    head, longest = model.get_output_embeddings(), max(len(window.ids) for window in windows)
    assert head is not None
    rows = max(1, LOGITS // model.config.vocab_size)
    ids_BT = torch.tensor([window.ids + [0] * (longest - len(window.ids)) for window in windows], device=model.device)
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return [
        _sum(head, hidden_TD[window.first : window.first + len(window.targets)], window.targets, rows)
        for hidden_TD, window in zip(hidden_BTD, windows, strict=True)
    ]


def _sum(head: nn.Module, hidden_ND: Tensor, targets: list[int], rows: int) -> float:
    """Return the sum over targets of their log-probability; `rows` of them have their logits made at once."""
    targets_N = torch.tensor(targets, device=hidden_ND.device)
    losses = [
        nn.functional.cross_entropy(head(part_ND).float(), part_N, reduction="none").double().sum()
        for part_ND, part_N in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return -torch.stack(losses).sum().item()
