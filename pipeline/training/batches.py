"""Rows of text become the batches of each optimizer step: the same rows in the same order for every method.

Letters: B batch, T time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from pipeline.core.seeds import shuffled
from pipeline.core.settings import SettingsError
from pipeline.steps.tokens import Tokenizer, answer_ids, prompt_ids
from pipeline.steps.train import IGNORED, Batch
from pipeline.tasks.base import Chat


@dataclass(frozen=True)
class Example:
    """One row as tokens; the first `start` tokens carry no loss."""

    ids: list[int]
    start: int

    def labelled(self) -> int:
        """Return the number of tokens that carry a loss; the first token is never predicted."""
        return max(0, len(self.ids) - max(self.start, 1))


@dataclass(frozen=True)
class Examples:
    """A split as tokens, and how many rows were cut to the length limit."""

    rows: list[Example]
    truncated: int


def encode(
    tokenizer: Tokenizer, pairs: list[tuple[str, str, str]], *, max_length: int, loss_on: str, chat: Chat | None = None
) -> Examples:
    """Encode (id, prompt, answer) triples, through the tokenizer's chat template where there is a `chat`.

    Raises:
        SettingsError: a row is left without a single labelled token; the message names it.
    """
    rows, truncated = [], 0
    for name, prompt, answer in pairs:
        head, tail = prompt_ids(tokenizer, prompt, chat), answer_ids(tokenizer, answer, chat)
        example = Example((head + tail)[:max_length], len(head) if loss_on == "answer" else 0)
        truncated += len(head) + len(tail) > max_length
        if not answer.strip() or not example.labelled():
            why = "its answer is empty" if not answer.strip() else f"its prompt has {len(head)} tokens"
            raise SettingsError(
                f"training row {name!r} has no labelled token: {why}. "
                f"training.max_length is {max_length}; raise it, or remove the row."
            )
        rows.append(example)
    return Examples(rows, truncated)


def collate(examples: list[Example], share: float, pad: int, device: torch.device) -> Batch:
    """Pad rows on the right to the longest; labels are shifted so that position t predicts token t + 1."""
    T = max(len(example.ids) for example in examples) - 1
    ids_BT = torch.full((len(examples), T), pad)
    labels_BT = torch.full((len(examples), T), IGNORED)
    for b, example in enumerate(examples):
        n = len(example.ids) - 1
        tokens = torch.tensor(example.ids)
        ids_BT[b, :n] = tokens[:-1]
        first = max(example.start, 1)
        labels_BT[b, first - 1 : n] = tokens[first:]
    return Batch(ids_BT.to(device), labels_BT.to(device), share)


def parts(examples: list[Example], micro: int, pad: int, device: torch.device) -> list[Batch]:
    """Cut the rows of one optimizer step into parts of `micro` rows.

    Each part's share is its share of the labelled tokens of the whole step, so that the sum of (mean loss x share)
    is the mean over the step's tokens whatever the cut. A mean of means would weigh short answers too much.
    """
    total = sum(example.labelled() for example in examples)
    cut = [examples[i : i + micro] for i in range(0, len(examples), micro)]
    return [collate(rows, sum(row.labelled() for row in rows) / max(total, 1), pad, device) for rows in cut]


def order(seed: int, rows: int, batch_size: int) -> Callable[[int], list[int]]:
    """Return the function step -> row indices: epoch after epoch, each in an order of its own.

    It depends on (seed, step) alone, so that a resumed run reads on where the killed one stopped.
    """

    @lru_cache(maxsize=2)
    def epoch(number: int) -> list[int]:
        return shuffled(seed, f"order/{number}", rows)

    def indices(step: int) -> list[int]:
        places = range(step * batch_size, (step + 1) * batch_size)
        return [epoch(place // rows)[place % rows] for place in places]

    return indices
