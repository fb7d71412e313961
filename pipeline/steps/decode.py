"""Decoding of many prompts at once, with a key-value cache: the arg max of the logits, or what a sampler draws.

The model's generation_config is never read, so no default of a model file can turn sampling, a temperature or a
repetition penalty on. Prompts are padded on the left, under an explicit mask and explicit positions; a row that has
ended leaves the batch, so that one long reply does not keep the others computing.
Letters: B rows still going, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

DECODING = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}
"""What `decode` does with `highest`, in transformers' words; evaluations store it."""

Choose = Callable[[Tensor, list[int], int], Tensor]
"""(logits (B, V), the prompts that the rows belong to, place in the reply) -> tokens (B,)."""


def highest(logits_BV: Tensor, rows: list[int], place: int) -> Tensor:
    """Return the most probable token of every row."""
    return logits_BV.max(dim=-1).indices


@dataclass(frozen=True)
class Reply:
    """The tokens that followed a prompt, the one that ended it included, and why it ended."""

    tokens: tuple[int, ...]
    stop: str
    """eos: a token of `stop_ids`; stop: `halted` said so; length: `max_new_tokens` came first."""


@torch.no_grad()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    halted: Callable[[list[int]], bool] | None = None,
    choose: Choose = highest,
) -> list[Reply]:
    """Decode all `prompts` (token ids, none empty) as one batch.

    Args:
        model: a causal language model of transformers, in eval mode.
        prompts: token ids with every special token already in place.
        max_new_tokens: most tokens of one reply.
        stop_ids: tokens that end a reply.
        halted: says of the tokens of a reply whether it has come to its end (stop strings).
        choose: takes the next token of every row.

    Returns:
        One reply for each prompt, in their order.

    Raises:
        FloatingPointError: a logit that decides is not a finite number.
    """
    mask_BT = _left_mask(prompts, model.device)
    tokens_BT = torch.zeros_like(mask_BT)
    tokens_BT[mask_BT.bool()] = torch.tensor([token for prompt in prompts for token in prompt], device=model.device)
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    room = mask_BT.shape[1] + max_new_tokens
    cache = Cache(layers=[_Reserved(room) for _ in range(model.config.num_hidden_layers)])
    replies: list[list[int]] = [[] for _ in prompts]
    stops = ["length"] * len(prompts)
    rows = list(range(len(prompts)))
    for place in range(max_new_tokens):
        output = model(
            input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits_BV = output.logits[:, -1]
        if not bool(logits_BV.max(dim=-1).values.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite")
        tokens_BT = choose(logits_BV, rows, place)[:, None]
        for row, token in zip(rows, tokens_BT[:, 0].tolist(), strict=True):
            replies[row].append(token)
            if token in stop_ids:
                stops[row] = "eos"
            elif halted is not None and halted(replies[row]):
                stops[row] = "stop"
        going = [index for index, row in enumerate(rows) if stops[row] == "length"]
        if not going:
            break
        if len(going) < len(rows):
            rows = [rows[index] for index in going]
            keep = torch.tensor(going, device=model.device)
            cache.batch_select_indices(keep)
            tokens_BT, mask_BT, positions_BT = tokens_BT[keep], mask_BT[keep], positions_BT[keep]
        mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        positions_BT = positions_BT[:, -1:] + 1
    return [Reply(tuple(reply), stop) for reply, stop in zip(replies, stops, strict=True)]


class _Reserved(DynamicLayer):
    """Keys and values of one layer, written into memory reserved once.

    transformers' own layer copies everything at every token, 40 % of the time of a small model (measured 2026-11).
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _length, width = key_states.shape
            self.reserved = key_states.new_zeros(2, batch, heads, self.room, width)
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.reserved[0, :, :, start : self.length] = key_states
        self.reserved[1, :, :, start : self.length] = value_states
        self.keys, self.values = self.reserved[:, :, :, : self.length]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reserved = self.reserved[:, indices]
        self.keys, self.values = self.reserved[:, :, :, : self.length]


def _left_mask(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return 1 where a prompt has a token and 0 where padding stands before it, (B, P)."""
    lengths_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    longest = int(lengths_B1.max())
    return (torch.arange(longest, device=device) >= longest - lengths_B1).long()
