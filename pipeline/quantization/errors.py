"""What storing a weight cost, and why: the error of one layer, the shape of its distribution, and its outliers."""

import math

import torch
from torch import Tensor

OUTLIERS = 0.001
"""The share of weights, largest by size, that counts as outliers."""


def layer_errors(weight_OI: Tensor, stored_OI: Tensor) -> dict[str, float | None]:
    """Compare a weight with what is stored of it.

    Returns:
        `relative_error`: ||W - W'|| / ||W|| in the Frobenius norm (0.0920 for a Gaussian in NF4, blocks of 64).
        `max_error`: the largest |W - W'| in units of W's standard deviation.
        `max_weight`: the largest |W| in the same units.
        `kurtosis`: fourth central moment over squared variance (3 for a Gaussian); large where outliers stretch blocks.
        `outlier_error`: the share of the squared error that the outliers bear; evenly spread it would be OUTLIERS.
        Each is None where it is not defined: for a zero weight, a constant one, one that is stored without error.
    """
    weight, error = weight_OI.double(), (weight_OI.double() - stored_OI.double())
    centered = weight - weight.mean()
    norm, variance = float(torch.linalg.vector_norm(weight)), float(centered.square().mean())
    total = float(error.square().sum())
    return {
        "relative_error": total**0.5 / norm if norm else None,
        "max_error": float(error.abs().max()) / variance**0.5 if variance else None,
        "max_weight": float(weight.abs().max()) / variance**0.5 if variance else None,
        "kurtosis": float(centered.pow(4).mean()) / variance**2 if variance else None,
        "outlier_error": float(error[outliers(weight_OI)].square().sum()) / total if total else None,
    }


def outliers(weight_OI: Tensor) -> Tensor:
    """Return which weights are the largest OUTLIERS of all by size, at least one, as a mask (O, I)."""
    count = math.ceil(OUTLIERS * weight_OI.numel())
    mask_N = torch.zeros(weight_OI.numel(), dtype=torch.bool, device=weight_OI.device)
    mask_N[weight_OI.abs().flatten().topk(count).indices] = True
    return mask_N.view(weight_OI.shape)
