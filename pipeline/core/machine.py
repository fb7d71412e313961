"""Readies this process for numbers that repeat: device, threads, deterministic kernels."""

import torch

from pipeline.core.settings import SettingsError


def ready(device: str, threads: int) -> torch.device:
    """Return the device to work on after setting what decides bits.

    Args:
        device: "cpu", "cuda" or "auto" (CUDA where there is one; said on stdout).
        threads: of one process; the split of sums over threads changes bits.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(f"hardware.device=auto: using {device}", flush=True)
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("hardware.device: 'cuda' was asked for and this machine has none; use cpu or auto.")
    return torch.device(device)
