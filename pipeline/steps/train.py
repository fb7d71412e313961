"""One training step's forward: batch in, rows out, whose loss is asked for by the method.

Letters: B batch, T time, D hidden width, V vocabulary, M labelled rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.steps.choices import ChoiceRows, Choices
from pipeline.steps.tokens import IGNORED


@dataclass
class Batch:
    """A part of one optimizer step, padded on the right.

    `labels_BT[b, t]` is the token that position t must predict (already shifted), or IGNORED.
    `share` is this part's share of the labelled tokens of the whole step; the shares of a step sum to 1.
    `choices` are there where wrong answers are trained on as well; their rows have no labels.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    share: float
    choices: Choices | None = None


class Rows:
    """Hidden states of a batch; logits are made only of the rows that a loss asks for."""

    def __init__(self, hidden_BTD: Tensor, head: nn.Module) -> None:
        self.hidden_BTD, self.head = hidden_BTD, head

    def logits(self) -> Tensor:
        """Return all logits (B, T, V) in fp32."""
        return self.head(self.hidden_BTD).float()

    def cross_entropy(self, labels_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over the labelled positions; 0 where there are none."""
        labelled_BT = labels_BT != IGNORED
        if not bool(labelled_BT.any()):
            return self.hidden_BTD.sum() * 0.0
        logits_MV = self.head(self.hidden_BTD[labelled_BT]).float()
        return nn.functional.cross_entropy(logits_MV, labels_BT[labelled_BT])


def forward(model: Any, batch: Batch) -> Rows | ChoiceRows:
    """Run the decoder on a right-padded batch.

    No attention mask is needed: under a causal mask the padding on the right is never looked at by a labelled row.
    """
    hidden_BTD = model.base_model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    return ChoiceRows(hidden_BTD, head, batch.choices) if batch.choices else Rows(hidden_BTD, head)


@torch.no_grad()
def mean_loss(model: Any, batches: list[Batch]) -> float:
    """Return the mean loss in nats a labelled token over batches whose shares sum to 1."""
    return sum(float(forward(model, batch).cross_entropy(batch.labels_BT)) * batch.share for batch in batches)
