"""Rows of text become the batches of each optimizer step: the same rows in the same order for every method.

Letters: B batch, T time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from pipeline.core.seeds import shuffled
from pipeline.core.settings import SettingsError
from pipeline.steps.choices import Choices
from pipeline.steps.tokens import IGNORED, Tokenizer, ended_ids, prompt_ids
from pipeline.steps.train import Batch
from pipeline.tasks.base import Chat
from pipeline.training.settings import ChoiceLosses


@dataclass(frozen=True)
class Example:
    """One row as tokens; the first `start` tokens carry no loss. `wrong` are its prompt with each wrong answer."""

    ids: list[int]
    start: int
    wrong: tuple["Example", ...] = ()

    def labelled(self) -> int:
        """Return the number of tokens that carry a loss; the first token is never predicted."""
        return max(0, len(self.ids) - max(self.start, 1))


@dataclass(frozen=True)
class Examples:
    """A split as tokens, and how many rows were cut to the length limit."""

    rows: list[Example]
    truncated: int


Pair = tuple[str, str, tuple[str, ...]]
"""Id, prompt, and the answers: the right one, and the wrong ones where they are trained on."""


def encode(
    tokenizer: Tokenizer, pairs: list[Pair], *, max_length: int, loss_on: str, chat: Chat | None = None
) -> Examples:
    """Encode every prompt with each of its answers, through the tokenizer's chat template where there is a `chat`.

    Raises:
        SettingsError: a row is left without a single labelled token; the message names it.
    """
    rows, truncated = [], 0
    for name, prompt, answers in pairs:
        head, tails = prompt_ids(tokenizer, prompt, chat), [ended_ids(tokenizer, answer, chat) for answer in answers]
        start = len(head) if loss_on == "answer" else 0
        right, *wrong = (Example((head + tail)[:max_length], start) for tail in tails)
        truncated += any(len(head) + len(tail) > max_length for tail in tails)
        if not all(map(str.strip, answers)) or not all(one.labelled() for one in (right, *wrong)):
            why = f"its prompt has {len(head)} tokens" if all(map(str.strip, answers)) else "its answer is empty"
            raise SettingsError(
                f"training row {name!r} has no labelled token: {why}. "
                f"training.max_length is {max_length}; raise it, or remove the row."
            )
        rows.append(Example(right.ids, right.start, tuple(wrong)))
    return Examples(rows, truncated)


def few(pairs: list[Pair], rows: int | Literal["all"], seed: int) -> list[Pair]:
    """Return `rows` of all rows, drawn by the seed; those of a smaller number are the first of those of a larger one.

    Raises:
        SettingsError: there are not so many.
    """
    if rows == "all":
        return pairs
    if rows > len(pairs):
        raise SettingsError(f"training.train_rows: got {rows}, train has {len(pairs)} rows. Ask for fewer, or for all.")
    return [pairs[index] for index in shuffled(seed, "few-shot", len(pairs))[:rows]]


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


def parts(
    examples: list[Example], micro: int, pad: int, device: torch.device, losses: ChoiceLosses | None = None
) -> list[Batch]:
    """Cut the rows of one optimizer step into parts of `micro` rows, with their wrong answers if `losses` need them.

    Each part's share is its share of the labelled tokens of the whole step, so that the sum of (mean loss x share)
    is the mean over the step's tokens whatever the cut. A mean of means would weigh short answers too much.
    """
    total = sum(example.labelled() for example in examples)
    cut = [examples[i : i + micro] for i in range(0, len(examples), micro)]
    shares = [sum(row.labelled() for row in rows) / max(total, 1) for rows in cut]
    if losses is None:
        return [collate(rows, share, pad, device) for rows, share in zip(cut, shares, strict=True)]
    wrong = sum(one.labelled() for example in examples for one in example.wrong)
    weights = (losses.unlikelihood / wrong, losses.length_normalized / len(examples))
    return [
        _with_choices(rows, collate([*rows, *(one for row in rows for one in row.wrong)], share, pad, device), weights)
        for rows, share in zip(cut, shares, strict=True)
    ]


def _with_choices(rows: list[Example], batch: Batch, weights: tuple[float, float]) -> Batch:
    """Return a batch of right answers and then wrong ones, of which only the right ones are labelled."""
    places = [(q, 0) for q in range(len(rows))]
    places += [(q, place) for q, row in enumerate(rows) for place in range(1, 1 + len(row.wrong))]
    question_B, place_B = torch.tensor(places, device=batch.ids_BT.device).unbind(1)
    choices = Choices(batch.labels_BT, question_B, place_B, *(weight / batch.share for weight in weights))
    labels_BT = batch.labels_BT.masked_fill(place_B[:, None] > 0, IGNORED)
    return Batch(batch.ids_BT, labels_BT, batch.share, choices)


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
