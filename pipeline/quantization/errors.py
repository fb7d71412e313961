"""What storing a weight cost, and why: the error of one layer and the shape of its distribution."""

import torch
from torch import Tensor


def layer_errors(weight_OI: Tensor, stored_OI: Tensor) -> dict[str, float | None]:
    """Compare a weight with what is stored of it.

    Returns:
        `relative_error`: ||W - W'|| / ||W|| in the Frobenius norm (0.0920 for a Gaussian in NF4, blocks of 64).
        `max_error`: the largest |W - W'| in units of W's standard deviation.
        `kurtosis`: fourth central moment over squared variance (3 for a Gaussian); large where outliers stretch blocks.
        Each is None where it is not defined: the first for a zero weight, the others for a constant one.
    """
    weight, error = weight_OI.double(), (weight_OI.double() - stored_OI.double())
    centered = weight - weight.mean()
    norm, variance = float(torch.linalg.vector_norm(weight)), float(centered.square().mean())
    return {
        "relative_error": float(torch.linalg.vector_norm(error)) / norm if norm else None,
        "max_error": float(error.abs().max()) / variance**0.5 if variance else None,
        "kurtosis": float(centered.pow(4).mean()) / variance**2 if variance else None,
    }
