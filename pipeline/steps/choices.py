"""What a training step makes of answers to choose from: T-Few's unlikelihood and length-normalized losses.

Liu et al. 2022, arXiv:2205.05638, section 3.2, with b the mean log-probability of an answer's tokens:
L = L_LM + L_UL + L_LN; L_UL = - sum over tokens of wrong answers of log(1 - p) / their number;
L_LN = - log(exp(b right) / sum over the question's answers of exp(b)), a mean over questions. The authors' code adds
0.01 to 1 - p; here log(1 - p) is made of the logits of all other tokens, so that it is exact where p is nearly one.

Letters: B rows (a question with one of its answers), Q questions, C answers of a question, M answer tokens, T, D, V.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.core.settings import SettingsError
from pipeline.steps.tokens import IGNORED


@dataclass
class Choices:
    """Which row is which answer of which question; the right one is at place 0.

    `targets_BT` are the tokens of all answers, IGNORED elsewhere. The sums of this part's two losses are multiplied by
    `unlikelihood` and `length_normalized`: their weights over what the whole step sums up, and over the part's share.
    """

    targets_BT: Tensor
    question_B: Tensor
    place_B: Tensor
    unlikelihood: float
    length_normalized: float

    def loss(self, hidden_BTD: Tensor, head: nn.Module) -> Tensor:
        """Return all three losses of this part together."""
        answer_BT = self.targets_BT != IGNORED
        row_M, target_M = answer_BT.nonzero()[:, 0], self.targets_BT[answer_BT]
        logits_MV = head(hidden_BTD[answer_BT]).float()
        log_p_M = -nn.functional.cross_entropy(logits_MV, target_M, reduction="none")
        right_M = self.place_B[row_M] == 0
        unlikelihood = -_log_others(logits_MV[~right_M], target_M[~right_M]).sum()
        loss = -log_p_M[right_M].mean() + self.unlikelihood * unlikelihood
        return loss + self.length_normalized * self._length_normalized(log_p_M, row_M)

    def _length_normalized(self, log_p_M: Tensor, row_M: Tensor) -> Tensor:
        """Return the sum over questions of L_LN."""
        sums_B = log_p_M.new_zeros(len(self.place_B)).index_add(0, row_M, log_p_M)
        means_B = sums_B / row_M.bincount(minlength=len(self.place_B))
        questions, answers = int(self.question_B.max()) + 1, int(self.place_B.max()) + 1
        means_QC = means_B.new_full((questions, answers), -torch.inf)  # where a question has fewer answers than another
        means_QC = means_QC.index_put((self.question_B, self.place_B), means_B)
        return (means_QC.logsumexp(1) - means_QC[:, 0]).sum()


def _log_others(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Return log(1 - p) of the targets."""
    others_MV = logits_MV.scatter(1, target_M[:, None], -torch.inf)
    return others_MV.logsumexp(1) - logits_MV.logsumexp(1)


class ChoiceRows:
    """Hidden states of a batch with choices: its loss is that of all answers."""

    def __init__(self, hidden_BTD: Tensor, head: nn.Module, choices: Choices) -> None:
        self.hidden_BTD, self.head, self.choices = hidden_BTD, head, choices

    def logits(self) -> Tensor:
        """Refuse.

        Raises:
            SettingsError: always; a loss that a method makes of logits would leave the choices out without a word.
        """
        raise SettingsError(
            "training.choice_losses: this adapter makes its loss of logits by itself, and has no place for them. Set "
            "training.choice_losses=null, or choose another adapter."
        )

    def cross_entropy(self, labels_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy of the right answers, and T-Few's two losses with it."""
        return self.choices.loss(self.hidden_BTD, self.head)
