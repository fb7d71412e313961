"""What a trained update looks like: how many directions a low-rank one really uses, and how far a rotation turns.

Shapes: A (R, I), B (O, R), rotation (N, C, C).
"""

import math

import torch
from torch import Tensor

SHOWN = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""Quantiles that stand for a spectrum."""
DIGITS = 4
"""Decimals kept."""


@torch.no_grad()
def effective_rank(A_RI: Tensor, B_OR: Tensor) -> float:
    """Return exp of the entropy of the shares of the singular values of B A: R where all are equal, 0 where B A is 0.

    Roy & Vetterli 2007, The effective rank. The singular values are those of the triangles of B and A^T, (R, R).
    """
    triangle_of_B, triangle_of_A = (torch.linalg.qr(factor.double().cpu(), "r").R for factor in (B_OR, A_RI.T))
    share_R = torch.linalg.svdvals(triangle_of_B @ triangle_of_A.T)
    total = share_R.sum()
    return round(float(torch.special.entr(share_R / total).sum().exp()), DIGITS) if total > 0 else 0.0


@torch.no_grad()
def rotation_angles(rotation_NCC: Tensor) -> dict[str, float]:
    """Return quantiles of the angles, in degrees, by which the blocks turn their planes; an odd block's axis counts 0.

    Eigenvalues come in conjugate pairs e^(+-i angle), so every plane counts twice and no quantile changes.
    """
    angle_X = torch.linalg.eigvals(rotation_NCC.double().cpu()).angle().abs().flatten() * (180 / math.pi)
    quantiles = torch.quantile(angle_X, torch.tensor(list(SHOWN.values()), dtype=torch.float64))
    return {name: round(value, DIGITS) for name, value in zip(SHOWN, quantiles.tolist(), strict=True)}
