"""From a skew-symmetric Q to the rotation R = (I + Q)(I - Q)^-1, exactly or by a series, in one orientation.

Both return the turn R - I: at Q = 0 it is exactly zero, and where R is nearly I it keeps its digits.

Shapes: packed (N, E), the strict upper triangle row by row as PEFT keeps it; Q and turn (N, C, C).
"""

import torch
from torch import Tensor


def skew(packed_NE: Tensor, C: int) -> Tensor:
    """Return the skew-symmetric blocks (N, C, C) of packed strict upper triangles."""
    row_E, column_E = torch.triu_indices(C, C, 1, device=packed_NE.device)
    upper_NCC = packed_NE.new_zeros(len(packed_NE), C, C)
    upper_NCC[:, row_E, column_E] = packed_NE
    return upper_NCC - upper_NCC.mT


def cayley(Q_NCC: Tensor) -> Tensor:
    """Return R - I = 2 Q (I - Q)^-1 of the exact Cayley transform; the factors commute."""
    return torch.linalg.solve(torch.eye(Q_NCC.shape[-1], dtype=Q_NCC.dtype, device=Q_NCC.device) - Q_NCC, 2 * Q_NCC)


def cayley_neumann(Q_NCC: Tensor, terms: int) -> Tensor:
    """Return R - I = 2 Q + ... + 2 Q^k + Q^(k+1), by Horner's rule on S = Q + ... + Q^k."""
    S_NCC = Q_NCC
    for _ in range(terms - 1):
        S_NCC = torch.baddbmm(Q_NCC, Q_NCC, S_NCC)
    return S_NCC + torch.baddbmm(Q_NCC, Q_NCC, S_NCC)


def orthogonality_error(Q_NCC: Tensor, terms: int) -> float:
    """Return the largest ||R^T R - I||_2 of the blocks of the series, in closed form.

    R = R_exact (I - Q^m) with m = k + 1, and Q has eigenvalues +-i theta, so R^T R has |1 - (i theta)^m|^2.
    """
    theta_NC = torch.linalg.svdvals(Q_NCC.double())
    cosine = (1, 0, -1, 0)[(terms + 1) % 4]
    power_NC = theta_NC ** (terms + 1)
    return float((power_NC**2 - 2 * cosine * power_NC).abs().max())


def measured_error(turn_NCC: Tensor) -> float:
    """Return the largest ||R^T R - I||_2 of rotations as they are: of exact ones, the round-off."""
    turn_NCC = turn_NCC.double()
    return float(torch.linalg.matrix_norm(turn_NCC + turn_NCC.mT + turn_NCC.mT @ turn_NCC, 2).max())
