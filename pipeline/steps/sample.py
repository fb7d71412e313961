"""Draws the next token as transformers' warpers shape it: temperature, then top k, then top p.

A draw is a function of (seed, row, place in the reply), so a reply does not depend on its company in a batch, as far as
its logits do not. Letters: B rows still going, V vocabulary, K tokens that may be drawn.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.core.seeds import number

BITS = 56
"""Of `number`."""


@dataclass(frozen=True)
class Sampler:
    """Settings of the draw, and the names of the prompts, whose random streams they are."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    names: list[str]

    def decoding(self) -> dict[str, Any]:
        """Return what differs from greedy decoding, in transformers' words."""
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def __call__(self, logits_BV: Tensor, rows: list[int], place: int) -> Tensor:
        """Return one token for every row of `logits_BV`; `rows` are places in `names`."""
        shares_BK, tokens_BK = self.shares(logits_BV)
        sums_BK = shares_BK.cumsum(dim=-1)
        drawn_B = [number(self.seed, f"reply/{self.names[row]}", place) / 2**BITS for row in rows]
        marks_B1 = torch.tensor(drawn_B, dtype=torch.float64, device=logits_BV.device)[:, None] * sums_BK[:, -1:]
        return tokens_BK.gather(1, (sums_BK > marks_B1).long().argmax(dim=-1, keepdim=True))[:, 0]

    def shares(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the `top_k` most probable tokens, zero for what `top_p` cuts, and the tokens."""
        scores_BK, tokens_BK = logits_BV.float().topk(min(self.top_k, logits_BV.shape[-1]), dim=-1)
        shares_BK = (scores_BK.double() / self.temperature).softmax(dim=-1)
        before_BK = shares_BK.cumsum(dim=-1) - shares_BK
        kept_BK = before_BK < self.top_p
        kept_BK[:, 0] = True
        shares_BK = shares_BK * kept_BK
        return shares_BK / shares_BK.sum(dim=-1, keepdim=True), tokens_BK
